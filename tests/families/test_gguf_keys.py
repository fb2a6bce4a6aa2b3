"""A key that a GGUF file lacks means what llama.cpp takes it to mean: every key of every architecture in turn.

`MOEKIT_LLAMA_CPP` names the Python of an environment with llama-cpp-python, where its logits are to be compared, too.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tests.families.test_gguf import MODELS, changed, file_of, folder_of

from moekit.config import LinearScaling, ModelConfig, YarnScaling
from moekit.core.errors import MoekitError
from moekit.families.gguf import GGUFModel
from moekit.families.gguf.key_defaults import DEFAULTS
from moekit.models.gguf import load_gguf

LLAMA_CPP = os.environ.get("MOEKIT_LLAMA_CPP")
SAMPLES = [name for name in MODELS if name not in ("llama-3", "llama-biases", "mistral")]
# It crashes on mixtures this small, of rows shorter than its blocks of 256.
DENSE = [name for name in SAMPLES if not any(part in name for part in ("moe", "mixtral"))]
_TOKENS_T = torch.randint(3, 96, (40,), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    return {name: file_of(folder_of(MODELS[name][1], tmp_path_factory.mktemp(name) / "model")[1]) for name in SAMPLES}


def keys_of(name: str, files: Mapping[str, Path]) -> list[str]:
    """The keys of a file that describe the model."""
    found = gguf.GGUFReader(files[name]).fields
    return [key for key in found if key.startswith(f"{MODELS[name][0]}.")]


def with_keys(file: Path, keys: Mapping[str, Any]) -> Path:
    """The file with other values of some keys; None takes a key away."""

    def change(metadata: dict[str, Any], _: dict[str, Any]) -> None:
        for key, value in keys.items():
            metadata.pop(key, None)
            if value is not None:
                metadata[key] = value

    return changed(file, change)


def config_of(file: Path, keys: Mapping[str, Any]) -> ModelConfig | str:
    changed_file = with_keys(file, keys)
    try:
        return GGUFModel(changed_file).config
    except MoekitError as error:
        return str(error)
    finally:
        changed_file.unlink()


# By what follows: the name of the key behind the architecture's, and of the one that it follows from.
FOLLOWS = {
    "attention.head_count_kv": lambda config: config.layers[-1].attention.heads,
    "attention.key_length": lambda config: config.width // config.layers[-1].attention.heads,
    "attention.value_length": lambda config: config.width // config.layers[-1].attention.heads,
    "rope.dimension_count": lambda config: config.layers[-1].attention.head_width,
}
# They lie in tensors as well, or in the vocabulary.
ELSEWHERE = ("expert_feed_forward_length", "expert_shared_feed_forward_length", "vocab_size")
# What only says what the architecture does anyway, unless it says another.
USUAL = {"attention.sliding_window_pattern": 6, "rope.freq_base_swa": 10_000.0}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_key_that_is_missing(name: str, files: dict[str, Path]) -> None:
    file, prefix = files[name], MODELS[name][0]
    whole = GGUFModel(file).config
    for key in keys_of(name, files):
        short, without = key.removeprefix(f"{prefix}."), config_of(file, {key: None})
        if short in ELSEWHERE or (short == "feed_forward_length" and "expert" in prefix + name):
            assert without == whole, key
        elif short in DEFAULTS or short in FOLLOWS or short in USUAL:
            value = {**DEFAULTS, **USUAL}.get(short)
            value = FOLLOWS[short](whole) if short in FOLLOWS else value
            assert plain(without) == plain(config_of(file, {key: value})), key
        elif short == "feed_forward_length" and isinstance(without, ModelConfig):
            assert without == whole  # the experts' own width counts
        else:
            assert isinstance(without, str), key
            assert f"{key} is missing" in without


def plain(config: ModelConfig | str) -> object:
    """Errors, which name files, without the files."""
    return config if isinstance(config, ModelConfig) else config.split(".gguf", 1)[-1]


ROPE: dict[str, tuple[dict[str, Any], Any]] = {
    "nothing": ({}, None),
    "factor alone": ({"scaling.factor": 4.0}, LinearScaling(factor=4)),
    "old name": ({"scale_linear": 4.0}, LinearScaling(factor=4)),
    "both": ({"scaling.factor": 2.0, "scale_linear": 4.0}, LinearScaling(factor=2)),
    "both, one none": ({"scaling.factor": 0.0, "scale_linear": 4.0}, None),
    "none with a factor": ({"scaling.type": "none", "scaling.factor": 4.0}, None),
    "linear without a factor": ({"scaling.type": "linear"}, None),
    "linear by 1": ({"scaling.type": "linear", "scaling.factor": 1.0}, None),
    "linear": ({"scaling.type": "linear", "scaling.factor": 4.0}, LinearScaling(factor=4)),
    "linear, old name": ({"scaling.type": "linear", "scale_linear": 4.0}, LinearScaling(factor=4)),
    "yarn": ({"scaling.type": "yarn", "scaling.factor": 4.0}, YarnScaling(factor=4, context=64)),
    "yarn, old name": ({"scaling.type": "yarn", "scale_linear": 4.0}, YarnScaling(factor=4, context=64)),
    "yarn, context": (
        {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.original_context_length": 16},
        YarnScaling(factor=4, context=16),
    ),
    "yarn without a factor": ({"scaling.type": "yarn"}, YarnScaling(factor=1, context=64)),
}


@pytest.mark.parametrize("form", ROPE)
def test_every_form_of_a_scaling(form: str, files: dict[str, Path]) -> None:
    keys, expected = ROPE[form]
    config = config_of(files["llama"], {f"llama.rope.{key}": value for key, value in keys.items()})
    assert isinstance(config, ModelConfig)
    assert config.layers[0].attention.rope_scaling == expected


def test_numbers_that_are_the_same_in_all_layers(files: dict[str, Path]) -> None:
    file = files["llama"]
    for key, value in (("attention.head_count", 4), ("attention.head_count_kv", 2), ("feed_forward_length", 48)):
        assert config_of(file, {f"llama.{key}": [value, value]}) == GGUFModel(file).config
        assert f"llama.{key} differs between layers" in str(config_of(file, {f"llama.{key}": [value, 1]}))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("qwen3_moe", "expert_weights_norm", False),
        ("olmoe", "expert_weights_norm", True),
        ("llama", "rope.scaling.yarn_ext_factor", 0.5),
        ("llama", "rope.scaling.attn_factor", 0.5),
        ("llama", "attention.value_length", 4),
    ],
)
def test_what_contradicts_the_architecture_is_named(name: str, key: str, value: Any, files: dict[str, Path]) -> None:
    assert key in str(config_of(files[name], {f"{MODELS[name][0]}.{key}": value}))


@pytest.mark.skipif(LLAMA_CPP is None, reason="MOEKIT_LLAMA_CPP is not set")
@pytest.mark.parametrize("name", DENSE)
def test_llama_cpp_takes_it_so(name: str, files: dict[str, Path], tmp_path: Path) -> None:
    prefix = MODELS[name][0]
    # Without tokens, as here, it needs the key for their number; we have the embedding for that.
    keys = [key for key in keys_of(name, files) if not key.endswith(".vocab_size")]
    cases: dict[str, dict[str, Any]] = {key: {key: None} for key in keys}
    if name != "gemma3-every-second":
        cases |= {form: {f"{prefix}.rope.{key}": value for key, value in ROPE[form][0].items()} for form in ROPE}
    paths = {}
    for number, (case, changes) in enumerate(cases.items()):
        paths[case] = with_keys(files[name], changes).rename(tmp_path / f"{number}.gguf")
    (tmp_path / "tokens.json").write_text(json.dumps(_TOKENS_T.tolist()))
    program = str(Path(__file__).with_name("logits_by_llama_cpp.py"))
    command = [str(LLAMA_CPP), program, str(tmp_path / "tokens.json"), *map(str, paths.values())]
    subprocess.run(command, check=True, capture_output=True)
    wrong = []
    for case, path in paths.items():
        theirs = np.load(f"{path}.npy") if Path(f"{path}.npy").exists() else None
        try:
            with torch.no_grad():
                ours = load_gguf(path)(_TOKENS_T[None])[0]
        except MoekitError as error:
            if theirs is not None:
                wrong.append(f"{case}: {error}")
            continue
        if theirs is None:
            wrong.append(f"{case}: llama.cpp refuses it")
        elif (off := float((torch.from_numpy(theirs) - ours).abs().max() / ours.std())) > 2e-2:
            wrong.append(f"{case}: {off}")
    assert not wrong
