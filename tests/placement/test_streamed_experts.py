"""Experts that stay on disk change no bit of an answer, whatever stays in memory."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import transformers
from tests.families.test_gguf import changed, file_of, folder_of, single_experts
from tests.placement.streamed_runner import CHANGES, SHAPE, answers, check_same, streamed
from tests.test_every_verb import split_gguf

from moekit.core.errors import MoekitError
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native.expert_streaming import PolicyName

EXPERTS, LAYERS = 6, SHAPE["num_hidden_layers"]
POLICIES: tuple[PolicyName, ...] = ("lru", "lfu", "lfru", "static")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of mixtures: of one type, of several, with a shared expert, and with an expert a tensor."""
    torch.manual_seed(0)
    mixtral = transformers.MixtralConfig(
        **SHAPE, intermediate_size=96, num_local_experts=EXPERTS, num_experts_per_tok=2
    )
    qwen = transformers.Qwen2MoeConfig(
        **SHAPE, intermediate_size=96, moe_intermediate_size=32, shared_expert_intermediate_size=64,
        num_experts=EXPERTS, num_experts_per_tok=3,
    )  # fmt: skip
    made = {}
    for name, config, kind in (("mixtral", mixtral, "q8_0"), ("fp32", mixtral, "f32"), ("qwen2_moe", qwen, "q4_0")):
        _, folder = folder_of(config, tmp_path_factory.mktemp(name) / "model")
        made[name] = file_of(folder, kind)
    made["single experts"] = changed(made["fp32"], single_experts)
    return made


@pytest.mark.parametrize("name", ["mixtral", "fp32", "qwen2_moe", "single experts"])
@pytest.mark.parametrize("places", [0, 1, 2, 4, EXPERTS])
def test_no_bit_changes(name: str, places: int, files: dict[str, Path]) -> None:
    stored = GGUFModel(files[name])
    whole = NativeRunner(stored.config, stored.weights())
    for batch in (1, 8):
        expected = answers(whole, batch)
        # Each policy with reading ahead and without, over the numbers of places.
        for policy, prefetch in zip(POLICIES, ("off", "on") * 2 if places % 2 else ("on", "off") * 2, strict=True):
            runner = streamed(files[name], places=places, policy=policy, prefetch=prefetch, passing=1 + places % 3)
            check_same(answers(runner, batch), expected)
            counts = runner.streaming_counts.experts
            assert counts is not None
            assert counts.hits + counts.misses > 0
            assert counts.misses > LAYERS or places == EXPERTS


def test_reading_ahead_is_tried_and_changes_no_bit(files: dict[str, Path]) -> None:
    """Long enough for a whole trial, after which one of the two ways is kept."""
    stored = GGUFModel(files["mixtral"])
    runner = streamed(files["mixtral"], places=3, prefetch="measured")
    check_same(answers(runner, 1, steps=80), answers(NativeRunner(stored.config, stored.weights()), 1, steps=80))
    counts = runner.streaming_counts.experts
    assert counts is not None
    assert 0 < counts.foreseen_used <= counts.foreseen


def test_several_callers_take_turns(files: dict[str, Path]) -> None:
    stored = GGUFModel(files["mixtral"])
    runner = streamed(files["mixtral"], places=2)
    expected = answers(NativeRunner(stored.config, stored.weights()), 2)
    with ThreadPoolExecutor(3) as callers:
        for got in callers.map(lambda _: answers(runner, 2), range(3)):
            check_same(got, expected)


def test_files_of_a_split_model(files: dict[str, Path], tmp_path: Path) -> None:
    """Experts lie in several files; a tensor says in which."""
    path = Path(shutil.copy(files["fp32"], tmp_path / "model.gguf"))
    stored = GGUFModel(path)
    expected = answers(NativeRunner(stored.config, stored.weights()), 1)
    check_same(answers(streamed(split_gguf(path), places=2), 1), expected)


# An expert is used by the weights that the file has, not by those of the file that took its name.
def test_a_file_that_is_replaced_while_it_is_open_changes_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(files["mixtral"], tmp_path / "model.gguf"))
    runner = streamed(path, places=1)
    other = Path(shutil.copy(files["fp32"], tmp_path / "other.gguf"))
    other.replace(path)
    stored = GGUFModel(files["mixtral"])
    check_same(answers(runner, 1), answers(NativeRunner(stored.config, stored.weights()), 1))


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_a_file_that_changes_under_the_store_is_one_sentence(
    change: Callable[[Path], None], why: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(files["mixtral"], tmp_path / "model.gguf"))
    runner = streamed(path, places=1)
    cache = runner.new_cache()
    runner.prefill(cache, [5, 6, 7])
    change(path)
    for _ in range(2):  # and no expert of zeros is left in memory
        with pytest.raises(MoekitError, match=why) as raised:
            runner.prefill(cache, list(range(90)))
        assert str(path) in str(raised.value)
    assert cache.length == 3
