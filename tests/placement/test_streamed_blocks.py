"""Attention and ffns that stay on disk change no bit of an answer, whatever else does and however small the ring."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests.families.test_gguf import file_of, folder_of
from tests.placement.streamed_runner import CHANGES, SHAPE, answers, check_same, streamed
from tests.test_every_verb import split_gguf

from moekit.core.errors import MoekitError
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.placement.model_memory import model_memory


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files of dense models: in several types, with biases, with norms after blocks; and a mixture."""
    torch.manual_seed(0)
    llama = transformers.LlamaConfig(**SHAPE, intermediate_size=96)
    qwen = transformers.Qwen2Config(**SHAPE, intermediate_size=96)
    gemma = transformers.Gemma3TextConfig(
        **SHAPE, intermediate_size=96, head_dim=16, query_pre_attn_scalar=16, sliding_window=32
    )
    mixtral = transformers.MixtralConfig(**SHAPE, intermediate_size=96, num_local_experts=6, num_experts_per_tok=2)
    made = {}
    for name, config, kind in (
        ("llama", llama, "q8_0"), ("fp32", llama, "f32"), ("qwen2", qwen, "q4_0"), ("gemma3", gemma, "bf16"),
        ("mixtral", mixtral, "q8_0"),
    ):  # fmt: skip
        _, folder = folder_of(config, tmp_path_factory.mktemp(name) / "model")
        made[name] = file_of(folder, kind)
    return made


@pytest.mark.parametrize("name", ["llama", "fp32", "qwen2", "gemma3"])
@pytest.mark.parametrize("kept", [set(), {0, 1}, {1, 4}, {0, 1, 2, 3, 4}])
def test_no_bit_changes(name: str, kept: set[int], files: dict[str, Path]) -> None:
    stored = GGUFModel(files[name])
    assert [(block.spans.layer, block.spans.kind) for block in model_memory(stored).blocks] == [
        (layer, kind) for layer in range(3) for kind in ("attention", "ffn")
    ]
    whole = NativeRunner(stored.config, stored.weights())
    for batch in (1, 8):
        expected = answers(whole, batch)
        for ring in (1, 1.5, 2, 3):
            runner = streamed(files[name], kept=kept, ring=ring)
            check_same(answers(runner, batch), expected)
            counts = runner.streaming_counts
            assert counts.blocks is not None
            assert counts.blocks.bytes > 0
            assert counts.experts is None


def test_each_token_reads_what_is_on_disk_once(files: dict[str, Path]) -> None:
    runner = streamed(files["llama"], kept={0, 1})
    on_disk = sum(block.bytes for block in model_memory(GGUFModel(files["llama"])).blocks[2:])
    cache = runner.new_cache()
    read = []
    for token in range(12):
        runner.decode([cache], [token])
        counts = runner.streaming_counts.blocks
        assert counts is not None
        read.append(counts.bytes)
    # What is ahead of the token is not more than all of it.
    assert 11 * on_disk <= read[-1] <= 13 * on_disk


@pytest.mark.parametrize("places", [0, 3, 6])
def test_experts_and_attention_of_a_mixture(places: int, files: dict[str, Path]) -> None:
    stored = GGUFModel(files["mixtral"])
    expected = answers(NativeRunner(stored.config, stored.weights()), 3)
    runner = streamed(files["mixtral"], places=places, kept={1}, prefetch="on")
    check_same(answers(runner, 3), expected)
    counts = runner.streaming_counts
    assert counts.experts is not None
    assert counts.experts.misses > 0
    assert counts.blocks is not None
    assert counts.blocks.bytes > 0


def test_files_of_a_split_model(files: dict[str, Path], tmp_path: Path) -> None:
    path = Path(shutil.copy(files["fp32"], tmp_path / "model.gguf"))
    stored = GGUFModel(path)
    expected = answers(NativeRunner(stored.config, stored.weights()), 1)
    check_same(answers(streamed(split_gguf(path), kept={2}), 1), expected)


@pytest.mark.parametrize(("change", "why"), CHANGES)
def test_a_file_that_changes_under_the_ring_is_one_sentence(
    change: Callable[[Path], None], why: str, files: dict[str, Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(files["llama"], tmp_path / "model.gguf"))
    runner = streamed(path, kept=set())
    cache = runner.new_cache()
    runner.prefill(cache, [5, 6, 7])
    change(path)
    for _ in range(2):  # and no block of zeros is left in the ring
        with pytest.raises(MoekitError, match=why) as raised:
            runner.prefill(cache, list(range(90)))
        assert str(path) in str(raised.value)
    assert cache.length == 3


@pytest.mark.parametrize("on_disk", [{"kept": set[int]()}, {"places": 1, "prefetch": "on"}])
def test_a_forked_child_is_told_and_does_not_hang(on_disk: dict[str, Any], files: dict[str, Path]) -> None:
    """With reads under way that nobody ends there; the parent goes on."""
    runner = streamed(files["mixtral"], **on_disk)
    cache = runner.new_cache()
    expected = runner.prefill(cache, [5, 6, 7])
    reading, writing = os.pipe()
    if not (child := os.fork()):
        signal.alarm(20)
        said = "computed"
        try:
            runner.decode([cache], [8])
        except MoekitError as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        assert "a forked process does not have" in told.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    cache.truncate(0)
    assert runner.prefill(cache, [5, 6, 7]).tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_scores_through_a_ring(name: str, files: dict[str, Path]) -> None:
    stored = GGUFModel(files[name])
    whole, ids = NativeRunner(stored.config, stored.weights()), [token % 96 for token in range(0, 1800, 3)]
    within = streamed(files[name], kept={2}, ring=1.5)
    got, expected = (runner._decoder.score(runner.new_cache(), ids[:-1], ids[1:]) for runner in (within, whole))
    assert got.tobytes() == expected.tobytes()
