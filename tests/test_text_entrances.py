"""Wherever text comes in, it is read with the same care: every entrance, encoding and container."""

import bz2
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from tests.conftest import model_config

import moekit
from moekit.config import LSTMConfig
from moekit.convert.dense_to_moe.sample_text import sample_tokens
from moekit.convert.merging import merge_conversion
from moekit.core.errors import UsageError
from moekit.data import load_corpus
from moekit.models import Decoder
from moekit.training import Schedule, TrainingJob

ENCODINGS: dict[str, Callable[[str], bytes]] = {
    "utf-8": str.encode,
    "marked": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "utf-32": lambda text: text.encode("utf-32"),
}
CONTAINERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
FORMS: dict[str, Callable[[list[str]], str]] = {
    "a.jsonl": lambda texts: "".join(json.dumps({"text": text}) + "\n" for text in texts),
    "a.json": lambda texts: json.dumps([{"text": text} for text in texts]),
    "a.csv": lambda texts: "text\n" + "".join(f'"{text}"\n' for text in texts),
    "a.txt": "\n".join,
}


def words(seed: int) -> str:
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefgh", k=4)) for _ in range(60))


TEXTS = [words(seed) for seed in range(12)]


def by_compare(source: Path, folder: Path) -> object:
    return load_corpus([str(source)]).domains[0].train_bytes


def by_train(source: Path, folder: Path) -> object:
    model = LSTMConfig(vocab_size=256, embedding_width=4, widths=(4,))
    training = Schedule(steps=1, sequences=1, context=16, measure=1)
    moekit.train(TrainingJob(model=model, data=(str(source),), training=training), folder / "out")
    return json.loads((folder / "out" / "data.json").read_text())["sha256"]


def by_evaluate(source: Path, folder: Path) -> object:
    return moekit.evaluate(folder / "model", [source]).model_dump(exclude={"by_domain"})


def by_split(source: Path, folder: Path) -> object:
    return sample_tokens(folder / "model", [str(source)]).tolist()


def by_merge(source: Path, folder: Path) -> object:
    return [document.text for document in merge_conversion._documents([str(source)])]


ENTRANCES: dict[str, Callable[[Path, Path], object]] = {
    "compare": by_compare,
    "train": by_train,
    "evaluate": by_evaluate,
    "split": by_split,
    "merge": by_merge,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    Decoder(model_config()).save(folder)
    return folder


def prepared(model: Path, folder: Path) -> Path:
    (folder / "model").symlink_to(model)
    return folder


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_text_is_the_same_by_every_entrance(entrance: str, form: str, model: Path, tmp_path: Path) -> None:
    """Every encoding plain and every container of UTF-8, and both together once; also through a link, in a folder."""
    stored = [(encoding, "") for encoding in ENCODINGS] + [("utf-8", container) for container in CONTAINERS]
    found = []
    for number, (encoding, container) in enumerate([*stored, ("utf-16", ".zst")]):
        folder = tmp_path / f"{number}"
        blob = folder / "blobs" / "6f"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(CONTAINERS[container](ENCODINGS[encoding](FORMS[form](TEXTS))))
        (folder / "data").mkdir()
        # The content says what it is packed by, with the ending or without; the split of a training goes by names.
        ending = "" if entrance == "train" else container
        (folder / "data" / f"{form}{ending}").symlink_to(blob)
        (folder / "data" / "nowhere").symlink_to(folder / "nothing")
        found.append(ENTRANCES[entrance](folder / "data", prepared(model, folder)))
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "café".encode("latin-1"), "not in UTF-8: convert it"),
        ("a.txt.gz", gzip.compress(b"text" * 99, mtime=0)[:-3], "gzip, damaged or cut"),
        ("a.zip", b"PK\x03\x04" + bytes(30), "a ZIP archive: unpack it"),
        ("a.csv", b"body\none\n", "no column 'text'; name one of the columns there are: 'body'"),
        ("a.jsonl", b'{"body": "one"}\n', "no column 'text'; name one of the columns there are: 'body'"),
        ("a.jsonl", b"{]\n", "line 1: not valid JSON"),
    ],
)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_what_is_not_read_is_refused_with_its_reason_by_every_entrance(
    entrance: str, name: str, content: bytes, message: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        ENTRANCES[entrance](tmp_path / name, prepared(model, tmp_path))
