"""The embedded corpus."""

import ast
import inspect
import sysconfig
import textwrap
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from moekit.core.errors import MoekitError
from moekit.data import Document, embedded_documents, split_documents
from moekit.data.embedded import cut_docstrings

SOURCE = textwrap.dedent('''
    # é before all, in two bytes
    """Of the
    module: ünïcode."""
    x = 1
    class Only:
        """Only a docstring."""
    def plain(a):
        """
        Plain.

            Indented.
        """
        def inner(): "on the line of code"
        return """not a docstring"""
    if x:
        async def hidden():
            r"""raw \\d"""
            é = """ä"""; return é
    try:
        pass
    except ValueError:
        def handler():
            ("in"
             " parts")
            return 2
    ''')


def test_docstrings_are_moved() -> None:
    text, found = cut_docstrings(SOURCE)
    assert found == ["Of the\nmodule: ünïcode.", "Only a docstring.", "Plain.\n\n    Indented.", "raw \\d", "in parts"]
    assert text.decode() == textwrap.dedent('''
    # é before all, in two bytes
    x = 1
    class Only:
        pass
    def plain(a):
        def inner(): "on the line of code"
        return """not a docstring"""
    if x:
        async def hidden():
            é = """ä"""; return é
    try:
        pass
    except ValueError:
        def handler():
            return 2
    ''')
    assert ast.parse(text)


@pytest.mark.parametrize("source", ["def f(:\n", "print 'python 2'\n", "x = 1\0\n"])
def test_what_does_not_parse_stays_whole(source: str) -> None:
    assert cut_docstrings(source) == (source.encode(), [])


@pytest.mark.parametrize("source", ['"""all there is"""', '"""all there is"""\n'])
def test_a_file_of_one_docstring(source: str) -> None:
    assert cut_docstrings(source) == (b"", ["all there is"])


def test_domains_and_their_sizes(embedded: list[Document]) -> None:
    size: Counter[str] = Counter()
    for document in embedded:
        size[document.domain] += len(document.text)
    assert set(size) - {"c"} == {"arithmetic", "english", "python"}
    assert all(count > 500_000 for count in size.values()), size
    assert max(size.values()) < 20 * min(size.values()), size


def test_the_standard_library_s_docstrings_are_english_only(embedded: list[Document]) -> None:
    text: dict[str, bytes] = defaultdict(bytes)
    for document in embedded:
        text[document.domain] += document.text
    for thing in (Path, textwrap.dedent, inspect.cleandoc, Counter):
        first = (thing.__doc__ or "").strip().splitlines()[0].encode()
        assert first in text["english"]
        assert first not in text["python"]
    assert b"def dedent(text):" in text["python"]


def test_sources_still_parse_and_hold_few_docstrings(embedded: list[Document]) -> None:
    sources = [document.text for document in embedded if document.domain == "python"][::10]
    for source in sources:
        _, left = cut_docstrings(source.decode())
        # a second string in a row may stand where the docstring stood
        assert len(left) <= 1


def test_no_long_paragraph_is_twice_in_english(embedded: list[Document]) -> None:
    paragraphs = Counter(
        " ".join(paragraph.split())
        for document in embedded
        if document.domain == "english"
        for paragraph in document.text.decode().split("\n\n")
    )
    assert [text for text, count in paragraphs.items() if count > 1 and len(text) >= 60] == []


def test_no_tests_and_nothing_that_was_installed(embedded: list[Document]) -> None:
    names = [document.name for document in embedded if document.domain == "python"]
    assert not [name for name in names if {"test", "site-packages", "__pycache__"} & set(name.split("/"))]
    assert "asyncio/events.py" in names


def test_every_equation_is_right_and_new(embedded: list[Document]) -> None:
    lines = [
        line for document in embedded if document.domain == "arithmetic" for line in document.text.decode().splitlines()
    ]
    assert len(set(lines)) == len(lines) > 100_000
    kinds: Counter[str] = Counter()
    for line in lines[::50]:
        left, equals, right = line.partition(" = ")
        if not equals:
            numbers = [int(number) for number in line.split(", ")]
            steps = {after - before for before, after in pairwise(numbers)}
            assert len(steps) == 1, line
            kinds["sequence"] += 1
        elif left.startswith("sort"):
            given = [int(number) for number in left[5:-1].split(", ")]
            assert sorted(given) == [int(number) for number in right.split(", ")], line
            kinds["sort"] += 1
        else:
            assert eval(left, {"max": max}) == eval(right), line  # of text that this package made itself
            kinds[next((sign for sign in "max*+-" if sign in line), "other")] += 1
    assert min(kinds.values()) > 100, kinds


def test_a_file_and_its_docstrings_are_on_one_side(embedded: list[Document]) -> None:
    split = split_documents(embedded, seed=1)
    assert not split.left_out
    assert not {document.group for document in split.train} & {
        document.group for document in split.held_out if document.group
    }
    held_out = Counter(dict.fromkeys(("arithmetic", "english", "python"), 0))
    total = Counter(held_out)
    for document in (*split.train, *split.held_out):
        total[document.domain] += len(document.text)
    for document in split.held_out:
        held_out[document.domain] += len(document.text)
    assert all(0.08 < held_out[domain] / total[domain] < 0.15 for domain in total), (held_out, total)


def test_without_headers_there_are_three_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "lib"
    (library / "site-packages").mkdir(parents=True)
    (library / "site-packages" / "other.py").write_text("import this\n")
    (library / "one.py").write_bytes(b'"""Doc of one."""\r\nx = 1\r\n')
    (library / "latin1.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    paths = {"stdlib": str(library), "include": str(tmp_path / "nowhere")}
    monkeypatch.setattr(sysconfig, "get_path", paths.get)
    found = embedded_documents()
    assert {document.domain for document in found} == {"arithmetic", "english", "python"}
    assert [(d.name, d.text) for d in found if d.domain == "python"] == [("one.py", b"x = 1\n")]
    assert any(document.text == b"Doc of one.\n" for document in found)
    assert embedded_documents() == found


def test_without_sources_there_is_no_embedded_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(MoekitError, match="no sources"):
        embedded_documents()
