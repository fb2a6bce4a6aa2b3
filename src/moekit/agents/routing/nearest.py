"""The most similar examples decide.

N texts, M examples, F features, K classes.
"""

from collections.abc import Sequence

import numpy as np

from moekit.agents.routing.features import Vectors

_NEIGHBOURS = 5
"""More than one, so that no single odd example decides; few, so that a class of few examples can win."""


class Nearest:
    """Scores of classes: the cosines of a vector with its five nearest examples, added up by their class.

    x_MF: of length 1, as are those it is asked about. Of equally near examples those that come first count.
    """

    def __init__(self, x_MF: Vectors, class_M: Sequence[int], classes: int) -> None:
        self._x_MF, self._one_hot_MK = x_MF, np.eye(classes)[list(class_M)]

    def __call__(self, x_NF: Vectors) -> Vectors:
        """Compute scores_NK, 0 to 5; opposite examples count as 0."""
        cosine_NM = np.maximum(x_NF @ self._x_MF.T, 0)
        nearest_NM = np.argsort(-cosine_NM, axis=1, kind="stable")[:, :_NEIGHBOURS]
        kept_NM = np.zeros_like(cosine_NM)
        np.put_along_axis(kept_NM, nearest_NM, np.take_along_axis(cosine_NM, nearest_NM, 1), 1)
        scores: Vectors = kept_NM @ self._one_hot_MK
        return scores
