"""The split into train and held-out text."""

from collections.abc import Callable, Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moekit.core.errors import UsageError
from moekit.data import Document, split_documents
from moekit.data.held_out import cut_tail
from moekit.data.near_duplicates import NearDuplicates

Prose = Callable[..., bytes]


def files(prose: Prose, count: int, domain: str = "d", size: int = 2000) -> list[Document]:
    return [Document(domain, f"{number:03}", prose((domain, number), size)) for number in range(count)]


def edited(text: bytes, *, one_in: int) -> bytes:
    """`text` with every so many lines replaced."""
    lines = text.split(b"\n")
    lines[::one_in] = [b"line %d is a new one altogether" % number for number in range(0, len(lines), one_in)]
    return b"\n".join(lines)


def names(documents: Iterable[Document]) -> set[tuple[str, str]]:
    return {(document.domain, document.name) for document in documents}


def held_out_share(train: Iterable[Document], held_out: Iterable[Document], domain: str = "d") -> float:
    held = sum(len(document.text) for document in held_out if document.domain == domain)
    return held / (held + sum(len(document.text) for document in train if document.domain == domain))


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_on_one_side(prose: Prose, seed: int) -> None:
    originals = files(prose, 30)
    copies = [
        Document(domain, f"copy of {original.name}", edited(original.text, one_in=10))
        for domain in ("d", "other")
        for original in originals
    ]
    split = split_documents([*originals, *copies], seed=seed)
    assert split_documents([*reversed(copies), *originals], seed=seed) == split
    sides = [{name.removeprefix("copy of ") for _, name in names(side)} for side in (split.train, split.held_out)]
    assert not sides[0] & sides[1]
    assert sides[1]
    assert not split.left_out


def test_what_is_a_near_duplicate(prose: Prose) -> None:
    text = prose("text")
    shouted = text.upper().replace(b" ", b"   ")
    different = prose("different")
    half = text[: len(text) // 2] + different[len(text) // 2 :]
    documents = [
        Document("d", str(number), content)
        for number, content in enumerate((text, edited(text, one_in=8), shouted, different, half))
    ]
    assert NearDuplicates(documents).groups == [[0, 1, 2], [3], [4]]


@pytest.mark.parametrize("texts", [("a b", "A  b\n"), ("!!! ???", "!!! ???"), ("短い文章です。", "短い文章です。\n")])
def test_short_texts_have_near_duplicates_too(texts: tuple[str, str]) -> None:
    documents = [Document("d", str(number), text.encode()) for number, text in enumerate((*texts, "something else"))]
    assert [len(group) for group in NearDuplicates(documents).groups] == [2, 1]


def test_scripts_without_spaces(prose: Prose) -> None:
    text = "".join(chr(0x4E00 + byte * 7 % 997 + place % 13) for place, byte in enumerate(prose("zh")))
    documents = [
        Document("d", "0", text.encode()),
        Document("d", "1", (text[:1000] + "新" + text[1001:]).encode()),
        Document("d", "2", text[::-1].encode()),
    ]
    assert [len(group) for group in NearDuplicates(documents).groups] == [2, 1]


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(100, 5000), min_size=1, max_size=30),
    seed=st.integers(0, 2**64 - 1),
    order=st.randoms(use_true_random=False),
)
def test_properties(prose: Prose, sizes: list[int], seed: int, order: object) -> None:
    documents = [Document("d", f"{number}", prose(number, size)) for number, size in enumerate(sizes)]
    split = split_documents(documents, seed=seed)
    shuffled = list(documents)
    order.shuffle(shuffled)  # type: ignore[attr-defined]
    assert split_documents(shuffled, seed=seed) == split
    assert not split.left_out
    assert 0.04 < held_out_share(split.train, split.held_out) < 0.2
    # nothing is lost, and at most one file is cut
    whole = {document.name: document.text for document in documents}
    parts = {document.name: b"" for document in documents}
    for document in (*split.train, *split.held_out):
        parts[document.name] += document.text
    assert parts == whole
    assert len(names(split.train) & names(split.held_out)) <= 1


def test_the_seed_decides(prose: Prose) -> None:
    documents = files(prose, 50)
    held_out = [names(split_documents(documents, seed=seed).held_out) for seed in range(4)]
    assert len(set(map(frozenset, held_out))) == 4


def test_one_file_is_cut_at_a_line_end(prose: Prose) -> None:
    (document,) = files(prose, 1, size=20_000)
    split = split_documents([document], seed=0)
    (train,), (held_out,) = split.train, split.held_out
    assert train.text + held_out.text == document.text
    assert train.text.endswith(b"\n")
    assert held_out_share(split.train, split.held_out) == pytest.approx(0.1, rel=0.1)


def test_one_file_that_holds_nearly_all(prose: Prose) -> None:
    documents = [*files(prose, 3, size=300), Document("d", "big", prose("big", 100_000))]
    split = split_documents(documents, seed=0)
    assert held_out_share(split.train, split.held_out) == pytest.approx(0.1, rel=0.1)
    assert ("d", "big") in names(split.train) & names(split.held_out)


def test_copies_of_a_file_that_is_cut_are_left_out(prose: Prose) -> None:
    text = prose("text", 20_000)
    split = split_documents([Document("d", str(number), text) for number in range(5)], seed=0)
    assert len(split.left_out) == 4
    (train,), (held_out,) = split.train, split.held_out
    assert train.text + held_out.text == text
    assert held_out_share(split.train, split.held_out) == pytest.approx(0.1, rel=0.1)


def test_a_domain_that_is_a_copy_of_another_is_left_out(prose: Prose) -> None:
    text = prose("text")
    split = split_documents([Document("text", "a", text + b"more\n"), Document("copy", "a", text)], seed=0)
    assert {document.domain for document in (*split.train, *split.held_out)} == {"copy"}
    assert [(dropped.domain, dropped.bytes) for dropped in split.left_out] == [("text", len(text) + 5)]


def test_small_domains_stop_nothing(prose: Prose) -> None:
    split = split_documents([*files(prose, 20), Document("e", "a", b"x"), Document("f", "a", b"y")], seed=0)
    assert {document.domain for document in (*split.train, *split.held_out)} == {"d"}
    assert [dropped.domain for dropped in split.left_out] == ["e", "f"]


def test_when_all_domains_are_too_small_all_are_named() -> None:
    with pytest.raises(UsageError, match="Domain 'd' has no training text"):
        split_documents([Document("d", "a", b"x")], seed=0)
    with pytest.raises(UsageError, match="Domains 'd', 'e' have no training text"):
        split_documents([Document("d", "a", b"x"), Document("e", "a", b"y")], seed=0)


@given(text=st.text(min_size=1).map(str.encode), wanted=st.integers(-5, 200))
def test_cut_tail(text: bytes, wanted: int) -> None:
    head, tail = cut_tail(text, wanted)
    assert head + tail == text
    head.decode()
    tail.decode()
    assert len(tail) <= 1.5 * max(1, min(wanted, len(text) // 2)) + 3


def test_cut_tail_without_line_ends() -> None:
    assert cut_tail(b"one two three four five", 8) == (b"one two three ", b"four five")
    assert cut_tail(b"x" * 100, 10) == (b"x" * 90, b"x" * 10)
    assert cut_tail("é".encode() * 50, 11) == ("é".encode() * 44, "é".encode() * 6)
