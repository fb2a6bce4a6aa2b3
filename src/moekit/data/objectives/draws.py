"""Random numbers that are a pure function of a seed and a step, whatever the version of numpy."""

import math

import numpy as np
from numpy.typing import NDArray


def uniform(shape: tuple[int, ...], *, seed: int, step: int, stream: int) -> NDArray[np.float64]:
    """Draw numbers in [0, 1).

    Args:
        shape: of the result.
        seed: the seed of the training.
        step: the training step.
        stream: 1 or more, another for each use; stream 0 is what places the windows of a batch.
    """
    philox = np.random.Philox(
        key=np.array([seed, step], dtype=np.uint64), counter=np.array([0, 0, 0, stream], dtype=np.uint64)
    )
    # The upper 53 bits: more would be rounded, some of them up to 1.
    raw = np.asarray(philox.random_raw(math.prod(shape)), dtype=np.uint64)
    numbers: NDArray[np.float64] = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(shape)
