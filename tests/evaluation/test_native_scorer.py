"""A GGUF file is scored by what generates from it: the same probabilities, whatever stays on disk."""

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tests.families.test_gguf import file_of, folder_of
from tests.placement.streamed_runner import SHAPE
from tests.placement.test_budget import MIXTURE, random_model

import moekit
from moekit.core.errors import UsageError
from moekit.families.gguf import GGUFModel
from moekit.kernels.native.decoder import NativeDecoder
from moekit.placement import MemoryOptions, PlacedModel

MOEKIT = str(Path(sys.executable).with_name("moekit"))
SCORED = SHAPE | {"vocab_size": 300, "intermediate_size": 96}


@pytest.fixture(scope="module")
def fp32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**SCORED, num_local_experts=4, num_experts_per_tok=2)
    _, folder = folder_of(config, tmp_path_factory.mktemp("fp32") / "model")
    return file_of(folder, "f32")


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model(MIXTURE, tmp_path_factory.mktemp("scored") / "mixture.gguf")


def test_scores_are_those_of_the_logits_of_decoding(fp32: Path) -> None:
    """Over several chunks of a prompt, and several readings of the head within each."""
    stored = GGUFModel(fp32)
    decoder = NativeDecoder(stored.config, stored.weights())
    ids = np.random.default_rng(0).integers(0, 300, 600).tolist()
    scored = decoder.new_cache()
    got = np.concatenate([decoder.score(scored, ids[:30], ids[1:31]), decoder.score(scored, ids[30:-1], ids[31:])])
    cache, expected = decoder.new_cache(), []
    for token, target in pairwise(ids):
        logits_V = decoder.decode([cache], [token])[0].astype(np.float64)
        expected.append(logits_V[target] - np.log(np.exp(logits_V - logits_V.max()).sum()) - logits_V.max())
    assert scored.length == 599
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_what_is_no_target_changes_nothing(fp32: Path) -> None:
    stored = GGUFModel(fp32)
    decoder = NativeDecoder(stored.config, stored.weights())
    cache = decoder.new_cache()
    for tokens, targets in (([1, 2], [3, 300]), ([1, 2], [-1, 3]), ([300], [1])):
        with pytest.raises(IndexError):
            decoder.score(cache, tokens, targets)
    for tokens, targets in (([1, 2], [3]), ([], []), (list(range(300)) * 3, [1] * 900)):
        with pytest.raises(ValueError, match=r"targets|a token or more|do not fit"):
            decoder.score(cache, tokens, targets)
    assert cache.length == 0


def test_evaluate_gives_what_torch_gives(mixture: Path, tmp_path: Path) -> None:
    """Against the same file unpacked and computed by torch: what differs is activations in 8 bits."""
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 40)
    ours = moekit.evaluate(mixture, [text])
    theirs = moekit.evaluate(moekit.load(mixture), [text])
    assert (ours.tokens, ours.bytes) == (theirs.tokens, theirs.bytes)
    assert ours.bits_per_byte == pytest.approx(theirs.bits_per_byte, rel=5e-3)


def test_the_same_figure_within_a_budget(mixture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("It is a truth universally acknowledged. " * 60)
    command = [MOEKIT, "evaluate", str(mixture), "--data", str(text), "--json"]
    environment = os.environ | {"COLUMNS": "200"}
    whole = subprocess.run(command, capture_output=True, text=True, env=environment)
    refused = subprocess.run([*command, "--memory", "10MB"], capture_output=True, text=True, env=environment)
    assert refused.returncode == 2
    megabytes = int(refused.stderr.split("give --memory ")[1].split("MB")[0]) + 10
    within = subprocess.run([*command, "--memory", f"{megabytes}MB"], capture_output=True, text=True, env=environment)
    assert within.returncode == 0, within.stderr
    assert "experts on disk" in within.stderr
    assert json.loads(within.stdout) == json.loads(whole.stdout)


def test_what_torch_computes_has_no_budget(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**SCORED)
    _, folder = folder_of(config, tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("Some text.")
    with pytest.raises(UsageError, match="leave --memory out"):
        moekit.evaluate(folder, [text], memory=10**9)


def test_a_longer_context_than_the_model_has_is_refused(mixture: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some text.")
    with pytest.raises(UsageError, match="--context 513 is more"):
        moekit.evaluate(mixture, [text], context=513)
    seen: list[PlacedModel] = []
    moekit.evaluate(mixture, [text], memory=MemoryOptions(budget=4 * 10**9, on_placed=seen.append))
    assert seen[0].placement.context == 512
