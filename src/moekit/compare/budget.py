"""How many training steps a budget of time allows."""

from moekit.compare.plan import MEASURED_SHARES
from moekit.compare.worker import Calibration
from moekit.errors import UsageError
from moekit.formatting import duration_text

# Fewer steps than this, of which the first fifty warm up, say nothing about an architecture.
MINIMUM_STEPS = 100
# A share of the budget is kept back: machines slow down as well as speed up.
_USABLE = 0.92


class BudgetTooSmall(UsageError):
    """It pays for fewer than MINIMUM_STEPS."""


def affordable_steps(calibrations: list[Calibration], *, seeds: int, seconds: float) -> int:
    """Steps that each run may take so that all of them, measurements included, end within `seconds`.

    Raises BudgetTooSmall with the budget that would do where that is fewer than MINIMUM_STEPS.
    """
    a_step = seeds * sum(each.step_seconds for each in calibrations)
    fixed = seeds * sum(each.fixed_seconds + len(MEASURED_SHARES) * each.curve_seconds for each in calibrations)
    steps = int((_USABLE * seconds - fixed) / a_step)
    if steps < MINIMUM_STEPS:
        needed = (fixed + MINIMUM_STEPS * a_step) / _USABLE
        raise BudgetTooSmall(
            f"The budget leaves {duration_text(max(0.0, seconds))} for {len(calibrations)} contestants with {seeds} "
            f"seed(s) each, which need at least {duration_text(needed)}; raise --budget, or take fewer contestants or "
            "seeds or a smaller --size."
        )
    return steps
