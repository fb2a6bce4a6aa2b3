"""Counting in bounded memory: the same counts, and nothing left on the disk."""

import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moekit.models.ngram import NGram
from moekit.models.ngram.ngram_counts import LEAST_MEMORY, Packing, count_ngrams
from moekit.models.ngram.sorting import ExternalSorter, sorted_run
from moekit.models.ngram.vocabulary import stream_of_sentences

MiB = 1 << 20


def random_stream(tokens: int, ids: int, seed: int = 0) -> Iterator[np.ndarray]:
    source = np.random.default_rng(seed)
    for _ in range(tokens // 5000):
        yield source.integers(2, ids, 5000).astype(np.uint32)


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("memory", [1 << 14, 1 << 17, 1 << 26])
def test_sorts_like_numpy(tmp_path: Path, columns: int, memory: int) -> None:
    source = np.random.default_rng(columns)
    keys = source.integers(0, [1 << 63, 40, 7][:columns], (20_000, columns)).astype(np.uint64)
    keys[:, 0] = keys[:, 0] % 5000 << np.uint64(51)
    with ExternalSorter(columns, memory, tmp_path) as sorter:
        for start in range(0, len(keys), sorter.chunk_keys):
            sorter.add([np.ascontiguousarray(column) for column in keys[start : start + sorter.chunk_keys].T])
        blocks = list(sorter.blocks())
        assert not os.listdir(tmp_path)
    expected, counts = np.unique(keys, axis=0, return_counts=True)
    found = np.concatenate([np.stack(block.columns, axis=1) for block in blocks])
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(np.concatenate([block.counts for block in blocks]), counts)
    # so little memory needs several passes: more runs than are merged at once
    assert sorter.spills > 100 if memory == 1 << 14 else sorter.spills > 0 or memory == 1 << 26


def test_nothing_is_a_run_too() -> None:
    assert len(sorted_run([np.zeros(0, dtype=np.uint64)])) == 0


@pytest.mark.parametrize(("order", "ids"), [(1, 300), (3, 259), (5, 5000), (6, 1 << 20), (8, 1 << 31)])
def test_packing_keeps_words_and_their_order(order: int, ids: int) -> None:
    packing = Packing.of(order, ids)
    words = np.random.default_rng(0).integers(2, ids, 1000).astype(np.uint32)
    keys = packing.pack(words)
    unpacked = packing.unpack(keys)
    for back, found in enumerate(unpacked):
        np.testing.assert_array_equal(found, words[order - 1 - back : len(words) - back])
    np.testing.assert_array_equal(np.lexsort(keys[::-1]), np.lexsort(unpacked[::-1]))


@pytest.mark.parametrize("order", [2, 5])
def test_little_memory_gives_the_same_model(tmp_path: Path, order: int) -> None:
    source = np.random.default_rng(0)
    lengths = [*source.integers(0, 30, 2500), 9000]
    given = [source.zipf(1.3, length) % 700 for length in lengths]
    plenty, little = (
        NGram.train(given, 700, order=order, memory_bytes=memory, folder=tmp_path) for memory in (1 << 28, LEAST_MEMORY)
    )
    for ours, theirs in zip(little.tables.levels, plenty.tables.levels, strict=True):
        np.testing.assert_array_equal(ours.keys, theirs.keys)
    for numbers in ("log10_probs", "log10_backoffs"):
        for ours, theirs in zip(getattr(little.tables, numbers), getattr(plenty.tables, numbers), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("ids", "columns"), [(1 << 12, 1), (1 << 24, 2)])
def test_memory_is_bounded(tmp_path: Path, ids: int, columns: int) -> None:
    # 600,000 trigrams, nearly all of them distinct: 9.6 or 14.4 MB of keys and counts
    packing = Packing.of(3, ids)
    assert packing.columns == columns

    def peak(memory: int) -> int:
        tracemalloc.start()
        rows = sum(
            len(run) for run in count_ngrams(random_stream(600_000, ids), packing, memory_bytes=memory, folder=tmp_path)
        )
        assert rows > 590_000
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(2 * MiB) < 3 * MiB
    assert peak(256 * MiB) > 9 * MiB


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        for number in range(300):
            yield np.random.default_rng(number).integers(0, 1000, 1000)
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        NGram.train(broken(), 1000, order=3, memory_bytes=LEAST_MEMORY, folder=tmp_path / "new")
    assert not os.listdir(tmp_path / "new")


KILLED = """
import sys
from itertools import count
from pathlib import Path
import numpy as np
from moekit.models.ngram import NGram

def sentences():
    for number in count():
        if number == 200:
            print("counting", flush=True)
        yield np.random.default_rng(number).integers(0, 1000, 1000)

NGram.train(sentences(), 1000, order=3, memory_bytes=1 << 16, folder=Path(sys.argv[1]))
"""


def test_a_kill_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "counting\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not os.listdir(tmp_path)


def test_sentences_of_any_kind_make_one_stream() -> None:
    given = [np.array([3, 0], dtype=np.int8), [], [2], np.arange(200_000) % 5]
    whole = np.concatenate(list(stream_of_sentences(given, 5)))
    expected = [6, 3, 2, 2, 5, 2, *(np.arange(200_000) % 5 + 3), 2]
    np.testing.assert_array_equal(whole, expected)
