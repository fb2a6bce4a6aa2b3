"""T5's folders: the same function as transformers computes, and the same folder back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.layout_copies import check_same_bits, copy_in, copy_out, saved_anew

from moekit.config import DenseConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.core.errors import MoekitError
from moekit.families.settings import Settings
from moekit.families.t5 import FAMILY
from moekit.models.encoder_decoder import EncoderDecoder

transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")

pytestmark = pytest.mark.processor

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 32,
    # An inner width that is not D's, and stacks that differ in depth.
    "d_kv": 8,
    "num_heads": 3,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "decoder_start_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "v1.0": {},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "untied but scaled": {"tie_word_embeddings": False, "scale_decoder_outputs": True},
    "gated silu, few buckets": {
        "feed_forward_proj": "gated-silu",
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
        "layer_norm_epsilon": 1e-3,
    },
    "gelu, other tokens": {
        "feed_forward_proj": "gelu",
        "decoder_start_token_id": 3,
        "pad_token_id": 2,
        "eos_token_id": None,
    },
}
# Beyond the largest distance that has a bucket of its own, which is 128.
LONG = 150


def theirs_of(variant: dict[str, Any]) -> Any:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**SHAPE | variant))
    if not variant.get("tie_word_embeddings", True):
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    return model


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_and_back(variant: str, tmp_path: Path) -> None:
    theirs = theirs_of(VARIANTS[variant])
    settings, tensors = saved_anew(theirs, tmp_path)
    # As published: what transformers 5 makes of the setting can't be told from a model with ties that aren't scaled.
    settings.values |= VARIANTS[variant]
    config = FAMILY.config(settings)
    assert isinstance(config, EncoderDecoderConfig)
    ours, layout = EncoderDecoder(config).eval(), FAMILY.layout(config)
    copy_in(tensors, ours, layout)
    source, target = torch.randint(3, 40, (2, LONG)), torch.randint(3, 40, (2, LONG))
    real = torch.ones_like(source, dtype=torch.bool)
    real[0, 100:], real[1, :20] = False, False
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
        got = ours(source, target, source_real_BS=real)
    assert expected.std() > 0.02
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    check_same_bits(tensors, copy_out(ours, layout))

    written = FAMILY.write(config)
    assert written is not None
    assert FAMILY.config(Settings(written, Path("config.json"))) == config
    again = theirs_of(VARIANTS[variant])
    again.__init__(transformers.T5Config.from_dict(written))
    if not config.tie_embeddings:
        again.lm_head.weight = torch.nn.Parameter(torch.empty_like(again.lm_head.weight))
    state = tensors | {"lm_head.weight": tensors.get("lm_head.weight", tensors["shared.weight"])}
    copies = {f"{stack}.embed_tokens.weight": tensors["shared.weight"] for stack in ("encoder", "decoder")}
    again.load_state_dict(state | copies, strict=True)
    with torch.no_grad():
        logits = again.eval()(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
    assert torch.equal(logits, expected)


def test_a_folder_resaved_by_transformers_5_is_read_without_ties() -> None:
    settings = Settings(SHAPE | {"tie_word_embeddings": True, "scale_decoder_outputs": False}, Path("config.json"))
    config = FAMILY.config(settings)
    assert isinstance(config, EncoderDecoderConfig)
    assert not config.tie_embeddings
    assert not config.scaled_logits
    assert "lm_head.weight" in {entry.name for entry in FAMILY.layout(config) if not entry.optional}


@pytest.mark.parametrize("name", FAMILY.presets)
def test_presets_have_their_published_totals_and_can_be_written(name: str) -> None:
    preset = FAMILY.presets[name]
    with torch.device("meta"):
        model = EncoderDecoder(preset.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    # Published with one or two digits. T5-Large and FLAN-T5-XL are the furthest off, 4.2 % and 5 %.
    assert total == pytest.approx(preset.parameters, rel=0.052)
    written = FAMILY.write(preset.config)
    assert written is not None
    assert FAMILY.config(Settings(written, Path("config.json"))) == preset.config


def test_the_exact_totals_of_published_files() -> None:
    """The numbers of elements in the files of google-t5/t5-small and google/t5-v1_1-small."""
    for name, expected in (("t5-small", 60_506_624), ("t5-v1.1-small", 76_961_152)):
        with torch.device("meta"):
            model = EncoderDecoder(FAMILY.presets[name].config)
        assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("feed_forward_proj", "gated-tanh"),
        ("dense_act_fn", "gelu"),
        ("is_gated_act", True),
        ("is_encoder_decoder", False),
        ("num_layers", 0),
        ("num_layers", 10**9),
        ("d_model", "many"),
        ("eos_token_id", [1, 2]),
    ],
)
def test_what_is_not_supported_is_named(key: str, value: object) -> None:
    with pytest.raises(MoekitError, match=rf"config\.json: {key} "):
        FAMILY.config(Settings(SHAPE | {key: value}, Path("config.json")))


@pytest.mark.parametrize(
    "change",
    [
        {"tie_embeddings": True, "scaled_logits": False},
        {"positions": "learned", "context": 8},
        {"target_vocab_size": 50},
        {"norm": "layer"},
        {"decoder_layers": [DenseConfig(width=7, activation="relu", gated=False).model_dump()]},
        {"encoder_layers": [DenseConfig(width=24, activation="relu", gated=False, bias=True).model_dump()]},
    ],
)
def test_what_t5_cannot_say_is_not_written(change: dict[str, Any]) -> None:
    config = FAMILY.config(Settings(SHAPE, Path("config.json")))
    assert FAMILY.write(config) is not None
    assert FAMILY.write(EncoderDecoderConfig.model_validate(config.model_dump() | change)) is None
