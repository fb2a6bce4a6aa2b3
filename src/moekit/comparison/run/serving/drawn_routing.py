"""Routers whose experts are chosen as often as a trained router's are, in a model of random weights.

A random router has nothing of a trained one's preferences, and a decoder has no place for a bias that would give it
some. Here every token of the vocabulary has its experts, drawn so that tokens that come equally often give each expert
its share. A router is solved for so that it chooses them, which it can where what it reads depends on the token alone:
in a model whose norms are so small that what its layers add to the embedding does not count (`random_weights.py`).

V vocabulary, E experts, K experts per token, D model width.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moekit.kernels.packed import Numbers

Choices = npt.NDArray[np.int64]


def draw_choices(share_E: Sequence[float], top_k: int, tokens: int, random: np.random.Generator) -> Choices:
    """Draw the K experts of each token, (V, K), none twice, so that over all tokens expert e has its share of them.

    The shares are met as nearly as whole numbers allow: by systematic sampling, in which the experts lie one after the
    other, each as long as its share, and a token has those at K points as far apart as all tokens are long.

    Raises:
        ValueError: where a share is more than 1 / K: no expert is chosen twice by one token.
    """
    wanted_E = np.asarray(share_E, np.float64) / np.sum(share_E) * tokens * top_k
    if wanted_E.max() > tokens * (1 + 1e-9):
        raise ValueError(f"an expert's share of {wanted_E.max() / tokens / top_k:.3f} is more than 1 / {top_k}")
    count_E = np.floor(np.minimum(wanted_E, tokens)).astype(np.int64)
    left = tokens * top_k - int(count_E.sum())
    # Those that lost most by rounding, unless every token has them already.
    rest_E = np.where(count_E < tokens, wanted_E - count_E, -1.0)
    count_E[np.argsort(-rest_E, kind="stable")[:left]] += 1
    order_E = random.permutation(len(count_E))
    laid_KV = np.repeat(order_E, count_E[order_E]).reshape(top_k, tokens)
    return np.ascontiguousarray(laid_KV.T[random.permutation(tokens)])


def shares_of(choice_VK: Choices, experts: int) -> npt.NDArray[np.float64]:
    """Give share_E, each expert's share of the choices."""
    return np.bincount(choice_VK.ravel(), minlength=experts) / choice_VK.size


def solve_router(input_VD: Numbers, choice_VK: Choices, experts: int) -> Numbers:
    """Give weight_ED with logits of 1 for the experts that each token chooses and 0 for all others.

    input_VD: what the router reads at each token. There are at most as many tokens as D.
    """
    wanted_VE = np.zeros((len(choice_VK), experts))
    np.put_along_axis(wanted_VE, choice_VK, 1.0, axis=1)
    input_VD = input_VD.astype(np.float64)
    # The least weights that do it: X^T (X X^T)^-1.
    weight_DE = input_VD.T @ np.linalg.solve(input_VD @ input_VD.T, wanted_VE)
    return np.ascontiguousarray(weight_DE.T, np.float32)
