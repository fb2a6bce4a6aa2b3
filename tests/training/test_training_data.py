"""What a training reads: pairs as users have them, and the same text again where it goes on."""

import gzip
import json
import logging
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import moekit
from moekit.config import GRUSeq2SeqConfig, LSTMConfig
from moekit.core.errors import UsageError
from moekit.data.text_pairs import read_pairs
from moekit.data.tokenizers import ByteTokenizer
from moekit.training import Interrupted, Schedule, TrainingJob
from moekit.training import train_model as training

ENCODE = ByteTokenizer().encode


def rows(count: int = 20, special: str = "") -> list[dict[str, str]]:
    return [{"source": f"word {index}{special}", "target": f"{index} drow{special}"} for index in range(count)]


def lines(special: str = "") -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows(special=special))


def separated(delimiter: str, special: str) -> bytes:
    """Rows of values, all of them between quotes."""
    values = [["source", "target"], *(list(row.values()) for row in rows(special=special))]
    return "".join(delimiter.join(f'"{value}"' for value in row) + "\n" for row in values).encode()


FORMS: dict[str, Callable[[str], tuple[str, bytes]]] = {
    "JSON lines": lambda special: ("pairs.jsonl", lines(special).encode()),
    "of no name": lambda special: ("pairs", lines(special).encode()),
    "marked": lambda special: ("pairs.jsonl", b"\xef\xbb\xbf" + lines(special).encode()),
    "UTF-16": lambda special: ("pairs.jsonl", lines(special).encode("utf-16")),
    "gzip": lambda special: ("pairs.jsonl.gz", gzip.compress(lines(special).encode())),
    "zstd": lambda special: ("pairs.jsonl.zst", zstandard.compress(lines(special).encode())),
    "array": lambda special: ("pairs.json", json.dumps(rows(special=special)).encode()),
    "CSV": lambda special: ("pairs.csv", separated(",", special)),
    "TSV": lambda special: ("pairs.tsv", separated("\t", special)),
}


# What Python's str.splitlines takes for the end of a line, and more; control characters are escaped in JSON.
SPECIAL = ["", "\u2028", "\u2029", "\u0085", "é🙂"]


@pytest.mark.parametrize(
    ("form", "special"),
    [
        *((form, special) for form in FORMS for special in SPECIAL),
        *((form, "\x1d\x0b") for form in ("CSV", "TSV", "array")),
    ],
    ids=ascii,
)
def test_pairs_in_every_form(form: str, special: str, tmp_path: Path) -> None:
    name, content = FORMS[form](special)
    (tmp_path / name).write_bytes(content)
    train, held_out = read_pairs(tmp_path / name, ENCODE, 100)
    expected = [(ENCODE(row["source"]), ENCODE(row["target"])) for row in rows(special=special)]
    assert [pair for index, pair in enumerate(expected, 1) if index % 10 == 0] == held_out
    assert [pair for index, pair in enumerate(expected, 1) if index % 10] == train


def test_the_same_pair_is_on_one_side(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in (rows(15) * 3)))
    train, held_out = read_pairs(tmp_path / "pairs.jsonl", ENCODE, 100)
    assert len(train) + len(held_out) == 45
    assert not {str(pair) for pair in train} & {str(pair) for pair in held_out}


def test_pairs_that_are_left_out_are_told(tmp_path: Path) -> None:
    others = [{"source": "", "target": "x"}, {"source": "y" * 101, "target": "x"}, {"source": "z", "target": "\ud800"}]
    marked = [{"source": "\ufeffa\0b", "target": "c"}]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in [*marked, *rows(), *others]))
    told: list[str] = []
    train, _ = read_pairs(tmp_path / "pairs.jsonl", ENCODE, 100, told.append)
    assert train[0] == (ENCODE("ab"), ENCODE("c"))
    where = f"Left out of {tmp_path / 'pairs.jsonl'}: 1 pairs"
    assert told == [
        f"{where} longer than 100 tokens.",
        f"{where} with an empty side.",
        f"{where} with half of a surrogate pair, which is no character.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"source": "a"}\n', "line 1 has no column 'target'; name one of the columns there are: 'source'"),
        ("a.jsonl", b'{"source": "a", "target": 5}\n', "line 1: expected a text in 'target', got a number"),
        ("a.jsonl", b'["a", "b"]\n', "line 1: expected an object with the texts"),
        ("a.jsonl", b"{\n", "line 1: not valid JSON"),
        ("a.json", b'{"name": "x"}', "holds no rows"),
        ("a.csv", b"source,goal\na,b\n", "no column 'target'; name one of the columns there are: 'source', 'goal'"),
        ("a.csv", b"source,target\ncaf\xe9,b\n", "not in UTF-8; convert it, as with: iconv"),
        ("a.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-5], "compressed by gzip, damaged or cut"),
        ("a.jsonl", b"", "holds 0 pairs to train with"),
    ],
)
def test_pairs_that_are_wrong(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=re.escape(message)):
        read_pairs(tmp_path / name, ENCODE, 100)
    with pytest.raises(UsageError, match="Cannot read"):
        read_pairs(tmp_path / "missing.jsonl", ENCODE, 100)


def words(seed: int, count: int = 400) -> str:
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefgh", k=4)) for _ in range(count)) + "\n"


def text_job(folder: Path) -> TrainingJob:
    (folder / "data").mkdir()
    for index in range(20):
        (folder / "data" / f"{index}.txt").write_text(words(index))
    model = LSTMConfig(vocab_size=256, embedding_width=8, widths=(8,))
    return TrainingJob(model=model, data=(str(folder / "data"),), training=SCHEDULE)


def pairs_job(folder: Path) -> TrainingJob:
    (folder / "data").mkdir()
    (folder / "data" / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows(40)))
    model = GRUSeq2SeqConfig(
        source_vocab_size=257, target_vocab_size=257, embedding_width=8, width=8, alignment_width=8, maxout_width=4,
        end_token=256,
    )  # fmt: skip
    return TrainingJob(model=model, pairs=str(folder / "data" / "pairs.jsonl"), training=SCHEDULE)


SCHEDULE = Schedule(steps=6, sequences=4, context=32, checkpoint_seconds=0, measure=2)
JOBS = {"text": text_job, "pairs": pairs_job}
CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "touched": lambda folder: [path.touch() for path in folder.iterdir()],
    "a name": lambda folder: [path.rename(path.with_name(f"new-{path.name}")) for path in sorted(folder.glob("*.txt"))],
    "a file more": lambda folder: (folder / "more.txt").write_text(words(99)),
    "a word": lambda folder: [
        path.write_bytes(path.read_bytes().replace(b"word 3", b"word 5").replace(b" a", b" b"))
        for path in folder.iterdir()
    ],
}


def stopped(job: TrainingJob, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin the training and stop it after its second step."""

    class Stopping(training.StepLog):
        def write(self, record: object) -> None:
            super().write(record)  # type: ignore[arg-type]
            if getattr(record, "step", 0) == 2:
                raise Interrupted("Stopped after step 2.")

    with monkeypatch.context() as changed:
        changed.setattr(training, "StepLog", Stopping)
        with pytest.raises(Interrupted):
            moekit.train(job, out)
    assert (out / "state.safetensors").exists()


@pytest.mark.parametrize(
    ("kind", "change"),
    [*(("text", change) for change in CHANGES), *(("pairs", change) for change in ("nothing", "touched", "a word"))],
)
def test_a_training_goes_on_with_its_own_text(
    kind: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = JOBS[kind](tmp_path)
    stopped(job, tmp_path / "out", monkeypatch)
    CHANGES[change](tmp_path / "data")
    if change in ("nothing", "touched"):
        expected = moekit.train(job, tmp_path / "whole").held_out_bits
        assert moekit.train(job, tmp_path / "out").held_out_bits == expected
    else:
        with pytest.raises(UsageError, match=r"The text has changed since the training in .*out began"):
            moekit.train(job, tmp_path / "out")


def test_a_training_of_an_older_version_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = text_job(tmp_path)
    stopped(job, tmp_path / "out", monkeypatch)
    (tmp_path / "out" / "data.json").unlink()
    with caplog.at_level(logging.INFO):
        moekit.train(job, tmp_path / "out")
    assert "says not what text it began with" in caplog.text


def test_a_domain_that_is_too_small_stops_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = text_job(tmp_path)
    for name in ("scripts", "config"):
        (tmp_path / "data" / name).mkdir()
        (tmp_path / "data" / name / "run.sh").write_text(f"echo {name}\nexit\n")
    moekit.train(job, tmp_path / "out")
    assert "2 texts, 39 B, of a domain with less than 33 bytes on a side" in caplog.text
