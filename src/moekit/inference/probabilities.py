"""Softmax in double precision: from logits to probabilities.

B sequences, V vocabulary.
"""

import numpy as np
import numpy.typing as npt

from moekit.kernels.packed import Numbers

Doubles = npt.NDArray[np.float64]


def log_softmax(logits_BV: Numbers | Doubles) -> Doubles:
    """Compute natural logarithms of the probabilities, over the last dimension; of -inf, -inf."""
    shifted_BV = logits_BV.astype(np.float64)
    shifted_BV -= shifted_BV.max(-1, keepdims=True)
    shifted_BV -= np.log(np.exp(shifted_BV).sum(-1, keepdims=True))
    return shifted_BV


def softmax(logits_BV: Numbers | Doubles) -> Doubles:
    """Compute probabilities, over the last dimension."""
    shares_BV = logits_BV.astype(np.float64)
    np.exp(shares_BV - shares_BV.max(-1, keepdims=True), out=shares_BV)
    shares_BV /= shares_BV.sum(-1, keepdims=True)
    return shares_BV
