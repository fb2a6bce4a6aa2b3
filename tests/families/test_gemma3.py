"""Gemma 3's settings as folders of several ages have them, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.families.round_trips import check_logits, save_theirs

from moekit.config import LinearScaling, ModelConfig
from moekit.core.errors import MoekitError
from moekit.families import Settings, presets
from moekit.families.gemma3 import FAMILY
from moekit.models import load

# As google/gemma-3-1b-pt and the text part of gemma-3-4b-pt were published, by transformers 4.50.
PUBLISHED_1B: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": 1,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "initializer_range": 0.02,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "use_cache": True,
    "vocab_size": 262144,
}
SPARSE_4B: dict[str, Any] = {
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "model_type": "gemma3_text",
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}


def config(**settings: Any) -> ModelConfig:
    read = FAMILY.config(Settings(settings, Path("config.json")))
    assert isinstance(read, ModelConfig)
    return read


def everywhere(model: ModelConfig) -> list[int]:
    return [index for index, layer in enumerate(model.layers) if layer.attention.window is None]


def test_published_settings_give_the_published_models() -> None:
    small, large = config(**PUBLISHED_1B), config(**SPARSE_4B)
    published = {name: preset.config for name, preset in presets().items()}
    assert small == published["gemma-3-1b"]
    assert large == published["gemma-3-4b"]
    assert everywhere(small) == [5, 11, 17, 23]
    assert {layer.attention.window for layer in small.layers} == {None, 512}
    assert {layer.attention.rope_base for layer in small.layers} == {1e6, 1e4}
    scalings = {(layer.attention.window, layer.attention.rope_scaling) for layer in large.layers}
    assert scalings == {(None, LinearScaling(factor=8)), (1024, None)}


@pytest.mark.parametrize(
    "said",
    [
        {"sliding_window_pattern": 2},
        {"layer_types": ["sliding_attention", "full_attention"] * 13},
        {
            "layer_types": ["sliding_attention", "full_attention"] * 13,
            "rope_theta": 3e5,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ],
)
def test_every_way_to_say_a_pattern_is_the_same(said: dict[str, Any]) -> None:
    without = {key: value for key, value in PUBLISHED_1B.items() if key != "sliding_window_pattern"}
    assert config(**without | said) == config(**PUBLISHED_1B | {"sliding_window_pattern": 2})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
        ({"layer_types": ["full_attention"]}, "layer_types must say"),
        ({"layer_types": ["linear_attention"] * 26}, "layer_types must say"),
        ({"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
        ({"query_pre_attn_scalar": 0}, "query_pre_attn_scalar is 0"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(change: dict[str, Any], message: str) -> None:
    with pytest.raises(MoekitError, match=message):
        config(**PUBLISHED_1B | change)


def test_a_folder_of_before_transformers_5(tmp_path: Path) -> None:
    """The same weights under the settings that published folders have compute the same."""
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "head_dim": 8, "vocab_size": 61}
    theirs = transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(
            **shape,
            num_attention_heads=4,
            num_key_value_heads=2,
            query_pre_attn_scalar=8,
            sliding_window=4,
            sliding_window_pattern=3,
            max_position_embeddings=64,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        )
    )
    folder = save_theirs(theirs, tmp_path / "model")
    older = (
        PUBLISHED_1B
        | shape
        | {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "query_pre_attn_scalar": 8,
            "sliding_window": 4,
            "sliding_window_pattern": 3,
            "max_position_embeddings": 64,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        }
    )
    (folder / "config.json").write_text(json.dumps(older))
    tokens_BT = torch.randint(0, 61, (2, 20))
    with torch.no_grad():
        check_logits(theirs(tokens_BT).logits, load(folder)(tokens_BT))


@pytest.mark.parametrize("forgotten", ["norm", "local rope", "window", "scale", "embedding"])
def test_each_of_its_extras_matters(forgotten: str, tmp_path: Path) -> None:
    """The comparison with transformers would notice each of them missing."""
    settings = transformers.Gemma3TextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, head_dim=8, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=4, query_pre_attn_scalar=21, max_position_embeddings=64,
    )  # fmt: skip
    theirs = transformers.Gemma3ForCausalLM(settings)
    model = load(save_theirs(theirs, tmp_path / "model"))
    found = model.config.model_dump()
    for layer in found["layers"]:
        attention = layer["attention"]
        match forgotten:
            case "norm":
                layer["norm"]["zero_centered"] = False
            case "local rope":
                attention["rope_base"] = 1e6
            case "window":
                attention["window"] = None
            case "scale":
                attention["scale"] = None
    if forgotten == "embedding":
        found["embedding_scale"] = 1.0
    other = type(model)(ModelConfig.model_validate(found)).eval()
    other.load_state_dict(model.state_dict())
    tokens_BT = torch.randint(0, 61, (2, 20))
    with torch.no_grad():
        expected = theirs(tokens_BT).logits
        check_logits(expected, model(tokens_BT))
        assert (expected - other(tokens_BT)).abs().max() > 1e-3 * expected.std()
