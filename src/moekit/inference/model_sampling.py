"""How a model's makers want it sampled: generation_config.json of a folder, `general.sampling` of a GGUF file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moekit.checkpoint.gguf import Metadata
from moekit.core.errors import UsageError
from moekit.data.tokenizer_files import read_object
from moekit.inference.sampling import SamplingOptions

_GENERATION_CONFIG = "generation_config.json"
# What transformers takes for a key that is missing (GenerationConfig of transformers 4.57 and 5) while it samples.
_MISSING = {"temperature": 1.0, "top_k": 50}
_OURS: Mapping[str, type] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
}
# What changes the answer and is not here, with the value that asks for nothing.
_FOREIGN: Mapping[str, Any] = {
    "bad_words_ids": None,
    "begin_suppress_tokens": None,
    "encoder_repetition_penalty": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "exponential_decay_length_penalty": None,
    "min_new_tokens": None,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "penalty_alpha": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "typical_p": 1.0,
}
# llama.cpp's names of the same, in the metadata of GGUF files; and of what is not here.
_GGUF = {"temperature": "temp", "repetition_penalty": "penalty_repeat"}
_GGUF_FOREIGN: Mapping[str, Any] = {"xtc_probability": 0.0, "mirostat": 0}


@dataclass(frozen=True)
class ModelSampling:
    """What a model's files say of sampling.

    Attributes:
        options: some of the fields of `SamplingOptions`; none where the files say nothing.
        left_out: what else they say, a sentence each.
    """

    options: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def folder_sampling(folder: Path) -> ModelSampling:
    """Read generation_config.json as transformers does: without `do_sample` or a temperature it says nothing.

    Raises:
        MoekitError: where the file is no object in JSON.
    """
    values = read_object(folder / _GENERATION_CONFIG)
    told = {name: values[name] for name in _OURS if values.get(name) is not None}
    found = _checked(told, _GENERATION_CONFIG)
    foreign = _foreign(values, _FOREIGN, _GENERATION_CONFIG)
    if values.get("do_sample") is False:
        kept = {name: value for name, value in found.options.items() if name == "repetition_penalty"}
        return ModelSampling({"temperature": 0.0} | kept, found.left_out + foreign)
    options = {**_MISSING, **found.options} if values.get("do_sample") or "temperature" in told else found.options
    return ModelSampling(options, found.left_out + foreign)


def gguf_sampling(metadata: Metadata) -> ModelSampling:
    """Read the keys `general.sampling` of a GGUF file."""
    values = {
        key.removeprefix("general.sampling."): metadata[key] for key in metadata if key.startswith("general.sampling.")
    }
    told = {name: values[key] for name in _OURS if (key := _GGUF.get(name, name)) in values}
    found = _checked(told, "general.sampling")
    return ModelSampling(found.options, found.left_out + _foreign(values, _GGUF_FOREIGN, "general.sampling"))


def _checked(told: Mapping[str, Any], where: str) -> ModelSampling:
    """Keep the values that are of the right type and within bounds."""
    options: dict[str, Any] = {}
    left_out = []
    for name, value in told.items():
        value = 0 if name == "top_k" and value == -1 else value  # vLLM's word for all
        try:
            if not isinstance(value, int | _OURS[name]) or isinstance(value, bool):
                raise UsageError(f"{name} must be a number, not {str(value)[:40]!r}.")
            SamplingOptions(**{**options, name: value})
            options[name] = value
        except UsageError as error:
            left_out.append(f"{where}: {error} It is left out.")
    return ModelSampling(options, tuple(left_out))


def _foreign(values: Mapping[str, Any], foreign: Mapping[str, Any], where: str) -> tuple[str, ...]:
    asked = [key for key, nothing in foreign.items() if values.get(key) not in (nothing, None)]
    return (f"{where} asks for {', '.join(asked)}, which moekit does not have and leaves out.",) if asked else ()
