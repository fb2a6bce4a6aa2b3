"""How many training steps a budget of time allows."""

from collections.abc import Sequence

from moekit.compare.run.run_task import Calibration
from moekit.compare.spec.comparison_plan import MEASURED_SHARES
from moekit.core.errors import UsageError
from moekit.core.formatting import duration_text

# Fewer steps than this, of which the first fifty warm up, say nothing about an architecture.
MINIMUM_STEPS = 100
# A contestant that nobody asked for takes part where every run, its own included, still gets so many.
JOINING_STEPS = 2 * MINIMUM_STEPS
# A share of the budget is kept back: machines slow down as well as speed up.
_USABLE = 0.92


class BudgetTooSmall(UsageError):
    """It pays for fewer than MINIMUM_STEPS."""


def affordable_steps(calibrations: Sequence[Calibration], *, seeds: int, seconds: float) -> int:
    """Steps that each run may take so that all of them, measurements included, end within `seconds`.

    Raises BudgetTooSmall with the budget that would do where that is fewer than MINIMUM_STEPS.
    """
    steps = _steps(calibrations, seeds=seeds, seconds=seconds)
    if steps < MINIMUM_STEPS:
        a_step, fixed = _costs(calibrations, seeds)
        needed = (fixed + MINIMUM_STEPS * a_step) / _USABLE
        raise BudgetTooSmall(
            f"The budget leaves {duration_text(max(0.0, seconds))} for {len(calibrations)} contestants with {seeds} "
            f"seed(s) each, which need at least {duration_text(needed)}; raise --budget, or take fewer contestants or "
            "seeds or a smaller --size."
        )
    return steps


def leaves_room(calibrations: Sequence[Calibration], *, seeds: int, seconds: float) -> bool:
    """Whether each of these gets JOINING_STEPS within `seconds`."""
    return _steps(calibrations, seeds=seeds, seconds=seconds) >= JOINING_STEPS


def _steps(calibrations: Sequence[Calibration], *, seeds: int, seconds: float) -> int:
    a_step, fixed = _costs(calibrations, seeds)
    return int((_USABLE * seconds - fixed) / a_step)


def _costs(calibrations: Sequence[Calibration], seeds: int) -> tuple[float, float]:
    """Seconds of one step of every run, and of all that does not depend on their number."""
    a_step = seeds * sum(each.step_seconds for each in calibrations)
    fixed = seeds * sum(each.fixed_seconds + len(MEASURED_SHARES) * each.curve_seconds for each in calibrations)
    return a_step, fixed
