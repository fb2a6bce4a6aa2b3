"""What a model's files say of sampling, against transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFWriter

from moekit.checkpoint.gguf import GGUFFile
from moekit.core.errors import MoekitError
from moekit.inference.model_sampling import folder_sampling, gguf_sampling

GREEDY = {"temperature": 0.0}


@pytest.mark.parametrize(
    ("told", "options"),
    [
        ({}, {}),
        ({"eos_token_id": 3, "max_length": 20}, {}),
        ({"do_sample": True}, {"temperature": 1.0, "top_k": 50}),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, {"temperature": 0.6, "top_k": 50, "top_p": 0.9}),
        ({"temperature": 0.6, "top_k": 20}, {"temperature": 0.6, "top_k": 20}),
        ({"do_sample": True, "top_k": 0, "min_p": 0.1}, {"temperature": 1.0, "top_k": 0, "min_p": 0.1}),
        ({"do_sample": True, "top_k": -1}, {"temperature": 1.0, "top_k": 0}),
        ({"do_sample": None, "temperature": None, "top_k": None}, {}),
        ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.1}, GREEDY | {"repetition_penalty": 1.1}),
    ],
)
def test_generation_config_is_read_as_transformers_reads_it(
    tmp_path: Path, told: dict[str, Any], options: dict[str, float]
) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    found = folder_sampling(tmp_path)
    assert (found.options, found.left_out) == (options, ())
    if told.get("do_sample"):
        from transformers import GenerationConfig

        theirs = GenerationConfig.from_pretrained(tmp_path)
        missing = GenerationConfig._get_default_generation_params()
        for name, value in options.items():
            stated = getattr(theirs, name)
            assert max(missing.get(name, value) if stated is None else stated, 0) == value


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"top_p": 5}, "generation_config.json: top_p must be more than 0 and at most 1, not 5. It is left out."),
        ({"top_k": "20"}, "generation_config.json: top_k must be a number, not '20'. It is left out."),
        ({"top_k": True}, "generation_config.json: top_k must be a number, not 'True'. It is left out."),
        (
            {"num_beams": 4, "typical_p": 0.9},
            "generation_config.json asks for num_beams, typical_p, which moekit does not have and leaves out.",
        ),
        ({"no_repeat_ngram_size": 0, "num_beams": 1, "typical_p": 1.0, "bad_words_ids": None}, None),
    ],
)
def test_what_is_left_out_is_told(tmp_path: Path, told: dict[str, Any], said: str | None) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(told))
    found = folder_sampling(tmp_path)
    assert found.left_out == (() if said is None else (said,))
    assert found.options == {}


def test_no_file_says_nothing_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert folder_sampling(tmp_path).options == {}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(MoekitError, match=r"generation_config\.json is not valid JSON"):
        folder_sampling(tmp_path)


def test_gguf_files_say_it_by_llama_cpps_names(tmp_path: Path) -> None:
    writer = GGUFWriter(str(tmp_path / "model.gguf"), "llama")
    writer.add_float32("general.sampling.temp", 0.5)
    writer.add_int32("general.sampling.top_k", 20)
    writer.add_float32("general.sampling.penalty_repeat", 1.25)
    writer.add_int32("general.sampling.mirostat", 2)
    writer.add_tensor("a", np.zeros(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf_sampling(GGUFFile(tmp_path / "model.gguf").metadata)
    assert found.options == {"temperature": 0.5, "top_k": 20, "repetition_penalty": 1.25}
    assert found.left_out == ("general.sampling asks for mirostat, which moekit does not have and leaves out.",)
