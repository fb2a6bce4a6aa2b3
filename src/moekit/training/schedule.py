"""The learning rate over the steps."""

import math

SCHEDULE_TEXT = (
    "linear warm-up, then decay with the inverse square root of the step; it does not know when training ends, so each "
    "point of a curve is what a run of that length gives"
)


def learning_rate(step: int, *, peak: float, warmup_steps: int) -> float:
    """The rate of step 1, 2, …: rises to `peak` at `warmup_steps`, then falls as 1/sqrt(step) (T5, arXiv 1910.10683).

    No horizon enters, which makes budgets comparable after one run: with a cosine to zero a curve's early points would
    look worse than a short run's end, and a contestant that is ahead half-way could not show it.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    return peak * math.sqrt(warmup_steps / step)
