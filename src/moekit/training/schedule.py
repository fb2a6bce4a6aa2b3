"""The learning rate over the steps."""

SCHEDULE_TEXT = (
    "linear warm-up, then constant; neither it nor the average of the weights knows when training ends, so each point "
    "of a curve is what a run of that length gives"
)


def learning_rate(step: int, *, peak: float, warmup_steps: int) -> float:
    """Compute the rate of step 1, 2, …: it rises to `peak` at `warmup_steps` and stays there.

    No horizon enters, which makes budgets comparable after one run: with a cosine to zero a curve's early points would
    look worse than a short run's end, and a contestant that is ahead half-way could not show it. What a decay gives,
    the average of the weights gives at every point (Hägele et al., arXiv 2405.18392, section 4).
    """
    return peak * min(1.0, step / warmup_steps)
