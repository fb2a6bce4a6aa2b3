"""The Switch Transformer's folders: the same function as transformers computes, and the same folder back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.families.layout_copies import check_same_bits, copy_in, copy_out, saved_anew

from moekit.config import MoEConfig, SwitchConfig
from moekit.config.encoder_decoder import EncoderDecoderConfig
from moekit.core.errors import MoekitError
from moekit.families.settings import Settings
from moekit.families.switch import FAMILY
from moekit.models.encoder_decoder import EncoderDecoder
from moekit.moe import Routing

transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")

pytestmark = pytest.mark.processor

SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 8,
    "num_heads": 3,
    "d_ff": 24,
    "num_layers": 4,
    "num_decoder_layers": 3,
    "num_experts": 3,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "decoder_start_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    # Sparse are layers 1 and 3 of the encoder, and 1 of the decoder.
    "base": {},
    "every layer, gelu": {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 3, "dense_act_fn": "gelu"},
    "no sparse decoder": {"num_sparse_decoder_layers": 0},
    "steps given": {"encoder_sparse_step": 1, "decoder_sparse_step": 0},
}


def theirs_of(variant: dict[str, Any], **more: Any) -> Any:
    config = transformers.SwitchTransformersConfig(**SHAPE | variant | more)
    return transformers.SwitchTransformersForConditionalGeneration(config)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parity_and_back(variant: str, tmp_path: Path) -> None:
    theirs = theirs_of(VARIANTS[variant])
    settings, tensors = saved_anew(theirs, tmp_path)
    config = FAMILY.config(settings)
    assert isinstance(config, EncoderDecoderConfig)
    ours, layout = EncoderDecoder(config).eval(), FAMILY.layout(config)
    copy_in(tensors, ours, layout)
    # No longer than the 64 tokens that an expert takes.
    source, target = torch.randint(3, 40, (2, 60)), torch.randint(3, 40, (2, 30))
    real = torch.ones_like(source, dtype=torch.bool)
    real[0, 50:] = False
    with torch.no_grad():
        expected = theirs(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
        got = ours(source, target, source_real_BS=real)
    assert expected.std() > 0.02
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    check_same_bits(tensors, copy_out(ours, layout))

    written = FAMILY.write(config)
    assert written is not None
    assert FAMILY.config(Settings(written, Path("config.json"))) == config
    folder = tmp_path / "config"
    transformers.SwitchTransformersConfig.from_dict(written).save_pretrained(folder)
    again_config = transformers.SwitchTransformersConfig.from_pretrained(folder)
    again = transformers.SwitchTransformersForConditionalGeneration(again_config)
    copies = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    again.load_state_dict(tensors | dict.fromkeys(copies, tensors["shared.weight"]), strict=True)
    with torch.no_grad():
        logits = again.eval()(input_ids=source, attention_mask=real.long(), decoder_input_ids=target).logits
    assert torch.equal(logits, expected)


def test_with_drops_one_sequence_alone_is_the_same_under_a_capacity_factor(tmp_path: Path) -> None:
    """12 tokens and 3 experts: a factor of 1 is theirs of 4 tokens a sequence, where there is one sequence."""
    theirs = theirs_of({}, expert_capacity=4)
    settings, tensors = saved_anew(theirs, tmp_path)
    config = FAMILY.config(settings)
    ours = EncoderDecoder(with_capacity(config, 1.0)).eval()
    dropless = EncoderDecoder(config).eval()
    for model in (ours, dropless):
        copy_in(tensors, model, FAMILY.layout(config))
    source, target = torch.randint(3, 40, (1, 12)), torch.randint(3, 40, (1, 12))
    routings: list[Routing] = []
    with torch.no_grad():
        expected = theirs(input_ids=source, decoder_input_ids=target).logits
        got = ours(source, target, routings=routings)
        without = dropless(source, target)
    dropped = [int((routing.sums["chosen"] - routing.counts_E).sum()) for routing in routings]
    assert all(dropped), dropped
    assert (got - expected).abs().max() <= 1e-5 * expected.std()
    # And without a capacity, as such a folder is read, the function is another one where theirs drops tokens.
    assert (without - expected).abs().max() > 0.01 * expected.std()


def with_capacity(config: Any, factor: float) -> EncoderDecoderConfig:
    def changed(layer: Any) -> Any:
        if not isinstance(layer, MoEConfig):
            return layer
        return layer.model_copy(update={"router": SwitchConfig(capacity_factor=factor)})

    stacks = {"encoder_layers": config.encoder_layers, "decoder_layers": config.decoder_layers}
    return config.model_copy(update={name: tuple(map(changed, layers)) for name, layers in stacks.items()})


@pytest.mark.parametrize("name", [name for name, preset in FAMILY.presets.items() if preset.parameters])
def test_presets_have_their_published_totals(name: str) -> None:
    preset = FAMILY.presets[name]
    with torch.device("meta"):
        model = EncoderDecoder(preset.config)
    total = sum(parameter.numel() for parameter in model.parameters())
    # "7B" is the coarsest.
    assert total == pytest.approx(preset.parameters, rel={"switch-base-128": 0.06}.get(name, 0.015))


def test_switch_c_has_1571_billion_parameters() -> None:
    """1571 B in table 9 of arXiv 2101.03961; XXL 395 B."""
    totals = {}
    for name in ("switch-c-2048", "switch-xxl-128"):
        with torch.device("meta"):
            totals[name] = sum(p.numel() for p in EncoderDecoder(FAMILY.presets[name].config).parameters())
    assert round(totals["switch-c-2048"] / 1e9) == 1571
    assert round(totals["switch-xxl-128"] / 1e9) == 395


def test_published_settings_are_read() -> None:
    """What google/switch-base-256/config.json says, leftovers included."""
    values = {
        "add_router_probs": False,
        "architectures": ["SwitchTransformersForConditionalGeneration"],
        "d_ff": 3072,
        "d_kv": 64,
        "d_model": 768,
        "decoder_sparse_step": 2,
        "decoder_start_token_id": 0,
        "dense_act_fn": "relu",
        "encoder_sparse_step": 2,
        "eos_token_id": 1,
        "expert_capacity": 64,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "is_gated_act": False,
        "model_type": "switch_transformers",
        "num_decoder_layers": 12,
        "num_experts": 256,
        "num_heads": 12,
        "num_layers": 12,
        "num_selected_experts": 1,
        "num_sparse_decoder_layers": 6,
        "num_sparse_encoder_layers": 6,
        "router_aux_loss_coef": 0.001,
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": 0.01,
        "router_type": "tokens_masked",
        "vocab_size": 32128,
    }
    config = FAMILY.config(Settings(values, Path("config.json")))
    preset = FAMILY.presets["switch-base-256"].config
    assert isinstance(preset, EncoderDecoderConfig)
    trained = with_capacity(config, 1.25)
    for mine, published in ((trained.encoder_layers, preset.encoder_layers), (trained.heads, preset.heads)):
        assert str(mine).replace("z_loss=0.001", "z_loss=0.0") == str(published)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("router_bias", True),
        ("tie_word_embeddings", False),
        ("router_dtype", "bfloat16"),
        ("dense_act_fn", "gated-gelu"),
        ("expert_capacity", "large"),
        ("num_decoder_layers", -1),
    ],
)
def test_what_is_not_supported_is_named(key: str, value: object) -> None:
    with pytest.raises(MoekitError, match=rf"config\.json: {key} "):
        FAMILY.config(Settings(SHAPE | {key: value}, Path("config.json")))


def test_what_transformers_cannot_say_is_not_written() -> None:
    config = FAMILY.config(Settings(SHAPE, Path("config.json")))
    assert isinstance(config, EncoderDecoderConfig)
    assert FAMILY.write(config) is not None
    dense, sparse = config.encoder_layers[:2]
    for change in (
        {"encoder_layers": (sparse, dense, dense)},
        {"encoder_layers": (dense, dense), "decoder_layers": (dense,)},
        {"scaled_logits": False},
        {"tie_embeddings": False},
        {"target_vocab_size": 41},
    ):
        assert FAMILY.write(config.model_copy(update=change)) is None, change
    assert FAMILY.write(with_capacity(config, 1.25)) is None
    assert FAMILY.write(FAMILY.presets["switch-xxl-128"].config) is None  # gated
