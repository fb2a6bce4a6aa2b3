"""Models that no format of others can say: our own folders hold configuration and weights whole."""

import json
from pathlib import Path

import pytest
import torch
from tests.conftest import RESIDUAL, model_config

from moekit.config import (
    Config,
    EncoderConfig,
    EncoderDecoderConfig,
    GRUSeq2SeqConfig,
    LSTMConfig,
    LSTMSeq2SeqConfig,
    MoEConfig,
    SoftmaxTopKConfig,
    XLNetConfig,
)
from moekit.core.errors import MoekitError
from moekit.families import FAMILIES
from moekit.models import build, load
from moekit.models.folder import own_tensors

MOE = MoEConfig(experts=3, expert_width=8, router=SoftmaxTopKConfig(top_k=2))
PAIR = {"source_vocab_size": 11, "target_vocab_size": 13, "embedding_width": 6, "width": 8, "end_token": 2}
MODELS: dict[str, Config] = {
    "moekit_decoder": model_config((RESIDUAL,)),
    "moekit_encoder": EncoderConfig(vocab_size=17, width=8, context=12, heads=2, layers=(MOE,)),
    "moekit_encoder_decoder": EncoderDecoderConfig(
        vocab_size=17, width=8, heads=2, head_width=4, encoder_layers=(MOE,), decoder_layers=(MOE,)
    ),
    "moekit_xlnet": XLNetConfig(vocab_size=17, width=8, heads=2, layers=(MOE,)),
    "moekit_lstm": LSTMConfig(vocab_size=11, embedding_width=6, widths=(9, 6)),
    "moekit_lstm_seq2seq": LSTMSeq2SeqConfig(**PAIR, layers=2),
    "moekit_gru_seq2seq": GRUSeq2SeqConfig(**PAIR, alignment_width=5, maxout_width=4),
}


@pytest.mark.parametrize("model_type", MODELS)
def test_a_folder_holds_the_model_bit_for_bit(model_type: str, tmp_path: Path) -> None:
    model = build(MODELS[model_type])
    model.save(tmp_path / "model")
    assert json.loads((tmp_path / "model/config.json").read_text())["model_type"] == model_type
    again = load(tmp_path / "model")
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    before, after = own_tensors(model), own_tensors(again)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@pytest.mark.parametrize("model_type", MODELS)
def test_what_is_wrong_is_named(model_type: str, tmp_path: Path) -> None:
    build(MODELS[model_type]).save(tmp_path / "model")
    file = tmp_path / "model/config.json"
    values = json.loads(file.read_text())
    values["moekit"]["vocabulary"] = 3
    file.write_text(json.dumps(values))
    with pytest.raises(MoekitError, match=r"config\.json, moekit: vocabulary: there is no such key"):
        load(tmp_path / "model")


def test_every_own_family_is_tried_here() -> None:
    own = {f.model_type for families in FAMILIES.values() for f in families if f.model_type.startswith("moekit_")}
    assert own == MODELS.keys()
