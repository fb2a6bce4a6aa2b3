"""The embedded corpus: text that every Python installation carries, so that nothing is downloaded.

Four domains: `python` (sources of the standard library), `english` (the language reference that `help()` shows,
and the docstrings of the standard library), `c` (Python's C headers, where they are installed) and `arithmetic`
(generated). It differs a little from one Python version to the next; the corpus's sha256 says which one it is.
"""

import ast
import inspect
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moekit.core.errors import MoekitError
from moekit.data.documents import Document, is_text

# Tests are more than half of a full installation and absent from many others; they are repetitive, and would
# drown the library itself. `encodings` is generated tables, and `pydoc_data` is the text of the `english` domain.
_LEFT_OUT = frozenset(
    ("test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__")
)

_ARITHMETIC_FILES = 64
_ARITHMETIC_LINES = 3600
_ARITHMETIC_SEED = 20240229

_LONG_PARAGRAPH = 60
"""Characters from which a paragraph that was seen before is left out: shorter ones, as `Example:`, come back often."""


def embedded_documents() -> list[Document]:
    """Make the documents of the embedded corpus, ready for `build_corpus`.

    A docstring is moved, not copied: cut out of the source and put into `english`, in the same group as the rest of its
    file, so that no text is in two domains and a file never stands on both sides of the split.

    Raises:
        MoekitError: where Python came without the sources of its standard library.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paragraphs = _Paragraphs()
    documents = [*_topics(paragraphs)]
    for name, text in _files(library, ".py"):
        source, docstrings = cut_docstrings(text)
        group = f"python/{name}"
        if is_text(source):
            documents.append(Document("python", name, source, group))
        english = "\n\n".join(filter(None, map(paragraphs.unseen, docstrings))).encode("utf-8", "surrogatepass")
        if is_text(english):
            documents.append(Document("english", f"docstrings of {name}", english + b"\n", group))
    if not any(document.domain == "python" for document in documents):
        raise MoekitError(
            f"Python's standard library has no sources in {library}, so there is no embedded corpus; give other text."
        )
    documents += [
        Document("c", name, text.encode()) for name, text in _files(Path(sysconfig.get_path("include")), ".h")
    ]
    return documents + list(_arithmetic())


def cut_docstrings(source: str) -> tuple[bytes, list[str]]:
    """Cut the docstrings out of Python `source`, whose lines end in line feeds.

    A docstring that shares a line with code stays in the source. One that is all that its function or class has becomes
    `pass`. A source that does not parse is returned whole, with no docstrings.

    Returns:
        The source without its docstrings, and these docstrings, unindented.
    """
    text = source.encode()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old sources hold invalid escapes, which is no concern of ours
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return text, []
    line_starts = [0, *(match.end() for match in re.finditer(b"\n", text))]
    kept: list[bytes] = []
    docstrings: list[str] = []
    done = 0
    for statement, only in _docstrings(tree):
        # ast counts columns in bytes of UTF-8
        line = line_starts[statement.lineno - 1]
        start = line + statement.col_offset
        end = line_starts[(statement.end_lineno or 0) - 1] + (statement.end_col_offset or 0)
        newline = text.find(b"\n", end)
        line_end = len(text) if newline < 0 else newline + 1
        if text[line:start].strip() or text[end:line_end].strip():
            continue
        kept += [text[done:start], b"pass"] if only else [text[done:line]]
        done = end if only else line_end
        docstrings.append(inspect.cleandoc(ast.literal_eval(statement.value)))
    return b"".join((*kept, text[done:])), docstrings


def _docstrings(tree: ast.Module) -> Iterator[tuple[ast.Expr, bool]]:
    """Find each docstring's statement in order of the text, and whether it is all that its function or class has.

    Only statements are visited: walking all expressions would take three times as long.
    """
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                yield first, len(node.body) == 1 and not isinstance(node, ast.Module)
        blocks = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
        inner = [child for block in blocks if isinstance(block, list) for child in block]
        pending += reversed(inner)


class _Paragraphs:
    """Lets each long paragraph through once: topics quote one another, and methods inherit their docstrings."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def unseen(self, text: str) -> str:
        """Give the text without the long paragraphs that came before."""
        kept = []
        for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")):
            words = " ".join(paragraph.split())
            if len(words) < _LONG_PARAGRAPH or words not in self._seen:
                kept.append(paragraph)
                self._seen.add(words)
        return "\n\n".join(kept)


def _topics(paragraphs: _Paragraphs) -> Iterator[Document]:
    from pydoc_data.topics import topics  # half a megabyte of text: only read where it is wanted

    # short ones first: a long topic such as `compound` is made up of others, and keeps what is its own
    for name, topic in sorted(topics.items(), key=lambda item: (len(item[1]), item[0])):
        text = paragraphs.unseen(topic).encode()
        if is_text(text):
            yield Document("english", f"topic {name}", text + b"\n")


def _files(root: Path, suffix: str) -> Iterator[tuple[str, str]]:
    """Read every file below `root`: its name relative to `root`, and its text with line feeds as line ends.

    What is not UTF-8 is left out.
    """
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(set(subfolders) - _LEFT_OUT)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix == suffix and path.is_file():
                content = path.read_bytes()
                if is_text(content):
                    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
                    yield path.relative_to(root).as_posix(), text


def _arithmetic() -> Iterator[Document]:
    """Generate files of equations, no line twice in all of them, so that no held-out line was seen in training."""
    generator = np.random.Generator(np.random.PCG64(_ARITHMETIC_SEED))
    count = _ARITHMETIC_FILES * _ARITHMETIC_LINES
    # as many numbers of two digits as of five; 10 <= a, b, c < 100,000
    numbers = np.floor(10 ** generator.uniform(1, 5, size=(count, 3))).astype(np.int64)
    forms = generator.integers(len(_FORMS), size=count)
    lines = [_FORMS[form](a, b, c) for form, (a, b, c) in zip(forms.tolist(), numbers.tolist(), strict=True)]
    unique = list(dict.fromkeys(lines))
    for index in range(_ARITHMETIC_FILES):
        yield Document("arithmetic", f"{index:02}", "\n".join((*unique[index::_ARITHMETIC_FILES], "")).encode())


_FORMS = (
    lambda a, b, c: f"{a} + {b} = {a + b}",
    lambda a, b, c: f"{a} - {b} = {a - b}",
    lambda a, b, c: f"{a} * {b % 100} = {a * (b % 100)}",
    lambda a, b, c: f"{a} = {b % 100 + 2} * {a // (b % 100 + 2)} + {a % (b % 100 + 2)}",
    lambda a, b, c: f"{a} + {b} - {c} = {a + b - c}",
    lambda a, b, c: f"max({a}, {b}, {c}) = {max(a, b, c)}",
    lambda a, b, c: f"sort({a}, {b}, {c}) = {', '.join(map(str, sorted((a, b, c))))}",
    lambda a, b, c: f"{a}, {a + b}, {a + 2 * b}, {a + 3 * b}, {a + 4 * b}",
)
