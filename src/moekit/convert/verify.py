"""The proof that a conversion kept the function: the logits of both models on one probe, a layer in memory at a time.

In double precision, so that what differs is the weights and not the order of sums. N tokens, D model width.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.core.errors import MoekitError
from moekit.models.stored_model import StoredModel, row_count, row_width
from moekit.models.streamed_decoder import StreamedDecoder, TokenBatch

_HEAD_ROWS = 8192
_COMPARED_BYTES = 16 << 20
# Of the logits' standard deviation: what rounding leaves is far less, what a wrong scale does far more.
EXACT = 1e-5


@dataclass(frozen=True)
class Difference:
    """How far two models are apart: max |Δlogit| over real tokens.

    logit_std: the standard deviation of the dense model's logits.
    """

    maximum: float
    logit_std: float
    tokens: int

    @property
    def relative(self) -> float:
        """The maximum in standard deviations."""
        return self.maximum / self.logit_std if self.logit_std else math.inf if self.maximum else 0.0


def probe_of(vocab_size: int, context: int, *, rows: int = 3, tokens: int = 16, seed: int = 0) -> TokenBatch:
    """Draw random tokens; each row but the first ends in padding."""
    length = min(tokens, context)
    draw = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(0, vocab_size, (rows, length), generator=draw)
    real_BT = torch.arange(length) < torch.tensor([[max(1, length - 3 * row)] for row in range(rows)])
    return TokenBatch(tokens_BT, real_BT)


def compare(dense: StoredModel, result: StoredModel, probe: TokenBatch) -> Difference:
    """Run both on the probe, one layer of one of them in memory at a time.

    Raises MoekitError where logits are no numbers, which no difference would show.
    """
    with torch.no_grad():
        ours, theirs = (StreamedDecoder(stored, torch.float64).final(probe) for stored in (result, dense))
        real_BT = probe.real_BT
        maximum = total = squares = 0.0
        vocabulary = dense.config.vocab_size
        for begin in range(0, vocabulary, _HEAD_ROWS):
            end = min(vocabulary, begin + _HEAD_ROWS)
            expected, found = (
                _logits(model, h_BTD[real_BT], begin, end) for model, h_BTD in ((dense, theirs), (result, ours))
            )
            for model, logits in ((dense, expected), (result, found)):
                if not bool(logits.isfinite().all()):
                    raise MoekitError(f"{model.folder} computes what is no number; some of its weights are none.")
            maximum = max(maximum, float((found - expected).abs().max()))
            total += float(expected.sum())
            squares += float(expected.square().sum())
    count = int(real_BT.sum()) * vocabulary
    return Difference(maximum, math.sqrt(max(0.0, squares / count - (total / count) ** 2)), int(real_BT.sum()))


def check_copied(dense: StoredModel, result: StoredModel) -> None:
    """Raise MoekitError unless every parameter that both have is the same, bit for bit."""
    name = first_difference(dense, result, (name for name in dense.shapes if name in result.shapes))
    if name is not None:
        raise MoekitError(f"{name!r} in the result is not what it is in {dense.folder}; the copy is damaged.")


def first_difference(one: StoredModel, other: StoredModel, names: Iterable[str]) -> str | None:
    """Find the first parameter whose bits are not the same in both models; None where all are."""
    for name in names:
        shape = one.shapes[name]
        step = max(1, _COMPARED_BYTES // (row_width(shape) * 8))
        for begin in range(0, row_count(shape), step):
            end = min(row_count(shape), begin + step)
            a, b = one.rows(name, begin, end), other.rows(name, begin, end)
            if a.dtype is not b.dtype or not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
                return name
    return None


def tolerance(scales: Iterable[float], dtype: torch.dtype) -> float:
    """Give what logits of an exact conversion may differ by: more where factors are rounded to less than fp32."""
    rounded = any(math.frexp(scale)[0] != 0.5 for scale in scales)
    narrow = torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
    return 16 * torch.finfo(dtype).eps if rounded and narrow else EXACT


def memory_bytes(*models: Mapping[str, Tensor]) -> int:
    """Estimate what `compare` takes for models of such parameters.

    That is the largest layer, of its experts one, in double precision and as it is read.
    """
    return max(_largest_layer(shapes) for shapes in models) * (8 + 4)


def _largest_layer(shapes: Mapping[str, Tensor]) -> int:
    sizes = {"head": _HEAD_ROWS * shapes["embedding.weight"].shape[1]}
    for name, shape in shapes.items():
        if name.startswith("layers."):
            layer = ".".join(name.split(".")[:2])
            size = shape.numel() // shape.shape[0] if ".experts." in name else shape.numel()
            sizes[layer] = sizes.get(layer, 0) + size
    return max(sizes.values())


def _logits(model: StoredModel, h_ND: Tensor, begin: int, end: int) -> Tensor:
    """Compute the logits of a part of the vocabulary, (N, end - begin)."""
    name = "embedding.weight" if model.config.tie_embeddings else "head.weight"
    return F.linear(h_ND, model.rows(name, begin, end).double()) * model.config.logit_scale
