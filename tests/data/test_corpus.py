"""The corpus, in memory and on disk."""

import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moekit.core.errors import MoekitError, UsageError
from moekit.data import Corpus, Document, DomainText, LeftOut, build_corpus, load_corpus

Prose = Callable[..., bytes]


def documents(prose: Prose, domain: str = "d", count: int = 20) -> list[Document]:
    return [Document(domain, f"{number:02}", prose((domain, number))) for number in range(count)]


def test_documents_follow_a_separator(prose: Prose) -> None:
    given = documents(prose)
    (domain,) = build_corpus(given, name="c").domains
    found = [side.tobytes().split(b"\0") for side in (domain.train, domain.held_out)]
    assert [side[0] for side in found] == [b"", b""]
    assert sorted(found[0][1:] + found[1][1:]) == sorted(document.text for document in given)
    assert (domain.train_files, domain.held_out_files) == (len(found[0]) - 1, len(found[1]) - 1)
    assert (domain.train_bytes, domain.held_out_bytes) == (domain.train.size, domain.held_out.size)
    assert domain.train.dtype == np.uint8
    assert not domain.train.flags.writeable


def test_sha256_is_the_text_s_own(prose: Prose) -> None:
    given = documents(prose) + documents(prose, "e")
    corpus = build_corpus(given, name="c")
    random.Random(0).shuffle(given)
    assert build_corpus(given, name="another name").sha256 == corpus.sha256
    assert build_corpus(given, name="c", seed=1).sha256 != corpus.sha256
    assert build_corpus(given[1:], name="c").sha256 != corpus.sha256
    renamed = [Document("f" if d.domain == "e" else d.domain, d.name, d.text) for d in given]
    assert build_corpus(renamed, name="c").sha256 != corpus.sha256
    # a figure that no other process, hash seed or machine may change
    assert corpus.sha256 == "422d54adeceddee957dc6d57d7af124df9b9336d4ccf3627f6467853f0931449"


def test_no_documents() -> None:
    with pytest.raises(UsageError, match="no text"):
        build_corpus([], name="c")


def test_left_out_copies_are_told(prose: Prose) -> None:
    told: list[str] = []
    corpus = build_corpus([Document("d", name, prose("same")) for name in "abc"], name="c", say=told.append)
    reason = "near-duplicates of a file that is cut into training and held-out text"
    assert told == [f"Left out of c: 2 texts, 4.03 kB, {reason}, such as b."]
    assert corpus.left_out == (LeftOut("d", reason, 2, 2 * len(prose("same")), "b"),)


def test_unigram_bits_per_byte(prose: Prose) -> None:
    corpus = build_corpus(documents(prose) + documents(prose, "e"), name="c")
    figures = []
    for domain in corpus.domains:
        seen = Counter(domain.train.tolist())
        total = domain.train_bytes + 256
        scored = [byte for byte in domain.held_out.tolist() if byte != 0]
        expected = -sum(math.log2((seen[byte] + 1) / total) for byte in scored) / len(scored)
        assert corpus.unigram_bits_per_byte(domain.name) == pytest.approx(expected, rel=1e-12)
        figures.append(expected)
    assert corpus.unigram_bits_per_byte() == pytest.approx(sum(figures) / 2, rel=1e-12)
    with pytest.raises(KeyError):
        corpus.unigram_bits_per_byte("unknown")


def test_unigram_of_bytes_never_seen() -> None:
    domain = DomainText("d", np.frombuffer(b"\0aaa", np.uint8), np.frombuffer(b"\0bb", np.uint8), 1, 1)
    assert Corpus("c", "", (domain,)).unigram_bits_per_byte("d") == pytest.approx(math.log2(260))


@pytest.fixture
def saved(prose: Prose, tmp_path: Path) -> tuple[Corpus, Path]:
    given = documents(prose, "../x") + documents(prose, "é/\n ")
    corpus = build_corpus(given, name="c")
    folder = tmp_path / "deep" / "corpus"
    corpus.save(folder)
    return corpus, folder


def test_save_and_open(saved: tuple[Corpus, Path]) -> None:
    corpus, folder = saved
    opened = Corpus.open(folder)
    assert (opened.name, opened.sha256) == (corpus.name, corpus.sha256)
    for before, after in zip(corpus.domains, opened.domains, strict=True):
        assert before.name == after.name
        assert before.train.tobytes() == after.train.tobytes()
        assert before.held_out.tobytes() == after.held_out.tobytes()
        assert (before.train_files, before.held_out_files) == (after.train_files, after.held_out_files)
        assert isinstance(after.train, np.memmap)
        assert not after.train.flags.writeable


def test_names_of_domains_are_no_file_names(saved: tuple[Corpus, Path]) -> None:
    _, folder = saved
    written = {path.relative_to(folder.parent).as_posix() for path in folder.parent.rglob("*") if path.is_file()}
    assert written == {
        "corpus/corpus.json",
        *(f"corpus/{index}.{side}.bin" for index in (0, 1) for side in ("train", "held_out")),
    }


def test_an_open_corpus_can_be_saved_over_itself(saved: tuple[Corpus, Path]) -> None:
    corpus, folder = saved
    Corpus.open(folder).save(folder)
    assert Corpus.open(folder).sha256 == corpus.sha256


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("1.held_out.bin", lambda content: content[:-1], "1.held_out.bin holds .* bytes where"),
        ("0.train.bin", lambda content: b"", "0.train.bin holds 0 bytes where"),
        ("0.train.bin", lambda content: b"\1" + content[1:], "0.train.bin was changed"),
        ("0.train.bin", None, "0.train.bin is missing"),
        ("corpus.json", None, "there is no corpus.json"),
        ("corpus.json", lambda content: content[:-10], "corpus.json is damaged"),
        ("corpus.json", lambda content: b"\xff" + content, "corpus.json is damaged"),
        ("corpus.json", lambda content: content.replace(b'"../x"', b'"y"'), "corpus.json was changed"),
    ],
)
def test_a_damaged_corpus(
    saved: tuple[Corpus, Path], file: str, damage: Callable[[bytes], bytes] | None, message: str
) -> None:
    path = saved[1] / file
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MoekitError, match=message):
        Corpus.open(saved[1])


def test_load_corpus_from_sources(prose: Prose, tmp_path: Path) -> None:
    for domain in ("one", "two"):
        (tmp_path / domain).mkdir()
        for number in range(20):
            (tmp_path / domain / f"{number}.txt").write_bytes(prose((domain, number)))
    (tmp_path / ".hidden").write_text("x")
    told: list[str] = []
    corpus = load_corpus([str(tmp_path)], say=told.append)
    assert [domain.name for domain in corpus.domains] == ["one", "two"]
    assert corpus.name == str(tmp_path)
    assert told == [f"Skipped in {tmp_path}: 1 hidden."]
    folders = [str(tmp_path / domain) for domain in ("one", "two")]
    assert load_corpus(folders).sha256 == load_corpus([*reversed(folders)]).sha256


@pytest.mark.parametrize("sources", [None, []])
def test_load_corpus_without_sources_is_the_embedded_one(
    sources: list[str] | None, prose: Prose, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moekit.data import corpus

    monkeypatch.setattr(corpus, "embedded_documents", lambda: documents(prose, "stand-in"))
    loaded = load_corpus(sources)
    assert loaded.name == "embedded"
    assert [domain.name for domain in loaded.domains] == ["stand-in"]
