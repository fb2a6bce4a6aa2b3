"""Scores of documents by any model that has `log_prob`.

B windows in a batch, T tokens of a window.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.core.errors import UsageError
from moekit.data import Document
from moekit.data.tokenizers import Tokenizer
from moekit.models import NGram

# Windows of a batch hold about so many tokens together: enough to keep the processor busy, few enough to stay small.
_BATCH_TOKENS = 4096


class Evaluation(BaseModel):
    """Bits and counts of what was scored.

    Attributes:
        bits_per_byte: bits per byte of UTF-8.
        perplexity: perplexity per token, exp of the mean loss in nats.
        tokens: the tokens that were scored.
        bytes: the bytes of the documents they belong to.
        by_domain: bits per byte of each domain.
    """

    model_config = ConfigDict(frozen=True)

    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int
    by_domain: dict[str, float]


Score = tuple[float, int, int]
"""(nats, tokens, bytes) of a text."""


class WindowScorer:
    """Sums log probabilities over windows of at most `context` + 1 tokens.

    A document is cut into windows whose first token is context only: the tokenizer's start token for the first, the
    last token of the window before for the others, so that each token is scored once.

    Args:
        log_prob: from tokens_BT to log probabilities (B, T - 1) in nats of all but the first of each row.
        tokenizer: the model's.
        context: the tokens that a prediction may see at most.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], tokenizer: Tokenizer, context: int) -> None:
        self.log_prob, self.tokenizer, self.context = log_prob, tokenizer, context

    def __call__(self, text: str) -> Score:
        """Score a text; without a start token the first token is not scored, nor are its bytes."""
        ids = self.tokenizer.encode_plain(text)
        size = len(text.encode("utf-8"))
        if self.tokenizer.start is not None:
            ids = [self.tokenizer.start, *ids]
        elif ids:
            size -= len(self.tokenizer.decode(ids[:1]).encode("utf-8"))
        if len(ids) < 2:
            return 0.0, 0, 0
        nats = 0.0
        for windows_BT in _batches(_windows(ids, self.context)):
            with torch.no_grad():
                nats -= float(self.log_prob(windows_BT).double().sum())
        return nats, len(ids) - 1, size


class LineScorer:
    """Scores a text line by line, as a model of words sees it: each line a sentence, its end one more token.

    A word that the model does not know costs what the model gives all such words together, and nothing for its letters.
    """

    def __init__(self, model: NGram) -> None:
        self.model = model

    def __call__(self, text: str) -> Score:
        """Score a text; the end of a line stands for its line feed."""
        nats, tokens = 0.0, 0
        for scores in self.model.score_sentences(text.split("\n")):
            nats -= float(scores.sum()) * math.log(10)
            tokens += len(scores)
        return nats, tokens, len(text.encode("utf-8"))


def score_documents(
    score: Callable[[str], Score],
    documents: Sequence[Document],
    on_document: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Score all documents.

    Args:
        score: gives (nats, tokens, bytes) of a text.
        documents: what to score.
        on_document: called with the number of documents done.

    Raises:
        UsageError: where there is nothing to score.
    """
    sums: dict[str, tuple[float, int]] = {}
    tokens = 0
    for index, document in enumerate(documents):
        nats, count, size = score(document.text.decode("utf-8"))
        before = sums.get(document.domain, (0.0, 0))
        sums[document.domain] = (before[0] + nats, before[1] + size)
        tokens += count
        on_document(index + 1)
    total_nats = sum(nats for nats, _ in sums.values())
    total_bytes = sum(size for _, size in sums.values())
    if not tokens or not total_bytes:
        raise UsageError("There is no token to score in that text.")
    return Evaluation(
        bits_per_byte=total_nats / math.log(2) / total_bytes,
        # exp(709) is the largest double
        perplexity=math.exp(min(total_nats / tokens, 700.0)),
        tokens=tokens,
        bytes=total_bytes,
        by_domain={name: nats / math.log(2) / size for name, (nats, size) in sorted(sums.items()) if size},
    )


def _windows(ids: list[int], context: int) -> Iterator[list[int]]:
    for begin in range(0, len(ids) - 1, context):
        yield ids[begin : begin + context + 1]


def _batches(windows: Iterable[list[int]]) -> Iterator[Tensor]:
    """Put windows of one length together; only the last of a document is shorter."""
    batch: list[list[int]] = []
    for window in windows:
        if batch and (len(window) != len(batch[0]) or len(batch) * len(window) >= _BATCH_TOKENS):
            yield torch.tensor(batch)
            batch = []
        batch.append(window)
    if batch:
        yield torch.tensor(batch)
