"""Scaling laws of all contestants at once: their forms as data, the loss that they give, and its derivatives.

A law says what bits per byte a model of size N gives after D tokens. N is the training FLOPs of a token over six: the
active parameters that multiply, attention's products included, so that C = 6 N D exactly. All forms share

    L = E + (T_N^p + T_D^p)^(1/p),    T_N = exp(u - alpha ln(N/N0)),    T_D = exp(v - beta ln(D/D0))

where E, the text's own entropy, is everybody's, and u, v, alpha and beta are a contestant's. With p = 1 it is
Chinchilla's (Hoffmann et al., arXiv 2203.15556, equation 10) with A = exp(u) N0^alpha; N0 and D0 lie in the middle of
what was trained, so that no parameter is the product of two that run away together.

Shapes: b sets of parameters at once, m parameters, n points, c contestants.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# Exponents of published laws lie between 0.12 (arXiv 2402.07871) and 0.6 (arXiv 2501.12370): about 0.3, and a factor of
# 1.6 either way is one standard deviation. Those of a mixture and of a dense model of the same paper differ by 10 to 30
# %.
_EXPONENT, _EXPONENT_SPREAD = 0.3, 0.5
_COMPUTE_EXPONENT = 0.15  # of C = 6 N D along an allocation: half of it
_OWN_SPREAD = 0.15
_TIED_SPREAD = 0.08  # a factor of 8 in expansion is two natural logarithms: 16 %
_FLOOR_SPREAD = 1.5  # of the logit of E over the lowest loss seen: E between 0.05 and 0.95 of it
_LEVEL_SPREAD = 3.0


@dataclass(frozen=True)
class LawForm:
    """A form of law.

    formula: as people write it. norm: p. tied: whether the exponents follow the expansion, alpha_c = alpha exp(g ln
    X_c), instead of being each contestant's own. compute: whether FLOPs stand for both size and tokens: L = E + K /
    C^kappa at the ends of the rungs, all of one number of tokens a parameter.
    """

    name: Literal["chinchilla", "joint", "interacting", "compute"]
    formula: str
    norm: float = 1.0
    tied: bool = False
    compute: bool = False


FORMS = (
    LawForm("chinchilla", "E + A/N^α + B/D^β"),
    LawForm("joint", "E + A/N^(α·X^g) + B/D^(β·X^h), X the expansion", tied=True),
    LawForm("interacting", "E + √((A/N^α)² + (B/D^β)²)", norm=2.0),
    LawForm("compute", "E + K/C^κ", compute=True),
)


@dataclass(frozen=True)
class LawPoints:
    """Points of curves: whose (an index), at which size and after how many tokens.

    weight: how much each counts; the points of one run are one curve, and count together as two. runs: an index of the
    run that each is of.
    """

    contestant_n: np.ndarray
    size_n: np.ndarray
    tokens_n: np.ndarray
    bits_n: np.ndarray
    weight_n: np.ndarray
    run_n: np.ndarray

    def where(self, chosen_n: np.ndarray) -> "LawPoints":
        """Give those of the points that are chosen."""
        return LawPoints(*(getattr(self, field)[chosen_n] for field in self.__dataclass_fields__))


class ScalingLaw:
    """A form of law over given contestants, as a function of a vector of parameters.

    Args:
        form: of the law.
        expansion_c: of each contestant: total over active parameters of its feed-forward layers; 1 where it is dense.
        size, tokens: the middle of what was trained (N0, D0).
        lowest: the lowest bits per byte seen; E lies below it.
    """

    def __init__(
        self, form: LawForm, expansion_c: Sequence[float], *, size: float, tokens: float, lowest: float
    ) -> None:
        self.form, self.count = form, len(expansion_c)
        self._size, self._tokens, self.lowest = size, tokens, lowest
        self.terms = 1 if form.compute else 2
        # The whole vector of a law: floor, then per term: one log exponent, levels of all, own exponents of all.
        own = np.log(np.asarray(expansion_c))[:, None] if form.tied else np.eye(self.count)
        spread_own = _TIED_SPREAD if form.tied else _OWN_SPREAD
        exponent = _COMPUTE_EXPONENT if form.compute else _EXPONENT
        mean, spread = [0.0], [_FLOOR_SPREAD]
        for _ in range(self.terms):
            mean += [np.log(exponent), *[0.0] * (self.count + own.shape[1])]
            spread += [_EXPONENT_SPREAD, *[_LEVEL_SPREAD] * self.count, *[spread_own] * own.shape[1]]
        self.prior_mean_m, self.prior_spread_m = np.array(mean), np.array(spread)
        self._own_cm, self._block = own, 1 + self.count + own.shape[1]

    def exponents(self, parameters_bm: np.ndarray, term: int) -> np.ndarray:
        """Give each contestant's exponent (b, c) of a term: 0 is size (or FLOPs), 1 is tokens."""
        start = 1 + term * self._block
        own_bm = parameters_bm[:, start + 1 + self.count : start + self._block]
        return np.asarray(np.exp(parameters_bm[:, start, None] + own_bm @ self._own_cm.T))

    def floor(self, parameters_bm: np.ndarray) -> np.ndarray:
        """Give E (b, 1), in bits per byte."""
        return np.asarray(self.lowest / (1 + np.exp(-parameters_bm[:, :1])))

    def bits(
        self, parameters_bm: np.ndarray, who_n: np.ndarray, size_n: np.ndarray, tokens_n: np.ndarray
    ) -> np.ndarray:
        """Give bits per byte (b, n) of contestants (indices) of a size after so many tokens."""
        terms, _ = self._terms_of(parameters_bm, who_n, size_n, tokens_n)
        return np.asarray(self.floor(parameters_bm) + self._joined(terms))

    def log_bits_and_slopes(self, parameters_bm: np.ndarray, points: LawPoints) -> tuple[np.ndarray, np.ndarray]:
        """Give the logarithm of bits per byte at points (b, n), and its derivatives by the parameters (b, n, m)."""
        who_n = points.contestant_n
        terms, by_exponent = self._terms_of(parameters_bm, who_n, points.size_n, points.tokens_n)
        joined_bn, floor_b1 = self._joined(terms), self.floor(parameters_bm)
        bits_bn = floor_b1 + joined_bn
        slopes_bnm = np.zeros((*bits_bn.shape, parameters_bm.shape[1]))
        slopes_bnm[:, :, 0] = floor_b1 * (1 - floor_b1 / self.lowest)
        rows_n = np.arange(len(who_n))
        for term, (value_bn, along_bn) in enumerate(zip(terms, by_exponent, strict=True)):
            start = 1 + term * self._block
            by_log_bn = value_bn * (value_bn / joined_bn) ** (self.form.norm - 1)
            slopes_bnm[:, :, start] = -by_log_bn * along_bn
            slopes_bnm[:, rows_n, start + 1 + who_n] = by_log_bn
            own = slice(start + 1 + self.count, start + self._block)
            slopes_bnm[:, :, own] = slopes_bnm[:, :, start, None] * self._own_cm[who_n]
        return np.log(bits_bn), slopes_bnm / bits_bn[:, :, None]

    def start(self, points: LawPoints, share: float, exponent: float) -> np.ndarray:
        """Give parameters (m) to start from: E a share of the lowest loss, exponents alike, levels of the middle."""
        parameters_m = self.prior_mean_m.copy()
        parameters_m[0] = np.log(share / (1 - share))
        rest_n = np.maximum(points.bits_n - share * self.lowest, 0.05) / self.terms
        for term in range(self.terms):
            start = 1 + term * self._block
            parameters_m[start] += np.log(exponent)
            for one in np.unique(points.contestant_n):
                parameters_m[start + 1 + one] = np.log(np.median(rest_n[points.contestant_n == one]))
        return parameters_m

    def _terms_of(
        self, parameters_bm: np.ndarray, who_n: np.ndarray, size_n: np.ndarray, tokens_n: np.ndarray
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Give the terms (b, n), and for each what its logarithm falls by as the logarithm of its exponent rises."""
        size_n, tokens_n = np.log(size_n / self._size), np.log(tokens_n / self._tokens)
        values, falls = [], []
        for term in range(self.terms):
            start = 1 + term * self._block
            along_n = size_n + tokens_n if self.form.compute else tokens_n if term else size_n
            falls_bn = self.exponents(parameters_bm, term)[:, who_n] * along_n
            levels_bc = parameters_bm[:, start + 1 : start + 1 + self.count]
            values.append(np.exp(np.clip(levels_bc[:, who_n] - falls_bn, -60, 60)))
            falls.append(falls_bn)
        return values, falls

    def _joined(self, terms: list[np.ndarray]) -> np.ndarray:
        if len(terms) == 1:
            return terms[0]
        return np.asarray((terms[0] ** self.form.norm + terms[1] ** self.form.norm) ** (1 / self.form.norm))
