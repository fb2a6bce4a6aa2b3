"""A key that config.json lacks, or that is null there, means to moekit what it means to transformers' class.

Every key of every family in turn; where transformers has no such model either, the error names the key.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tests.families.round_trips import save_theirs
from torch import Tensor

from moekit.core.errors import MoekitError
from moekit.families.catalogue import FAMILIES
from moekit.models import load

transformers = pytest.importorskip("transformers")


_DECODER = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
_LLAMA = _DECODER | {"intermediate_size": 24, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-2}
_LLAMA |= {"rope_theta": 70.0, "max_position_embeddings": 40}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
_EXPERTS = {"num_experts": 9, "num_experts_per_tok": 3, "norm_topk_prob": True, "moe_intermediate_size": 12}
# Unlike the defaults wherever that is possible, so that a key that is missing is missed.
TINY: dict[str, dict[str, Any]] = {
    "llama": _LLAMA | {"hidden_act": "gelu", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": _LLAMA | {"hidden_act": "gelu", "sliding_window": 5},
    "ministral": _LLAMA
    | {"sliding_window": 5, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "qwen2": _LLAMA | _WINDOWS | {"layer_types": None},
    "qwen3": _LLAMA | _WINDOWS | {"layer_types": None, "attention_bias": True},
    "qwen2_moe": _LLAMA | _WINDOWS | _EXPERTS | {"shared_expert_intermediate_size": 20, "mlp_only_layers": [0]},
    "qwen3_moe": _LLAMA | _WINDOWS | _EXPERTS | {"attention_bias": True, "mlp_only_layers": [1]},
    "mixtral": _LLAMA | {"sliding_window": 5, "num_local_experts": 5, "num_experts_per_tok": 3},
    "olmoe": _LLAMA | _EXPERTS | {"attention_bias": True, "head_dim": 8},
    "deepseek_v3": _LLAMA
    | {"moe_intermediate_size": 12, "n_routed_experts": 32, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2}
    | {"first_k_dense_replace": 1, "n_shared_experts": 2, "routed_scaling_factor": 1.5, "norm_topk_prob": False}
    | {"kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "v_head_dim": 6, "qk_nope_head_dim": 8}
    | {"num_key_value_heads": 4, "attention_bias": True, "head_dim": 4},
    "gemma3_text": _LLAMA
    | {"num_hidden_layers": 4, "sliding_window": 5, "sliding_window_pattern": 2, "query_pre_attn_scalar": 20}
    | {"rope_local_base_freq": 20.0, "attention_bias": True, "hidden_activation": "gelu"},
    "gpt2": {"vocab_size": 61, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40}
    | {"activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "gpt_neo": {"vocab_size": 61, "max_position_embeddings": 40, "hidden_size": 32, "num_layers": 3, "num_heads": 4}
    | {"attention_types": [[["local"], 2], [["global"], 1]], "window_size": 5, "intermediate_size": 40}
    | {"attention_layers": ["local", "local", "global"], "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "falcon": _DECODER
    | {"new_decoder_architecture": True, "num_kv_heads": 2, "ffn_hidden_size": 40, "activation": "relu", "bias": True}
    | {"num_ln_in_parallel_attn": 1, "rope_theta": 70.0, "layer_norm_epsilon": 1e-2},
    "bert": _DECODER
    | {"intermediate_size": 24, "hidden_act": "relu", "max_position_embeddings": 40, "type_vocab_size": 3}
    | {"layer_norm_eps": 1e-2, "architectures": ["BertForMaskedLM"]},
    "xlnet": {"vocab_size": 61, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 24, "d_head": 8}
    | {"ff_activation": "relu", "clamp_len": 4, "layer_norm_eps": 1e-2, "architectures": ["XLNetLMHeadModel"]},
    "t5": {"vocab_size": 61, "d_model": 32, "d_kv": 12, "d_ff": 24, "num_layers": 2, "num_decoder_layers": 3}
    | {"num_heads": 4, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-2}
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10},
    "switch_transformers": {"vocab_size": 61, "d_model": 32, "d_kv": 12, "d_ff": 24, "num_layers": 4, "num_heads": 4}
    | {"num_decoder_layers": 2, "num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1, "num_experts": 5}
    | {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 10, "layer_norm_epsilon": 1e-2}
    | {"dense_act_fn": "gelu", "encoder_sparse_step": 2, "decoder_sparse_step": 1},
}
_CLASSES = {"bert": "BertForMaskedLM", "t5": "T5ForConditionalGeneration", "xlnet": "XLNetLMHeadModel"}
_CLASSES |= {"switch_transformers": "SwitchTransformersForConditionalGeneration"}
_READ = {family.model_type: family for of_config in FAMILIES.values() for family in of_config if family.defaults}
# What config.json of the first DeepSeek-MoE leaves out is told by code that transformers has not.
assert set(TINY) == set(_READ) - {"deepseek"}

# What transformers computes where these are null moekit has not.
NOT_READ = {("deepseek_v3", "rope_interleave"), ("t5", "scale_decoder_outputs")}
# A class that does not like its settings says so in its own way.
_REFUSALS = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_REFUSALS += (StrictDataclassError,)

_TOKENS_BT = torch.randint(0, 61, (2, 24), generator=torch.Generator().manual_seed(0))
Made = Callable[[str, Mapping[str, Any]], Path]


def settings_of(model_type: str) -> dict[str, Any]:
    """Every key of the family with a value, as far as a value there can be."""
    family = _READ[model_type]
    known = {key: value for key, value in family.defaults.items() if value is not None}
    return known | {"model_type": model_type, "architectures": [family.architecture]} | TINY[model_type]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Gives a folder of a family with other settings beside the same weights."""
    folders: dict[str, Path] = {}

    def make(model_type: str, settings: Mapping[str, Any]) -> Path:
        if model_type not in folders:
            torch.manual_seed(1)
            folder = tmp_path_factory.mktemp(model_type)
            config = transformers.AutoConfig.for_model(**settings_of(model_type))
            mean = 0.0 if model_type == "gemma3_text" else 0.5
            folders[model_type] = save_theirs(build_empty(config, model_type), folder, mean_of_vectors=mean)
        folder = tmp_path_factory.mktemp(model_type)
        os.link(folders[model_type] / "model.safetensors", folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return make


def class_of(model_type: str) -> Any:
    return getattr(transformers, _CLASSES.get(model_type, "AutoModelForCausalLM"), None)


def build_empty(config: Any, model_type: str) -> Any:
    found = class_of(model_type)
    return found.from_config(config) if hasattr(found, "from_config") else found(config)


def their_logits(folder: Path, model_type: str) -> tuple[Tensor, Any] | str:
    """The logits and the configuration, or why there are none."""
    try:
        model, info = class_of(model_type).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
        if wrong := [name for names in info.values() for name in names]:
            return str(wrong)
        with torch.no_grad():
            return run_theirs(model.eval(), model_type), model.config
    except _REFUSALS as error:
        return f"{type(error).__name__}: {error}"


def run_theirs(model: Any, model_type: str) -> Tensor:
    more = {"decoder_input_ids": _TOKENS_BT.flip(1)} if model.config.is_encoder_decoder else {}
    logits: Tensor = model(_TOKENS_BT, **more).logits
    return logits


def our_logits(folder: Path) -> tuple[Tensor, Any] | str:
    try:
        model = load(folder)
        assert isinstance(model, torch.nn.Module)
        with torch.no_grad():
            if model.config.kind == "encoder_decoder":
                return model(_TOKENS_BT, _TOKENS_BT.flip(1)), model.config
            found = model(_TOKENS_BT)
    except MoekitError as error:
        return str(error)
    logits = getattr(found, "logits_BTV", getattr(found, "logits", found))
    return logits, model.config


def windows_of(theirs: Any) -> list[int | None]:
    """The windows that their layers have, which few tokens do not show where they are wide."""
    layers = theirs.num_hidden_layers
    if theirs.model_type in ("mistral", "mixtral", "qwen3_moe"):
        return [theirs.sliding_window] * layers
    kinds = getattr(theirs, "layer_types", None)
    return [theirs.sliding_window if kind == "sliding_attention" else None for kind in kinds] if kinds else []


def check_same(folder: Path, model_type: str, key: str) -> None:
    theirs, ours = their_logits(folder, model_type), our_logits(folder)
    if isinstance(theirs, str):
        assert isinstance(ours, str), f"transformers refuses: {theirs}"
        assert key in ours, f"transformers refuses: {theirs}"
        return
    assert not isinstance(ours, str), ours
    (expected, their_config), (got, our_config) = theirs, ours
    assert (got - expected).abs().max() <= 1e-4 * expected.std()
    if hasattr(our_config, "layers") and (wanted := windows_of(their_config)):
        assert [layer.attention.window for layer in our_config.layers] == wanted


@pytest.mark.parametrize("model_type", TINY)
def test_the_settings_of_this_test_are_the_model(model_type: str, made: Made) -> None:
    folder = made(model_type, settings_of(model_type))
    assert not isinstance(theirs := their_logits(folder, model_type), str), theirs
    check_same(folder, model_type, "")


KEYS = [(model_type, key) for model_type, family in _READ.items() if model_type in TINY for key in family.defaults]


@pytest.mark.parametrize(("model_type", "key"), KEYS)
def test_a_key_that_is_missing(model_type: str, key: str, made: Made) -> None:
    settings = settings_of(model_type)
    if settings.pop(key, None) is not None:
        check_same(made(model_type, settings), model_type, key)


@pytest.mark.parametrize(("model_type", "key"), KEYS)
def test_a_key_that_is_null(model_type: str, key: str, made: Made) -> None:
    folder = made(model_type, settings_of(model_type) | {key: None})
    if (model_type, key) in NOT_READ or isinstance(their_logits(folder, model_type), str):
        assert key in _READ[model_type].nulls or key in str(our_logits(folder))
    else:
        check_same(folder, model_type, key)
