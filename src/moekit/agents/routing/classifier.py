"""Multinomial logistic regression: from vectors of texts to the probability of each class.

N examples, F features, K classes.
"""

import math
from collections.abc import Sequence

import numpy as np

from moekit.agents.routing.features import Vectors

_PENALTY = 1e-3
_STEPS = 500


class Classifier:
    """p_K = softmax(x W + b), fitted to vectors of length 1 and their classes.

    The objective is the mean cross-entropy, each class weighing the same, plus 1e-3 / 2 |W|^2. It is convex, and its
    minimum is found by Nesterov's accelerated gradient method (Lectures on Convex Optimization, section 2.2) from zero,
    with the step and the momentum that its curvature allows: nothing is drawn at random. The weights are sums of
    examples, W = x^T a, and a is what is fitted, so that the cost depends on the number of examples and not on that of
    features.

    Not scikit-learn's LogisticRegression: it is fitted in the dimension of the features, and a route would have to
    install its 50 MB and wait a second and a half longer for its import to find the same minimum.
    """

    def __init__(self, x_NF: Vectors, class_N: Sequence[int], classes: int) -> None:
        one_hot_NK = np.eye(classes)[list(class_N)]
        share_N1 = (one_hot_NK / (classes * np.maximum(one_hot_NK.sum(0), 1))).sum(1, keepdims=True)
        share_N1 /= share_N1.sum()
        # The bias is a further feature, always 1, with the same penalty: shifts of all classes cancel out.
        x_NF = _with_one(x_NF)
        gram_NN = x_NF @ x_NF.T
        # Softmax has a curvature of 1/2 at most, and each vector a squared length of at most 2.
        curvature = 1.0 + _PENALTY
        slow = math.sqrt(_PENALTY / curvature)
        a_NK = before_NK = np.zeros_like(one_hot_NK)
        for _ in range(_STEPS):
            ahead_NK = a_NK + (1 - slow) / (1 + slow) * (a_NK - before_NK)
            error_NK = share_N1 * (softmax(gram_NN @ ahead_NK) - one_hot_NK)
            before_NK, a_NK = a_NK, ahead_NK - (error_NK + _PENALTY * ahead_NK) / curvature
        self.weight_FK: Vectors = x_NF.T @ a_NK

    def __call__(self, x_NF: Vectors) -> Vectors:
        """Compute p_NK, the probability of each class."""
        return softmax(_with_one(x_NF) @ self.weight_FK)


def softmax(logits_NK: Vectors) -> Vectors:
    """Compute each row's exponentials, adding up to 1."""
    shifted_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    divided: Vectors = shifted_NK / shifted_NK.sum(axis=1, keepdims=True)
    return divided


def _with_one(x_NF: Vectors) -> Vectors:
    return np.concatenate([x_NF, np.ones((len(x_NF), 1))], axis=1)
