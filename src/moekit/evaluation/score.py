"""Scoring documents with any model that has `log_prob`.

B windows in a batch, T tokens of a window.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from moekit.data import Document
from moekit.data.tokenizers import Tokenizer

# Windows of a batch hold about so many tokens together: enough to keep the processor busy, few enough to stay small.
_BATCH_TOKENS = 4096


class Evaluation(BaseModel):
    """Bits and counts of what was scored.

    bits_per_byte: bits per byte of UTF-8. perplexity: per token, exp of the mean loss in nats. tokens: those scored.
    bytes: of the documents they belong to. by_domain: bits per byte of each domain.
    """

    model_config = ConfigDict(frozen=True)

    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int
    context: int
    by_domain: dict[str, float]


class Scorer:
    """Sums log probabilities over windows of at most `context` + 1 tokens.

    A document is cut into windows whose first token is context only: the tokenizer's start token for the first, the
    last token of the window before for the others, so that each token is scored once.
    """

    def __init__(self, log_prob: Callable[[Tensor], Tensor], tokenizer: Tokenizer, context: int) -> None:
        self.log_prob, self.tokenizer, self.context = log_prob, tokenizer, context

    def score(self, text: str) -> tuple[float, int, int]:
        """(nats, tokens, bytes) of a text. Without a start token its first token is not scored, nor are its bytes."""
        ids = self.tokenizer.encode(text)
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


def evaluate(
    log_prob: Callable[[Tensor], Tensor],
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    context: int,
    on_document: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Score all documents. log_prob: tokens_BT to log probabilities (B, T - 1) in nats of all but the first.

    on_document: called with the number of documents done. Raises ValueError where nothing could be scored.
    """
    scorer = Scorer(log_prob, tokenizer, context)
    sums: dict[str, list[float]] = {}
    tokens = 0
    for index, document in enumerate(documents):
        nats, count, size = scorer.score(document.text.decode("utf-8"))
        of_domain = sums.setdefault(document.domain, [0.0, 0.0])
        of_domain[0] += nats
        of_domain[1] += size
        tokens += count
        on_document(index + 1)
    nats, size = (sum(of_domain[part] for of_domain in sums.values()) for part in (0, 1))
    if not tokens or not size:
        raise ValueError("there is no token to score")
    return Evaluation(
        bits_per_byte=nats / math.log(2) / size,
        perplexity=math.exp(min(nats / tokens, 700.0)),
        tokens=tokens,
        bytes=int(size),
        context=context,
        by_domain={name: n / math.log(2) / s for name, (n, s) in sorted(sums.items()) if s},
    )


def _windows(ids: list[int], context: int) -> Iterator[list[int]]:
    for begin in range(0, len(ids) - 1, context):
        yield ids[begin : begin + context + 1]


def _batches(windows: Iterable[list[int]]) -> Iterator[Tensor]:
    """Windows of one length together; only the last of a document is shorter."""
    batch: list[list[int]] = []
    for window in windows:
        if batch and (len(window) != len(batch[0]) or len(batch) * len(window) >= _BATCH_TOKENS):
            yield torch.tensor(batch)
            batch = []
        batch.append(window)
    if batch:
        yield torch.tensor(batch)
