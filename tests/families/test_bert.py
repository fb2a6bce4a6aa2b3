"""BERT's folders: every tensor has its place, both ways, and settings that mean another function are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.families.layout_copies import copy_in, copy_out, randomize, saved_tensors

from moekit.config import DenseConfig, MoEConfig, SoftmaxTopKConfig
from moekit.config.encoder import EncoderConfig
from moekit.core.errors import MoekitError
from moekit.families.bert import FAMILIES, FAMILY, modern_name
from moekit.families.settings import Settings
from moekit.families.tensors_left_out import is_buffer
from moekit.models.encoder import Encoder

DENSE = DenseConfig(width=24, activation="gelu_tanh", gated=False, bias=True)


def make_config(**more: Any) -> EncoderConfig:
    settings = {"layers": (DENSE, DENSE), "head_activation": "gelu_tanh", "mask_token": 7, "start_token": 3} | more
    return EncoderConfig(vocab_size=41, width=16, context=12, heads=2, types=3, norm_eps=1e-6, **settings)


def read(values: dict[str, Any]) -> Any:
    return FAMILY.config(Settings(values, Path("config.json")))


@pytest.mark.parametrize("architecture", ["BertForPreTraining", "BertForMaskedLM"])
def test_a_folder_of_transformers_comes_and_goes_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")
    wanted = make_config(next_sentence=architecture == "BertForPreTraining")
    settings = FAMILY.write(wanted)
    assert settings is not None
    theirs = getattr(transformers, architecture)(transformers.BertConfig(**settings)).eval()
    randomize(theirs)
    tensors = saved_tensors(theirs, tmp_path)
    config = read(json.loads((tmp_path / "config.json").read_text()))
    assert config == wanted
    ours = Encoder(config).eval()
    copy_in(tensors, ours, FAMILY.layout(config))
    again = copy_out(ours, FAMILY.layout(config))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())

    # What we write, transformers reads as the same model.
    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(again, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({"model_type": FAMILY.model_type, **settings}))
    back, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    tokens_BT = torch.randint(0, 41, (2, 12))
    with torch.no_grad():
        expected, got = back.eval()(tokens_BT)[0], ours(tokens_BT).logits_BTV
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu"])
@pytest.mark.parametrize("next_sentence", [True, False])
def test_settings_say_the_whole_configuration(activation: Any, next_sentence: bool) -> None:
    dense = DENSE.model_copy(update={"activation": activation})
    config = make_config(layers=(dense,) * 3, head_activation=activation, next_sentence=next_sentence)
    settings = FAMILY.write(config)
    assert settings is not None
    assert read(json.loads(json.dumps(settings))) == config


@pytest.mark.parametrize(
    "layers",
    [
        (DENSE, DENSE.model_copy(update={"width": 8})),
        (DENSE.model_copy(update={"gated": True}),),
        (DENSE.model_copy(update={"bias": False}),),
        (DENSE.model_copy(update={"activation": "relu"}),),
        (MoEConfig(experts=2, expert_width=8, router=SoftmaxTopKConfig(top_k=2)),),
    ],
)
def test_what_bert_cannot_say_is_written_whole(layers: Any) -> None:
    config = make_config(layers=layers)
    assert FAMILY.write(config) is None
    own = FAMILIES[1]
    settings = own.write(config)
    assert settings is not None
    assert own.config(Settings(json.loads(json.dumps(settings)), Path("config.json"))) == config


@pytest.mark.parametrize(
    "wrong",
    [
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
        {"add_cross_attention": True},
        {"tie_word_embeddings": False},
        {"hidden_act": "quick_gelu"},
        {"architectures": ["BertForSequenceClassification"]},
        {"num_hidden_layers": 0},
        {"hidden_size": None},
    ],
)
def test_settings_of_another_function_are_refused(wrong: dict[str, Any]) -> None:
    settings = FAMILY.write(make_config())
    assert settings is not None
    with pytest.raises(MoekitError, match=next(iter(wrong))):
        read(settings | wrong)


def test_old_files() -> None:
    layout = {entry.name: entry for entry in FAMILY.layout(make_config())}
    assert layout["cls.predictions.decoder.weight"].optional
    assert modern_name("bert.embeddings.LayerNorm.gamma") == "bert.embeddings.LayerNorm.weight"
    assert modern_name("cls.predictions.transform.LayerNorm.beta") == "cls.predictions.transform.LayerNorm.bias"
    assert all(modern_name(name) == name for name in layout)
    assert is_buffer("bert.embeddings.position_ids")
    assert FAMILY.leftover("cls.seq_relationship.weight")
    masked_only = FAMILY.layout(make_config(next_sentence=False))
    assert not any(is_buffer(entry.name) or FAMILY.leftover(entry.name) for entry in masked_only)


# Counted by hand from the published shapes: embeddings, layers, and the heads of BertForPreTraining.
TOTALS = {
    "bert-base-uncased": 110_106_428,
    "bert-large-uncased": 336_226_108,
    "bert-base-cased": 110_106_428 - (30_522 - 28_996) * 769,
    "bert-large-cased": 336_226_108 - (30_522 - 28_996) * 1025,
}


@pytest.mark.parametrize("name", sorted(FAMILY.presets))
def test_presets_have_the_published_size(name: str) -> None:
    preset = FAMILY.presets[name]
    with torch.device("meta"):
        model = Encoder(preset.config)  # type: ignore[arg-type]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == TOTALS[name]
    if preset.parameters is not None:
        assert total == pytest.approx(preset.parameters, rel=0.015)
    settings = FAMILY.write(preset.config)
    assert settings is not None
    assert read(settings) == preset.config
