"""Modified interpolated Kneser-Ney: from counts to probabilities and backoff weights.

S. F. Chen and J. Goodman, "An Empirical Study of Smoothing Techniques for Language Modeling", 1999, section 4.1.6, in
the form of K. Heafield et al., "Scalable Modified Kneser-Ney Language Model Estimation", 2013, section 3, as KenLM's
lmplz computes it (lm/builder), with these differences: double precision; a discount of exactly 0, which would leave
unseen words without probability, counts as one that cannot be estimated; and lmplz 2025-03 takes the true count, not
the adjusted one, of the last n-gram of each lower order into its counts of counts, which depends on the order of words.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from moekit.core.errors import MoekitError, UsageError
from moekit.models.ngram.ngram_counts import Packing
from moekit.models.ngram.sorting import Run
from moekit.models.ngram.trie import Level, Places
from moekit.models.ngram.vocabulary import BEGIN, END, Ids

Floats = npt.NDArray[np.float64]

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of n-grams seen once, twice and more often where they cannot be estimated (lmplz --discount_fallback)."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The log10 probabilities and backoff weights of a model. Order k is at index k - 1; the longest has no backoff.

    Attributes:
        bits: the bits of a word's number in the keys.
        levels: the n-grams of orders 2 to N.
        log10_probs: for each order an array (n,); that of order 1 is by inside number of the word.
        log10_backoffs: the same of the backoff weights.
    """

    bits: int
    levels: list[Level]
    log10_probs: list[Floats]
    log10_backoffs: list[Floats]


@dataclass(frozen=True, eq=False)
class Counted:
    """Counts of all orders; keys of order k >= 2 are at index k - 2, as in `Level`, counts (n,) of order k at k - 1.

    Attributes:
        adjusted: how many words an n-gram was seen after; how often it was seen where it begins with <s> or is a
            longest one.
        seen: how often an n-gram was seen.
    """

    bits: int
    keys: list[Places]
    adjusted: list[Places]
    seen: list[Places]


def discounts(adjusted: Places) -> tuple[float, float, float] | None:
    """Estimate D1, D2 and D3+ from the adjusted counts of one order, zeros left out; None where that is impossible.

    Y = n1 / (n1 + 2 n2); Dj = j - (j + 1) Y n(j+1) / nj, nj being how many n-grams have the count j (Chen & Goodman,
    equation 26). It is impossible where one of n1, n2 and n3 is 0 or a discount is not within (0, j].
    """
    _, *n = np.bincount(np.minimum(adjusted, 5), minlength=6).tolist()
    if not all(n[:3]):
        return None
    found = [j - (j + 1) * Fraction(n[0], n[0] + 2 * n[1]) * Fraction(n[j], n[j - 1]) for j in (1, 2, 3)]
    if not all(0 < discount <= j for j, discount in enumerate(found, start=1)):
        return None
    first, second, third = map(float, found)
    return first, second, third


def collect(runs: Iterable[Run], packing: Packing, ids: int) -> Counted:
    """Collect the counts of all orders from the sorted N-grams of `count_ngrams`, in one pass.

    It takes as much memory as the model itself.
    """
    order = packing.order
    parts_keys: list[list[Places]] = [[] for _ in range(order)]
    parts_before: list[list[Places]] = [[] for _ in range(order)]
    entries = [0] * order
    totals = [0] * order
    last: list[Ids] | None = None
    for run in runs:
        words = packing.unpack(run.columns)
        new = np.zeros(len(run), dtype=np.bool_)
        new[0] = last is None
        valid = np.ones(len(run), dtype=np.bool_)
        parents: Places = np.zeros(0, dtype=np.int64)
        for depth, word in enumerate(words):
            new[1:] |= word[1:] != word[:-1]
            if last is not None:
                new[0] |= word[0] != last[depth][0]
            if depth:
                valid = words[depth - 1] != BEGIN
            begins = new & valid
            at = np.flatnonzero(begins)
            key = word[at].astype(np.int64)
            if depth:
                key |= parents[at] << packing.bits
            parts_keys[depth].append(key)
            # how many were counted before each n-gram begins: the differences are how often each was seen
            counted = np.cumsum(np.where(valid, run.counts, 0))
            parts_before[depth].append((counted - np.where(valid, run.counts, 0))[at] + totals[depth])
            totals[depth] += int(counted[-1])
            parents = np.cumsum(begins) + (entries[depth] - 1)
            entries[depth] += len(at)
        last = [word[-1:] for word in words]
    keys = [np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64) for parts in parts_keys]
    seen = [
        np.diff(np.concatenate([*parts, [total]])) if parts else np.zeros(0, dtype=np.int64)
        for parts, total in zip(parts_before, totals, strict=True)
    ]
    return _counted(keys, seen, packing.bits, ids)


def _counted(keys: list[Places], seen: list[Places], bits: int, ids: int) -> Counted:
    mask = (1 << bits) - 1
    adjusted = []
    for depth, count in enumerate(seen):
        if depth + 1 == len(seen):
            adjusted.append(count)
        else:
            after = np.bincount(keys[depth + 1] >> bits, minlength=len(count))
            adjusted.append(np.where(keys[depth] & mask == BEGIN, count, after))
    # level 1 has a place for every word, seen or not
    unigrams = keys[0]
    if len(keys) > 1:
        keys[1] = unigrams[keys[1] >> bits] << bits | keys[1] & mask
    for counts in (adjusted, seen):
        dense = np.zeros(ids, dtype=np.int64)
        dense[unigrams] = counts[0]
        counts[0] = dense
    return Counted(bits, keys[1:], adjusted, seen)


def estimate(counted: Counted, *, prune: Sequence[int] = (), say: Callable[[str], None]) -> Tables:
    """Estimate the probabilities of all n-grams and the backoff weights of all contexts.

    p(w | c) = (a - D(a)) / sum(a) + gamma(c) p(w | c without its first word), gamma(c) = sum(D(a)) / sum(a), the sums
    being over what follows c; below the unigrams lies 1 / |V|, V being all words, <unk> and </s>.

    Args:
        counted: the counts.
        prune: n-grams of order k seen at most prune[k - 1] times are left out, as by lmplz --prune; the last number
            holds for all longer ones.
        say: told which orders fall back to the discounts FALLBACK.

    Raises:
        MoekitError: where nothing was counted.
        UsageError: where `prune` would drop words or decreases.
    """
    order = len(counted.adjusted)
    thresholds = _thresholds(prune, order)
    ids = len(counted.adjusted[0])
    if not counted.adjusted[0][END]:
        raise MoekitError("There is no text to count n-grams in; give at least one sentence.")
    full = [Level(counted.bits, keys) for keys in counted.keys]
    levels: list[Level] = []
    log10_probs: list[Floats] = []
    log10_backoffs: list[Floats] = []
    # probabilities of the order below; at first the uniform ones, which are the same for all words
    below = np.full(1, 1 / (ids - 1))
    contexts = np.zeros(ids, dtype=np.int64)
    kept_below = np.ones(1, dtype=np.bool_)
    places_below: Places = np.zeros(1, dtype=np.int64)
    for depth, adjusted in enumerate(counted.adjusted):
        kept = counted.seen[depth] > thresholds[depth] if thresholds[depth] else np.ones(len(adjusted), dtype=np.bool_)
        if depth == 0:
            parents = np.zeros(ids, dtype=np.int64)
        else:
            level = full[depth - 1]
            parents, words = level.parents, level.first_words
            # the context of "a b c" is "a b": where the context "b" of "b c" lies, continued by "a"
            contexts = words if depth == 1 else full[depth - 2].find(contexts[parents], words)
        discount = np.array([0.0, *(discounts(adjusted) or _fall_back(depth + 1, say))])
        weighted, gammas = _interpolate(adjusted, kept, contexts, discount, 1 if depth == 0 else len(below))
        probs = weighted + gammas[contexts] * below[parents]
        if depth == 0:
            probs[BEGIN] = 1  # by lmplz's convention; <s> is never predicted
        else:
            backoffs = np.log10(gammas, out=np.zeros_like(gammas), where=gammas > 0)
            log10_backoffs.append(backoffs[kept_below])
            keys = level.keys if not any(thresholds) else places_below[parents] << counted.bits | words
            levels.append(Level(counted.bits, keys[kept]))
        log10_probs.append(np.minimum(np.log10(probs[kept]), 0))
        places_below = np.cumsum(kept) - 1
        kept_below, below = kept, probs
    return Tables(counted.bits, levels, log10_probs, log10_backoffs)


def _interpolate(
    adjusted: Places, kept: npt.NDArray[np.bool_], contexts: Places, discount: Floats, many: int
) -> tuple[Floats, Floats]:
    """Compute the discounted part of each n-gram's probability, and gamma of `many` contexts, 0 where none follows."""
    off = discount[np.minimum(adjusted, 3)]
    totals = np.bincount(contexts, weights=adjusted, minlength=many)
    # what is pruned leaves all its count to the order below
    taken = np.bincount(contexts, weights=np.where(kept, off, adjusted), minlength=many)
    gammas = np.divide(taken, totals, out=np.zeros(many), where=totals > 0)
    return (adjusted - off) / totals[contexts], gammas


def _thresholds(prune: Sequence[int], order: int) -> list[int]:
    if len(prune) > order:
        raise UsageError(f"Pruning takes at most one threshold an order, {order}; got {len(prune)}.")
    if prune and (prune[0] != 0 or list(prune) != sorted(prune)):
        raise UsageError(
            f"Thresholds of pruning start with 0, words being kept, and never decrease; got {list(prune)}."
        )
    return [*prune, *[prune[-1] if prune else 0] * (order - len(prune))]


def _fall_back(order: int, say: Callable[[str], None]) -> tuple[float, float, float]:
    say(
        f"The text is too small or too regular to estimate the discounts of {order}-grams: "
        f"{', '.join(map(str, FALLBACK))} are taken."
    )
    return FALLBACK
