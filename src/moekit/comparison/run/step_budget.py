"""How many training steps a budget of time allows."""

import logging
import time
from collections.abc import Sequence

from moekit.comparison.run import worker_process
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import MEASURED_SHARES, ComparisonPlan, PlannedContestant, measured_steps
from moekit.core.errors import UsageError
from moekit.core.formatting import duration_text

_logger = logging.getLogger(__name__)

# Fewer steps than this, of which the first fifty warm up, say nothing about an architecture.
MINIMUM_STEPS = 100
# A contestant that nobody asked for takes part where every run, its own included, still gets so many.
JOINING_STEPS = 2 * MINIMUM_STEPS
# A share of the budget is kept back: machines slow down as well as speed up.
_USABLE = 0.92


class BudgetTooSmall(UsageError):
    """The budget pays for fewer than MINIMUM_STEPS."""


def within_budget(plan: ComparisonPlan, folder: ComparisonFolder, seconds: float) -> ComparisonPlan:
    """Give the plan with as many steps as `seconds` allow, by what each contestant is measured to cost here.

    The plan that comes out holds, of its optional contestants, those for which there is room. Raises UsageError where
    no contestant can be trained here, or where the budget is the user's and too small.
    """
    ends = time.monotonic() + seconds
    seeds = len(plan.seeds)
    required = [planned for planned in plan.contestants if planned.name not in plan.optional]
    calibrations = [found for planned in required if (found := _calibrated(plan, planned, folder))]
    if not calibrations:
        raise UsageError("No contestant could take a single step here; try a smaller --size.")
    taking = [planned.name for planned in required]
    for planned in map(plan.contestant, plan.optional):
        # Where there is no room without it, there is none with it: it need not be measured.
        if not leaves_room(calibrations, seeds=seeds, seconds=ends - time.monotonic()):
            continue
        found = _calibrated(plan, planned, folder)
        if found and leaves_room([*calibrations, found], seeds=seeds, seconds=ends - time.monotonic()):
            calibrations.append(found)
            taking.append(planned.name)
    if out := [name for name in plan.optional if name not in taking]:
        _logger.info(
            "Left out: %s. The budget has to leave every run %d steps with them; naming them takes them all the same.",
            ", ".join(out),
            JOINING_STEPS,
        )
    try:
        steps = affordable_steps(calibrations, seeds=seeds, seconds=ends - time.monotonic())
    except BudgetTooSmall as error:
        if plan.budget_asked:
            raise
        # Nobody asked for just this budget: better a comparison that takes longer than none.
        _logger.warning("%s This is the default budget: going on, with as little as says something.", error)
        steps = MINIMUM_STEPS
    training = plan.training.model_copy(update={"steps": steps, "evaluate_at": measured_steps(steps)})
    contestants = tuple(planned for planned in plan.contestants if planned.name in taking)
    return plan.model_copy(update={"contestants": contestants, "optional": ()}).with_training(training)


def affordable_steps(calibrations: Sequence[Calibrated], *, seeds: int, seconds: float) -> int:
    """Count the steps that each run may take so that all of them, measurements included, end within `seconds`.

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


def leaves_room(calibrations: Sequence[Calibrated], *, seeds: int, seconds: float) -> bool:
    """Say whether each of these gets JOINING_STEPS within `seconds`."""
    return _steps(calibrations, seeds=seeds, seconds=seconds) >= JOINING_STEPS


def _steps(calibrations: Sequence[Calibrated], *, seeds: int, seconds: float) -> int:
    a_step, fixed = _costs(calibrations, seeds)
    return int((_USABLE * seconds - fixed) / a_step)


def _costs(calibrations: Sequence[Calibrated], seeds: int) -> tuple[float, float]:
    """Give the seconds of one step of every run, and of all that does not depend on their number."""
    a_step = seeds * sum(each.step_seconds for each in calibrations)
    fixed = seeds * sum(each.fixed_seconds + len(MEASURED_SHARES) * each.curve_seconds for each in calibrations)
    return a_step, fixed


def _calibrated(plan: ComparisonPlan, planned: PlannedContestant, folder: ComparisonFolder) -> Calibrated | None:
    """Measure what the contestant costs here; gives None, and says so, where it cannot even be tried."""
    _logger.info("Measuring the speed of %s", planned.name)
    try:
        return worker_process.calibrate(folder, planned.name, plan.seeds[0])
    except worker_process.WorkerDied as death:
        _logger.warning("%s could not be measured: %s", planned.name, death)
        return None
