"""How many training steps a budget of time allows, and in how many lanes."""

import logging
import math
import time
from collections.abc import Mapping, Sequence

from moekit.comparison.run import side_by_side
from moekit.comparison.run.lanes import fits_in_memory, lanes_here, memory_estimate, possible_lanes
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.run.worker_process import WorkerDied
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import MEASURED_SHARES, ComparisonPlan, PlannedLanes
from moekit.comparison.spec.run_order import ordered_runs, seconds_together
from moekit.core import hardware
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


def unmeasured_lanes(plan: ComparisonPlan) -> PlannedLanes:
    """Give the lanes of a comparison without a budget, whose speed nobody measures: the most that memory allows.

    So a comparison of so many tokens has the same bits whenever it is repeated on this machine.
    """
    memory = [memory_estimate(planned, plan.training) for planned in plan.contestants] * len(plan.seeds)
    possible = possible_lanes(hardware.hardware().cores, len(memory))
    return next((lanes for lanes in possible if fits_in_memory(lanes.count, memory)), possible[-1])


def within_budget(plan: ComparisonPlan, folder: ComparisonFolder, seconds: float) -> ComparisonPlan:
    """Give the plan with lanes and as many steps as `seconds` allow, by what each contestant is measured to cost here.

    The plan that comes out holds, of its optional contestants, those for which there is room. Raises UsageError where
    no contestant can be trained here, or where the budget is the user's and too small.
    """
    ends = time.monotonic() + seconds
    seeds = len(plan.seeds)
    required = [planned.name for planned in plan.contestants if planned.name not in plan.optional]
    lanes, costs = _fastest_lanes(plan, folder, required)
    if not costs:
        raise UsageError("No contestant could take a single step here; try a smaller --size.")

    def room(found: Mapping[str, Calibrated]) -> bool:
        return leaves_room(found, seeds=seeds, lanes=lanes.count, seconds=ends - time.monotonic())

    # Where there is no room without them, there is none with them: they need not be measured.
    if plan.optional and room(costs):
        joining = _calibrated(plan, folder, plan.optional, lanes)
        for name, found in joining.items():
            if room(costs | {name: found}):
                costs[name] = found
    if out := [name for name in plan.optional if name not in costs]:
        _logger.info(
            "Left out: %s. The budget has to leave every run %d steps with them; naming them takes them all the same.",
            ", ".join(out),
            JOINING_STEPS,
        )
    try:
        steps = affordable_steps(costs, seeds=seeds, lanes=lanes.count, seconds=ends - time.monotonic())
    except BudgetTooSmall as error:
        if plan.budget_asked:
            raise
        # Nobody asked for just this budget: better a comparison that takes longer than none.
        _logger.warning("%s This is the default budget: going on, with as little as says something.", error)
        steps = MINIMUM_STEPS
    contestants = tuple(
        planned.model_copy(update={"run_seconds": run_seconds(costs[planned.name], steps)})
        if planned.name in costs
        else planned
        for planned in plan.contestants
        if planned.name in required or planned.name in costs
    )
    settled = {"contestants": contestants, "optional": (), "lanes": lanes}
    return plan.model_copy(update=settled).with_steps(steps)


def affordable_steps(costs: Mapping[str, Calibrated], *, seeds: int, lanes: int, seconds: float) -> int:
    """Count the steps that each run may take so that all of them, measurements included, end within `seconds`.

    Raises BudgetTooSmall with the budget that would do where that is fewer than MINIMUM_STEPS.
    """
    steps = _steps(costs, seeds=seeds, lanes=lanes, seconds=seconds)
    if steps < MINIMUM_STEPS:
        needed = seconds_for(costs, MINIMUM_STEPS, seeds=seeds, lanes=lanes) / _USABLE
        raise BudgetTooSmall(
            f"The budget leaves {duration_text(max(0.0, seconds))} for {len(costs)} contestants with {seeds} "
            f"seed(s) each, which need at least {duration_text(needed)}; raise --budget, or take fewer contestants or "
            "seeds or a smaller --size."
        )
    return steps


def leaves_room(costs: Mapping[str, Calibrated], *, seeds: int, lanes: int, seconds: float) -> bool:
    """Say whether each of these gets JOINING_STEPS within `seconds`."""
    return _steps(costs, seeds=seeds, lanes=lanes, seconds=seconds) >= JOINING_STEPS


def run_seconds(cost: Calibrated, steps: int) -> float:
    """Give what one run of so many steps takes, from the start of its process to its end."""
    return cost.fixed_seconds + len(MEASURED_SHARES) * cost.curve_seconds + steps * cost.step_seconds


def seconds_for(costs: Mapping[str, Calibrated], steps: int, *, seeds: int, lanes: int) -> float:
    """Give what all runs take, in the order and the lanes in which they will be trained."""
    lengths = {name: run_seconds(cost, steps) for name, cost in costs.items()}
    runs = ordered_runs(list(costs), range(seeds), lengths)
    return seconds_together((lengths[run.contestant] for run in runs), lanes)


def _steps(costs: Mapping[str, Calibrated], *, seeds: int, lanes: int, seconds: float) -> int:
    """Find the most steps for which all runs end in time, 0 where there are none, by halving."""
    enough, too_many = 0, 1
    while seconds_for(costs, too_many, seeds=seeds, lanes=lanes) <= _USABLE * seconds:
        enough, too_many = too_many, 2 * too_many
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        if seconds_for(costs, middle, seeds=seeds, lanes=lanes) <= _USABLE * seconds:
            enough = middle
        else:
            too_many = middle
    return enough


def _fastest_lanes(
    plan: ComparisonPlan, folder: ComparisonFolder, names: Sequence[str]
) -> tuple[PlannedLanes, dict[str, Calibrated]]:
    """Find the lanes in which all runs together go fastest, and what each contestant costs in them.

    In the most lanes that fit into memory, by estimate and then by measurement, all are measured. Fewer lanes, of more
    threads, are tried on the two whose steps are the longest, for as long as they are faster.
    """
    runs = len(names) * len(plan.seeds)
    estimates = [memory_estimate(plan.contestant(name), plan.training) for name in names] * len(plan.seeds)
    best, tried = PlannedLanes(), names
    costs: dict[str, Calibrated] = {}
    for lanes in possible_lanes(hardware.hardware().cores, runs):
        if lanes.count > 1 and not fits_in_memory(lanes.count, estimates):
            continue
        sample = sorted(costs, key=lambda name: costs[name].step_seconds)[-2:] if costs else names
        here = _calibrated(plan, folder, sample, lanes)
        memory = [cost.memory_bytes for cost in here.values()] * len(plan.seeds)
        if not here or (lanes.count > 1 and not fits_in_memory(lanes.count, memory)):
            continue
        if costs and _pace(here, lanes, runs) >= _pace({name: costs[name] for name in here}, best, runs):
            break
        best, tried, costs = lanes, sample, here
    if others := [name for name in names if name not in tried]:
        costs |= _calibrated(plan, folder, others, best)
    _logger.info("Training %d run(s) at a time, with %d thread(s) each", best.count, best.threads or 1)
    return best, costs


def _pace(costs: Mapping[str, Calibrated], lanes: PlannedLanes, runs: int) -> float:
    """Give the seconds that a step of each takes, shared among the lanes of which `runs` runs keep busy."""
    busy = runs / math.ceil(runs / lanes.count)
    return sum(cost.step_seconds for cost in costs.values()) / busy


def _calibrated(
    plan: ComparisonPlan, folder: ComparisonFolder, names: Sequence[str], lanes: PlannedLanes
) -> dict[str, Calibrated]:
    """Measure what contestants cost in these lanes, without those that cannot even be tried: says which."""
    _logger.info(
        "Measuring the speed of %s, %d at a time with %d thread(s) each", ", ".join(names), lanes.count, lanes.threads
    )
    found = side_by_side.calibrate(folder, names, plan.seeds[0], lanes_here(lanes))
    for name, cost in found.items():
        if isinstance(cost, WorkerDied):
            _logger.warning("%s could not be measured: %s", name, cost)
    return {name: cost for name, cost in found.items() if isinstance(cost, Calibrated)}
