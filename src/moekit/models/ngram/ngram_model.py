"""The n-gram model: trained in one pass over text, scores tokens as every other model does."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.models.ngram.arpa import read_arpa, write_arpa
from moekit.models.ngram.ngram_counts import DEFAULT_MEMORY, MAX_ORDER, Packing, count_ngrams, kept_on_disk
from moekit.models.ngram.smoothing import Counted, Floats, Tables, collect, estimate
from moekit.models.ngram.trie import Places, paths
from moekit.models.ngram.vocabulary import (
    BEGIN,
    END,
    SPECIALS,
    UNKNOWN,
    Ids,
    Integers,
    Vocabulary,
    WordReader,
    byte_vocabulary,
    numbered_vocabulary,
    stream_of_sentences,
    text_blocks,
)

# few enough that what is gathered for a block stays in the cache
_BLOCK = 1 << 15
_LINES = 1 << 12


def _silent(_: str) -> None:
    pass


class NGram:
    """A language model of n-grams under modified interpolated Kneser-Ney smoothing.

    Token ids: words 0 ... V - 1 in the order of `vocabulary.words`, then <unk> V, <s> V + 1 and </s> V + 2; of a byte
    model, the byte values 0 ... 255, <unk> 256, <s> 257 and </s> 258. The probabilities of all token ids but <s> add
    up to 1 in every context; <s> itself is a context only, and scored as the ARPA file has it. Chen & Goodman 1999;
    Heafield et al. 2013, "Scalable Modified Kneser-Ney Language Model Estimation".
    """

    def __init__(self, vocabulary: Vocabulary, tables: Tables) -> None:
        self.vocabulary = vocabulary
        self.tables = tables

    @property
    def order(self) -> int:
        """The number of words in the longest n-grams."""
        return len(self.tables.log10_probs)

    @property
    def ngrams(self) -> tuple[int, ...]:
        """The number of n-grams of each order, from 1 on."""
        return tuple(map(len, self.tables.log10_probs))

    @classmethod
    def train(
        cls,
        sentences: Iterable[Integers],
        vocabulary: Vocabulary | Sequence[str] | int,
        *,
        order: int = 5,
        prune: Sequence[int] = (),
        memory_bytes: int = DEFAULT_MEMORY,
        folder: Path | None = None,
        say: Callable[[str], None] = _silent,
    ) -> Self:
        """Train on sentences, one-dimensional arrays of token ids below V, to which <s> and </s> are added.

        Args:
            sentences: the arrays.
            vocabulary: V words, or how many there are. Words never seen share what is left for unseen ones equally with
                <unk>, so that every token id has a probability of its own.
            order: the order of the longest n-grams, 1 to 16.
            prune: n-grams of order k seen at most prune[k - 1] times are left out (see `estimate`).
            memory_bytes: the memory that counting may hold, at least 64 KiB; the model itself comes on top.
            folder: the folder for temporary files of what does not fit, which have no name and vanish with the process;
                the system's where None.
            say: told where discounts cannot be estimated and fixed ones are taken.

        Raises:
            UsageError: for unusable arguments and tokens.
            MoekitError: without sentences or on a full disk.
        """
        if isinstance(vocabulary, int):
            vocabulary = numbered_vocabulary(vocabulary)
        elif not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary(vocabulary)
        stream = stream_of_sentences(sentences, len(vocabulary.words))
        return cls._from_stream(stream, vocabulary, order, prune, memory_bytes, folder, say)

    @classmethod
    def train_bytes(
        cls,
        documents: Iterable[bytes],
        *,
        order: int = 6,
        prune: Sequence[int] = (),
        memory_bytes: int = DEFAULT_MEMORY,
        folder: Path | None = None,
        say: Callable[[str], None] = _silent,
    ) -> Self:
        """Train on the bytes of documents, each one sentence; options and errors as in `train`."""
        sentences = (np.frombuffer(document, dtype=np.uint8) for document in documents)
        return cls.train(
            sentences, byte_vocabulary(), order=order, prune=prune, memory_bytes=memory_bytes, folder=folder, say=say
        )

    @classmethod
    def train_words(
        cls,
        text: Path | Iterable[str | bytes],
        *,
        order: int = 5,
        prune: Sequence[int] = (),
        memory_bytes: int = DEFAULT_MEMORY,
        folder: Path | None = None,
        say: Callable[[str], None] = _silent,
    ) -> Self:
        """Train on the words of a text file, or of lines, one sentence a line, parted as lmplz does (see `WordReader`).

        The vocabulary is what the text holds, and lies in memory beside memory_bytes. Options and errors as in `train`;
        MoekitError also where the file cannot be read, or <unk>, <s> or </s> is among its words.
        """
        reader = WordReader(str(text) if isinstance(text, Path) else "the text")
        _check_order(order)
        with kept_on_disk(reader.stream(text_blocks(text)), folder) as stream:
            return cls._from_stream(stream, reader.vocabulary(), order, prune, memory_bytes, folder, say)

    @classmethod
    def _from_stream(
        cls,
        stream: Iterable[Ids],
        vocabulary: Vocabulary,
        order: int,
        prune: Sequence[int],
        memory_bytes: int,
        folder: Path | None,
        say: Callable[[str], None],
    ) -> Self:
        _check_order(order)
        packing = Packing.of(order, len(vocabulary))
        runs = count_ngrams(stream, packing, memory_bytes=memory_bytes, folder=folder)
        return cls.from_counts(collect(runs, packing, len(vocabulary)), vocabulary, prune=prune, say=say)

    @classmethod
    def from_counts(
        cls,
        counted: Counted,
        vocabulary: Vocabulary,
        *,
        prune: Sequence[int] = (),
        say: Callable[[str], None] = _silent,
    ) -> Self:
        """Make the model of counts that `collect` gave; raise what `estimate` raises."""
        return cls(vocabulary, estimate(counted, prune=prune, say=say))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an ARPA file, plain or gzipped; raise MoekitError, naming file and line, where it is not sound."""
        tables, vocabulary = read_arpa(path)
        return cls(vocabulary, tables)

    def save(self, path: Path) -> None:
        """Write an ARPA file, whole or not at all; raise UsageError where `path` does not end in .arpa."""
        if path.suffix != ".arpa":
            raise UsageError(f"N-gram models are saved as ARPA files; {path} should end in .arpa.")
        write_arpa(self.tables, self.vocabulary, path)

    def log_prob(self, tokens_BT: Tensor | Integers) -> Tensor:
        """Compute log p in nats of each token but the first given those before it in its row: float64, (B, T - 1).

        tokens_BT holds integers, a tensor or an array. A row starts with an empty context, unless its first token is
        <s>.

        Raises:
            UsageError: where a token id is out of range or the shape is not (B, T) with T of at least 1.
        """
        tokens = tokens_BT.detach().cpu().numpy() if isinstance(tokens_BT, Tensor) else np.asarray(tokens_BT)
        if tokens.ndim != 2 or tokens.shape[1] < 1:
            raise UsageError(f"Tokens come as (rows, at least one token); got the shape {tokens.shape}.")
        rows, length = tokens.shape
        words = self.vocabulary.inside(tokens).ravel()
        depth = np.tile(np.minimum(np.arange(1, length + 1), self.order), rows)
        scores = self._log10(words, depth).reshape(rows, length)[:, 1:]
        return torch.from_numpy(scores * math.log(10))

    def score_sentences(self, lines: Iterable[str | bytes]) -> Iterator[Floats]:
        """Yield an array a line: log10 p of each word, and of </s> after them, given <s> and the words before.

        It does what kenlm's `full_scores` does; an array's sum is kenlm's `score`. Words are parted as in training; of
        a byte model, each byte of the line is a word. Words that are not in the vocabulary are scored as <unk>.
        """
        batch: list[list[int]] = []
        for line in lines:
            batch.append(self._encode(line))
            if len(batch) == _LINES:
                yield from self._score_batch(batch)
                batch = []
        yield from self._score_batch(batch)

    def _encode(self, line: str | bytes) -> list[int]:
        encoded = line.encode("utf-8", "surrogateescape") if isinstance(line, str) else line
        if self.vocabulary.is_bytes:
            return [byte + SPECIALS for byte in encoded]
        ids, count = self.vocabulary.ids, len(self.vocabulary)
        words = encoded.translate(_BLANKS).split(b" ")
        # the one place where token ids become inside numbers one by one; see Vocabulary.inside
        return [
            (ids[text] + SPECIALS) % count if (text := word.decode("utf-8", "surrogateescape")) in ids else UNKNOWN
            for word in words
            if word
        ]

    def _score_batch(self, batch: list[list[int]]) -> Iterator[Floats]:
        if not batch:
            return
        words = np.concatenate([np.array([BEGIN, *sentence, END], dtype=np.int64) for sentence in batch])
        lengths = np.array([len(sentence) + 2 for sentence in batch])
        ends = np.cumsum(lengths)
        places = np.arange(len(words)) - np.repeat(ends - lengths, lengths)
        scores = self._log10(words, np.minimum(places + 1, self.order))
        for end, length in zip(ends.tolist(), lengths.tolist(), strict=True):
            yield scores[end - length + 1 : end]

    def _log10(self, words: Places, depth: Places) -> Floats:
        """Compute log10 p of each of `words` (n,); depth: how many words there are to look at, that one included."""
        starts = range(0, len(words), _BLOCK)
        scores = np.empty(len(words))

        def fill(start: int) -> None:
            stop = min(start + _BLOCK, len(words))
            # the contexts of the first word end one place before it
            first = max(0, start - self.order)
            here = np.minimum(depth[first:stop], np.arange(1, stop - first + 1))
            scores[start:stop] = self._log10_block(words[first:stop], here)[start - first :]

        workers = min(os.cpu_count() or 1, len(starts))
        if workers < 2:
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, starts))
        return scores

    def _log10_block(self, words: Places, depth: Places) -> Floats:
        tables = self.tables
        scores = tables.log10_probs[0].take(words)
        below = words
        for index, found in enumerate(paths(tables.levels, words, depth), start=1):
            # p(w | c) where "c w" was seen, else backoff(c) p(w | c without its first word); c ends one place before w
            contexts = below[:-1]
            missing = found[1:] < 0
            missing &= contexts >= 0
            missing &= depth[1:] > index
            at = np.flatnonzero(missing)
            scores[at + 1] += tables.log10_backoffs[index - 1].take(contexts.take(at))
            at = np.flatnonzero(found >= 0)
            scores[at] = tables.log10_probs[index].take(found.take(at))
            below = found
        return scores


_BLANKS = bytes.maketrans(b"\0\t\r\n", b"    ")


def load_arpa(path: Path) -> NGram:
    """Load the model of an ARPA file; see `NGram.load`."""
    return NGram.load(path)


def _check_order(order: int) -> None:
    if not 1 <= order <= MAX_ORDER:
        raise UsageError(f"The order of an n-gram model is 1 to {MAX_ORDER}; got {order}.")
