"""The words in which config.json says the same: names of keys, and rope as versions 4 and 5 of transformers write it.

Each is read by transformers, too, and has to be the same model to both, or refused by both.
"""

from typing import Any

import pytest
from tests.families.test_missing_keys import Made, check_same, settings_of, their_logits
from tests.families.test_missing_keys import made as made

from moekit.core.errors import MoekitError
from moekit.families.catalogue import FAMILIES
from moekit.models import load

_READ = {family.model_type: family for of_config in FAMILIES.values() for family in of_config if family.defaults}
# Two classes of transformers have no such name for the key; moekit reads it as it does in the others.
ALIASES = [
    (family.model_type, alias)
    for family in _READ.values()
    for alias in family.aliases
    if family.model_type != "qwen2_moe" and alias != "num_mtp_layers"
]


@pytest.mark.parametrize(("model_type", "alias"), ALIASES)
def test_another_name_of_a_key(model_type: str, alias: str, made: Made) -> None:
    settings = settings_of(model_type)
    key = _READ[model_type].aliases[alias]
    both = made(model_type, settings | {alias: settings[key], key: 7})
    if not isinstance(their_logits(both, model_type), str):  # some work out other settings before they look at it
        check_same(both, model_type, key)
    alone = {name: value for name, value in settings.items() if name != key} | {alias: settings[key]}
    check_same(made(model_type, alone), model_type, key)


_LINEAR: dict[str, Any] = {"factor": 4.0}
_LLAMA_3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
_YARN = {"factor": 4.0, "original_max_position_embeddings": 8}
_BESIDE = {"original_max_position_embeddings": 10}
ROPE: dict[str, dict[str, Any]] = {
    "older, no scaling": {"rope_theta": 50.0, "rope_scaling": None},
    "older, linear by type": {"rope_theta": 50.0, "rope_scaling": _LINEAR | {"type": "linear"}},
    "older, linear": {"rope_theta": 50.0, "rope_scaling": _LINEAR | {"rope_type": "linear"}},
    "older, both names": {"rope_scaling": _LINEAR | {"rope_type": "linear", "type": "yarn"}},
    "older, without a type": {"rope_theta": 50.0, "rope_scaling": _LINEAR},
    "older, linear by 1": {"rope_theta": 50.0, "rope_scaling": {"rope_type": "linear", "factor": 1.0}},
    "older, llama 3": {"rope_theta": 50.0, "rope_scaling": _LLAMA_3 | {"rope_type": "llama3"}},
    "older, yarn": {"rope_theta": 50.0, "rope_scaling": _YARN | {"rope_type": "yarn"}},
    "older, yarn by type": {"rope_theta": 50.0, "rope_scaling": _YARN | {"type": "yarn"}},
    "older, base in both": {"rope_theta": 50.0, "rope_scaling": _YARN | {"type": "yarn", "rope_theta": 900.0}},
    "older, default": {"rope_theta": 50.0, "rope_scaling": {"rope_type": "default"}},
    "newer": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
    "newer, base alone": {"rope_parameters": {"rope_theta": 50.0}},
    "newer, base beside": {"rope_theta": 50.0, "rope_parameters": {"rope_type": "default"}},
    "newer, no base": {"rope_parameters": {"rope_type": "default"}},
    "newer, empty": {"rope_parameters": {}, "rope_theta": 50.0},
    "newer, linear": {"rope_parameters": _LINEAR | {"rope_type": "linear", "rope_theta": 50.0}},
    "newer, llama 3": {"rope_parameters": _LLAMA_3 | {"rope_type": "llama3", "rope_theta": 50.0}},
    "newer, yarn": {"rope_parameters": _YARN | {"rope_type": "yarn", "rope_theta": 50.0}},
    "both, the older says it": {
        "rope_scaling": _LINEAR | {"rope_type": "linear"},
        "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        "rope_theta": 90.0,
    },
    "both, the older is null": {
        "rope_scaling": None,
        "rope_parameters": _LINEAR | {"rope_type": "linear", "rope_theta": 50.0},
        "rope_theta": 90.0,
    },
    "both, the older is empty": {
        "rope_scaling": {},
        "rope_parameters": _LINEAR | {"rope_type": "linear", "rope_theta": 50.0},
    },
    "context beside llama 3": {"rope_scaling": _LLAMA_3 | {"rope_type": "llama3"}, "rope_theta": 50.0, **_BESIDE},
    "context beside yarn": {"rope_scaling": _YARN | {"rope_type": "yarn"}, **_BESIDE},
    "context beside yarn alone": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}, **_BESIDE},
    "context beside, newer": {"rope_parameters": _YARN | {"rope_type": "yarn", "rope_theta": 50.0}, **_BESIDE},
    "context of yarn from the model": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "yarn, null factor": {"rope_scaling": _YARN | {"rope_type": "yarn", "factor": None}},
    "yarn, numbers": {"rope_scaling": _YARN | {"rope_type": "yarn", "beta_fast": 3.0, "beta_slow": 0.5}},
    "yarn, not whole": {"rope_scaling": _YARN | {"rope_type": "yarn", "truncate": False}},
    "yarn, null truncate": {"rope_scaling": _YARN | {"rope_type": "yarn", "truncate": None}},
    "yarn, magnitude": {"rope_scaling": _YARN | {"rope_type": "yarn", "attention_factor": 1.3}},
    "yarn, null magnitude": {"rope_scaling": _YARN | {"rope_type": "yarn", "attention_factor": None}},
    "yarn, one scale": {"rope_scaling": _YARN | {"rope_type": "yarn", "mscale": 0.7}},
    "yarn, both scales": {"rope_scaling": _YARN | {"rope_type": "yarn", "mscale": 0.7, "mscale_all_dim": 0.4}},
}
ROPE |= {
    f"{kind} without {key}": {"rope_scaling": {**{k: v for k, v in said.items() if k != key}, "rope_type": kind}}
    for kind, said in (("linear", _LINEAR), ("llama3", _LLAMA_3), ("yarn", _YARN))
    for key in said
}


@pytest.mark.parametrize("form", ROPE)
@pytest.mark.parametrize("model_type", ["llama", "mixtral", "deepseek_v3", "falcon"])
def test_rope_in_every_form(model_type: str, form: str, made: Made) -> None:
    settings = {key: value for key, value in settings_of(model_type).items() if "rope_" not in key or "inter" in key}
    check_same(made(model_type, settings | ROPE[form]), model_type, "")


FULL, WINDOW = "full_attention", "sliding_attention"
GEMMA: dict[str, dict[str, Any]] = {
    "older": {"rope_theta": 500.0, "rope_local_base_freq": 30.0},
    "older, scaled": {"rope_theta": 500.0, "rope_scaling": _LINEAR | {"rope_type": "linear"}},
    "older, null": {"rope_theta": 500.0, "rope_scaling": None},
    "newer": {"rope_parameters": {FULL: {"rope_theta": 500.0}, WINDOW: {"rope_theta": 30.0}}},
    "newer, scaled": {"rope_parameters": {FULL: _LINEAR | {"rope_type": "linear", "rope_theta": 500.0}}},
    "newer, half of it": {"rope_parameters": {WINDOW: {"rope_type": "default", "rope_theta": 30.0}}},
    "newer, bases beside": {"rope_parameters": {FULL: {"rope_type": "default"}}, "rope_theta": 500.0},
    "both": {
        "rope_parameters": {FULL: {"rope_theta": 500.0}, WINDOW: {"rope_theta": 30.0}},
        "rope_scaling": _LINEAR | {"rope_type": "linear"},
        "rope_theta": 900.0,
    },
    "flat": {"rope_parameters": _LINEAR | {"rope_type": "linear", "rope_theta": 500.0}},
}


@pytest.mark.parametrize("form", GEMMA)
def test_the_two_ropes_of_gemma_3(form: str, made: Made) -> None:
    settings = {key: value for key, value in settings_of("gemma3_text").items() if "rope_" not in key}
    check_same(made("gemma3_text", settings | GEMMA[form]), "gemma3_text", "")


WINDOWS: dict[str, dict[str, Any]] = {
    "types": {"layer_types": [FULL, WINDOW, FULL]},
    "types, no window": {"layer_types": [FULL] * 3, "use_sliding_window": False},
    "not used": {"use_sliding_window": False},
    "null": {"sliding_window": None},
    "none of so many layers": {"max_window_layers": 3},
    "all": {"max_window_layers": 0},
}


@pytest.mark.parametrize("form", WINDOWS)
@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "qwen2_moe"])
def test_windows_in_every_form(model_type: str, form: str, made: Made) -> None:
    if (model_type, form) != ("qwen2_moe", "null"):  # transformers falls over it
        check_same(made(model_type, settings_of(model_type) | WINDOWS[form]), model_type, "")


@pytest.mark.parametrize("kinds", [[FULL], [FULL, "linear_attention", WINDOW], "all", [WINDOW] * 3])
def test_types_of_layers_that_cannot_be(kinds: Any, made: Made) -> None:
    settings = settings_of("qwen3") | {"layer_types": kinds, "use_sliding_window": False}
    with pytest.raises(MoekitError, match="layer_types"):
        load(made("qwen3", settings))


@pytest.mark.parametrize("kinds", [[FULL, WINDOW, FULL], [FULL] * 3, None])
def test_a_mistral_with_types_of_layers_is_a_ministral(kinds: list[str] | None, made: Made) -> None:
    check_same(made("mistral", settings_of("mistral") | {"layer_types": kinds}), "mistral", "")


GELUS = ["gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_accurate", "gelu_fast"]


@pytest.mark.parametrize("name", [*GELUS, "swish"])
def test_names_of_activations(name: str, made: Made) -> None:
    check_same(made("llama", settings_of("llama") | {"hidden_act": name}), "llama", "")
