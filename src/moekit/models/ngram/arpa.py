r"""ARPA files: text that KenLM, SRILM and others read and write.

After `\data\` come lines `ngram k=how many`, one for each order, then for each order `\k-grams:` and a line for each
n-gram: log10 probability, tab, words, and, but for the longest, tab and log10 backoff weight (0 where it is left out);
`\end\` ends it. Format: ngram-format(5) of SRILM, and lm/read_arpa.cc of KenLM.
"""

import gzip
import re
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from moekit.core import files
from moekit.core.errors import MoekitError
from moekit.models.ngram.lines import Bytes, Words
from moekit.models.ngram.ngram_counts import MAX_ORDER, Packing
from moekit.models.ngram.smoothing import Floats, Tables
from moekit.models.ngram.trie import Level, Places, words_of
from moekit.models.ngram.vocabulary import SPECIAL_WORDS, Vocabulary, byte_vocabulary

_BLOCK = 1 << 20
_LONGEST_LINE = 1 << 20
_ROWS = 1 << 16
_COUNT = re.compile(rb"ngram\s+(\d{1,18})\s*=\s*(\d{1,18})\s*")
_NO_WORD = re.compile(r"[\0\t\n\r ]")
_BLANKS = bytes.maketrans(b"\t\r", b"  ")


def write_arpa(tables: Tables, vocabulary: Vocabulary, path: Path) -> None:
    """Write a model, all of it or nothing, with twelve decimals of each number (see `number_texts`).

    Raises:
        MoekitError: where a word is empty, twice there, or holds a blank, or where the disk is full.
    """
    words = [*SPECIAL_WORDS, *vocabulary.words]
    for word in words:
        if not word or _NO_WORD.search(word):
            raise MoekitError(f"{path} cannot be written: the word {word!r} is empty or holds a blank or NUL.")
    if len(set(words)) < len(words):
        raise MoekitError(f"{path} cannot be written: a word is in the vocabulary twice.")
    texts = Words([word.encode("utf-8", "surrogateescape") for word in words])

    def block(order: int, start: int) -> Bytes:
        stop = min(start + _ROWS, len(tables.log10_probs[order - 1]))
        backoffs = tables.log10_backoffs[order - 1][start:stop] if order <= len(tables.log10_backoffs) else None
        probs = tables.log10_probs[order - 1][start:stop]
        return texts.lines(probs, words_of(tables.levels, order, start, stop), backoffs)

    with files.replacing(path) as temporary, temporary.open("wb") as file, ThreadPoolExecutor(2) as pool:
        counts = "".join(f"ngram {order}={len(p)}\n" for order, p in enumerate(tables.log10_probs, start=1))
        file.write(f"\\data\\\n{counts}".encode())
        for order, probs in enumerate(tables.log10_probs, start=1):
            file.write(f"\n\\{order}-grams:\n".encode())
            starts = range(0, len(probs), _ROWS)
            ahead: deque[Future[Bytes]] = deque()
            for start in starts:
                ahead.append(pool.submit(block, order, start))
                if len(ahead) > 2:
                    ahead.popleft().result().tofile(file)
            while ahead:
                ahead.popleft().result().tofile(file)
        file.write(b"\n\\end\\\n")


def read_arpa(path: Path) -> tuple[Tables, Vocabulary]:
    """Read a model from an ARPA file, plain or gzipped; memory follows what is read, never what a header announces.

    Where the words are the 256 bytes as `byte_vocabulary` writes them, token ids are byte values, else words are
    numbered as the file lists them.

    Raises:
        MoekitError: naming file and line, for whatever is not a whole and sound model: each n-gram's context and the
            n-gram without its first word must be there, and <unk>, <s> and </s> too.
    """
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _Reader(path, raw).read()
            with gzip.GzipFile(fileobj=raw) as file:
                return _Reader(path, file).read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise MoekitError(f"{path} is a damaged gzip file: {error}.") from error
    except OSError as error:
        raise MoekitError(f"{path} cannot be read: {error.strerror or error}.") from error


class _Reader:
    """Reads a file line by line, and knows the number of the line where something is wrong."""

    def __init__(self, path: Path, file: IO[bytes] | gzip.GzipFile) -> None:
        self._path = path
        self._file = file
        self._lines: list[bytes] = []
        self._at = 0
        self._before = 0  # lines before those in memory
        self._rest: bytes | None = b""

    def read(self) -> tuple[Tables, Vocabulary]:
        """Read the whole model."""
        counts = self._header()
        vocabulary, ids, probs, backoffs = self._unigrams(counts[0], len(counts) > 1)
        bits = Packing.of(len(counts), len(vocabulary)).bits
        tables = Tables(bits, [], [probs], [backoffs] if len(counts) > 1 else [])
        for order, count in enumerate(counts[1:], start=2):
            self._title(f"\\{order}-grams:")
            self._level(tables, ids, order, count, order < len(counts))
        self._title("\\end\\")
        while (line := self._next()) is not None:
            if line.strip():
                self._fail("text follows after \\end\\")
        return tables, vocabulary

    def _header(self) -> list[int]:
        self._title("\\data\\")
        counts: list[int] = []
        while True:
            line = self._next()
            if line is None:
                self._fail("the file ends within its header")
            line = line.strip()
            if not line:
                if counts:
                    break
                continue
            found = _COUNT.fullmatch(line)
            if found is None:
                if line == b"\\1-grams:" and counts:
                    self._at -= 1
                    break
                self._fail("a line like 'ngram 1=1000' is missing")
            if int(found[1]) != len(counts) + 1:
                self._fail(f"the count of {len(counts) + 1}-grams is missing")
            if len(counts) == MAX_ORDER:
                self._fail(f"an order above {MAX_ORDER} is not supported")
            counts.append(int(found[2]))
        self._title("\\1-grams:")
        return counts

    def _unigrams(self, count: int, weighted: bool) -> tuple[Vocabulary, dict[bytes, int], Floats, Floats]:
        words: list[bytes] = []
        first_line = self._number() + 1
        probs, backoffs = self._section(1, count, weighted, lambda columns, _: words.extend(columns[0]))
        if b"<unk>" not in words:
            words[:] = [b"<unk>" if word == b"<UNK>" else word for word in words]
        at: dict[bytes, int] = {}
        for index, word in enumerate(words):
            if at.setdefault(word, index) != index:
                self._fail("this word is there twice", first_line + index)
        special = [word.encode() for word in SPECIAL_WORDS]
        for word in special:
            if word not in at:
                self._fail(f"{word.decode()} is not among the 1-grams")
        others = [word for word in words if word not in set(special)]
        as_bytes = byte_vocabulary()
        names = [word.encode() for word in as_bytes.words]
        if len(others) == len(names) and set(others) == set(names):
            others, vocabulary = names, as_bytes
        else:
            vocabulary = Vocabulary([word.decode("utf-8", "surrogateescape") for word in others])
        inside = [*special, *others]
        order = np.array([at[word] for word in inside])
        return vocabulary, {word: index for index, word in enumerate(inside)}, probs[order], backoffs[order]

    def _level(self, tables: Tables, ids: dict[bytes, int], order: int, count: int, weighted: bool) -> None:
        numbers: list[list[Places]] = [[np.zeros(0, dtype=np.int64)] for _ in range(order)]

        def take(columns: list[Sequence[bytes]], start: int) -> None:
            for parts, column in zip(numbers, columns, strict=True):
                try:
                    parts.append(np.fromiter(map(ids.__getitem__, column), dtype=np.int64, count=len(column)))
                except KeyError as error:
                    self._fail("a word is not among the 1-grams", start + column.index(error.args[0]))

        first_line = self._number() + 1
        probs, backoffs = self._section(order, count, weighted, take)
        words = [np.concatenate(parts) for parts in numbers]
        if order > 2:
            context = _locate(tables.levels, words[:-1])
            if (context < 0).any():
                self._fail(f"its context is not among the {order - 1}-grams", first_line + int(np.argmin(context)))
        parents = _locate(tables.levels, words[1:])
        if (parents < 0).any():
            wrong = first_line + int(np.argmin(parents))
            self._fail(f"the n-gram without its first word is not among the {order - 1}-grams", wrong)
        keys = parents << tables.bits | words[0]
        sorting = np.argsort(keys, kind="stable")
        keys = keys[sorting]
        same = np.flatnonzero(keys[1:] == keys[:-1])
        if same.size:
            self._fail("this n-gram is there twice", first_line + int(sorting[same[0] + 1]))
        tables.levels.append(Level(tables.bits, keys))
        tables.log10_probs.append(probs[sorting])
        if weighted:
            tables.log10_backoffs.append(backoffs[sorting])

    def _section(
        self, order: int, count: int, weighted: bool, take: Callable[[list[Sequence[bytes]], int], None]
    ) -> tuple[Floats, Floats]:
        """Read probabilities and backoff weights.

        `take` gets the words, a column for each place, and their first line.
        """
        probs: list[Floats] = [np.zeros(0)]
        backoffs: list[Floats] = [np.zeros(0)]
        left = count
        while left:
            lines = self._some(min(left, _ROWS))
            start = self._number() - len(lines) + 1
            if not lines:
                self._fail(f"the file ends before its {count} {order}-grams do")
            columns = self._columns(lines, order, count, weighted, start)
            here = self._floats(columns[0], start)
            if (here > 0).any():
                self._fail("a log probability is above 0", start + int(np.argmax(here > 0)))
            probs.append(here)
            if weighted:
                backoffs.append(self._floats(columns[-1], start))
            take(columns[1 : order + 1], start)
            left -= len(lines)
        return np.concatenate(probs), np.concatenate(backoffs)

    def _columns(self, lines: list[bytes], order: int, count: int, weighted: bool, start: int) -> list[Sequence[bytes]]:
        """Split lines into their fields, a column each."""
        wanted = order + 2 if weighted else order + 1
        block = b"\n".join(lines)
        if b"\0" in block:
            self._fail("a NUL byte", start + next(index for index, line in enumerate(lines) if b"\0" in line))
        odd = b"\v" in block or b"\f" in block  # which belong to words here, but part them for split()
        if not odd:
            # where each line has all its fields, one list of all is several times as fast as a list a line
            fields = block.replace(b"\n", b" \0 ").split()
            fields.append(b"\0")
            if len(fields) == len(lines) * (wanted + 1) and fields[wanted :: wanted + 1].count(b"\0") == len(lines):
                return [fields[place :: wanted + 1] for place in range(wanted)]
        rows = []
        for index, line in enumerate(lines):
            row = [field for field in line.translate(_BLANKS).split(b" ") if field] if odd else line.split()
            if len(row) == wanted - 1 and weighted:
                row.append(b"0")
            if len(row) != wanted:
                if not row or (len(row) == 1 and row[0].startswith(b"\\")):
                    self._fail(f"there are fewer {order}-grams than the {count} of the header", start + index)
                self._fail(f"{len(row)} fields cannot be a {order}-gram", start + index)
            rows.append(row)
        return list(zip(*rows, strict=True))

    def _floats(self, texts: Sequence[bytes], start: int) -> Floats:
        try:
            numbers = np.array(list(map(float, texts)))
        except ValueError:
            numbers = np.zeros(0)
        # float() takes '1_0', 'nan' and 'inf' too
        if not len(numbers) or not np.isfinite(numbers).all() or b"_" in b"".join(texts):
            wrong = next(index for index, text in enumerate(texts) if not _is_number(text))
            self._fail(f"{texts[wrong][:40]!r} is not a finite number", start + wrong)
        return numbers

    def _title(self, title: str) -> None:
        while (line := self._next()) is not None:
            if line.strip() == title.encode():
                return
            if line.strip():
                break
        self._fail(f"{title} is missing")

    def _number(self) -> int:
        return self._before + self._at

    def _next(self) -> bytes | None:
        return lines[0] if (lines := self._some(1)) else None

    def _some(self, most: int) -> list[bytes]:
        """Give the next lines, as many as are in memory but at most `most`; none at the end of the file."""
        while self._at == len(self._lines):
            if self._rest is None:
                return []
            self._before += self._at
            block = self._file.read(_BLOCK)
            self._lines, self._at = (self._rest + block).split(b"\n"), 0
            self._rest = self._lines.pop() if block else None
            if self._rest is None and self._lines == [b""]:
                self._lines = []
            if self._rest is not None and len(self._rest) > _LONGEST_LINE:
                self._fail(f"a line is longer than {_LONGEST_LINE} bytes", self._before + len(self._lines) + 1)
        lines = self._lines[self._at : self._at + most]
        self._at += len(lines)
        return lines

    def _fail(self, what: str, line: int | None = None) -> NoReturn:
        raise MoekitError(f"{self._path}, line {line or self._number()}: {what}.")


def _is_number(text: bytes) -> bool:
    try:
        return bool(np.isfinite(float(text))) and b"_" not in text
    except ValueError:
        return False


def _locate(levels: list[Level], words: list[Places]) -> Places:
    """Find where n-grams of the words given first to last lie, -1 where there are none."""
    at = words[-1]
    for level, word in zip(levels, reversed(words[:-1]), strict=False):
        known = np.flatnonzero(at >= 0)
        found = np.full(len(at), -1, dtype=np.int64)
        found[known] = level.find(at[known], word[known])
        at = found
    return at
