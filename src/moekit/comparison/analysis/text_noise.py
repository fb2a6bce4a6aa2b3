"""How much a difference depends on which text was held out, apart from the seeds.

All contestants are measured on the same documents. Drawing those anew, with replacement and within each domain, tells
how the difference would be on other text of the same kind: a paired bootstrap (Efron 1979; Koehn 2004, Statistical
significance tests for machine translation evaluation). Domains are what they are, and are not drawn.

D draws, P parts of a domain's text.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from moekit.comparison.results_schema import Run
from moekit.comparison.verdict_schema import TextSpread

_DRAWS = 1000
_INTERVAL = (0.025, 0.975)


def text_spread(pairs: Sequence[tuple[Run, Run]], measured_bytes: Mapping[str, Sequence[int]]) -> TextSpread | None:
    """Give the 95 % interval, over texts, of the mean difference in bits per byte; None where that is not known.

    Args:
        pairs: a contestant's runs and the baseline's, one pair a seed.
        measured_bytes: of each part of the held-out text, by domain.
    """
    domains = [domain for domain, counts in measured_bytes.items() if counts]
    parts = sum(len(measured_bytes[domain]) for domain in domains)
    complete = all(
        len(run.bits_by_part.get(domain, ())) == len(measured_bytes[domain])
        for pair in pairs for run in pair for domain in domains
    )  # fmt: skip
    if not pairs or not complete or parts <= len(domains):
        return None
    random = np.random.default_rng(0)
    bits_D, bytes_D = np.zeros(_DRAWS), np.zeros(_DRAWS)
    for domain in domains:
        gap_P = np.mean(
            [np.subtract(run.bits_by_part[domain], base.bits_by_part[domain]) for run, base in pairs], axis=0
        )
        drawn_DP = random.multinomial(gap_P.size, np.full(gap_P.size, 1 / gap_P.size), size=_DRAWS)
        bits_D += drawn_DP @ gap_P
        bytes_D += drawn_DP @ np.array(measured_bytes[domain])
    low, high = np.quantile(bits_D / bytes_D, _INTERVAL)
    return TextSpread(low=float(low), high=float(high), parts=parts)
