"""What every run of a comparison has in common, whatever kind of model it trains."""

import sys

import torch
from pydantic import BaseModel

from moekit.compare.results_schema import CurvePoint, Run
from moekit.compare.spec.comparison_plan import ComparisonFolder, ComparisonPlan
from moekit.compare.spec.model_costs import costs_of
from moekit.core import hardware
from moekit.core.errors import TrainingFailed
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.training import Progress, StepReport

# What a training may fail of; `failure_text` says which are a result.
FAILURES = (TrainingFailed, MemoryError, RuntimeError)


class Calibration(BaseModel):
    """What a contestant costs here. fixed_seconds: start, final measurement and decoding; curve_seconds: one point."""

    step_seconds: float
    curve_seconds: float
    fixed_seconds: float


class Stopped(BaseModel):
    """The last line of a worker that ended for a reason that is not the contestant's."""

    error: str
    exit_status: int


class Task:
    """One contestant with one seed. Memory is counted from when this is made, before there is a model."""

    def __init__(self, folder: ComparisonFolder, contestant: str, seed: int) -> None:
        self.folder, self.contestant, self.seed = folder, contestant, seed
        self.plan: ComparisonPlan = folder.read_plan()
        self.config = self.plan.entry(contestant).config
        self.training = self.plan.training_of(seed)
        self.corpus = Corpus.open(folder.corpus)
        self.resident_before = hardware.resident_bytes()
        hardware.reset_peak_resident()

    def run(self) -> Run:
        """Train (or go on training) and measure; a training that fails gives a Run that says why."""
        raise NotImplementedError

    def calibrate(self) -> Calibration:
        """Time a little training and one measurement; what was trained is thrown away."""
        raise NotImplementedError

    def tokens(self, step: int) -> torch.Tensor:
        """The windows of one step, (B, T + 1): the same for every contestant."""
        return training_batch(
            self.corpus,
            step=step,
            sequences=self.training.sequences,
            context=self.training.context,
            seed=self.seed,
        )

    def windows(self, tokens_per_domain: int) -> dict[str, torch.Tensor]:
        """Held-out windows: the same for every contestant, seed and point of the curve."""
        return held_out_windows(self.corpus, context=self.training.context, tokens_per_domain=tokens_per_domain)

    @property
    def prompt_T(self) -> torch.Tensor:
        """Held-out text that fills half of the context: what stands before the tokens that are decoded."""
        context = self.training.context
        return next(iter(self.windows(context).values()))[0, : context // 2]

    @property
    def decoded_tokens(self) -> int:
        """How many tokens are decoded and timed."""
        return min(self.plan.decode_tokens, self.training.context // 2)

    def peak_memory_bytes(self) -> int:
        """The most memory held since this was made, less what was held then."""
        return hardware.peak_resident_bytes() - self.resident_before

    def flops(self, step: int) -> float:
        """Spent in training after so many steps."""
        return float(step * self.training.step_tokens * costs_of(self.config, self.training.context).flops_per_token)

    def record(self, progress: Progress, failure: str | None) -> Run:
        """What the training itself tells; the final measurements are added to it."""
        tokens = progress.step * self.training.step_tokens
        return Run(
            seed=self.seed,
            status="failed" if failure else "done",
            failure=failure,
            tokens=tokens,
            seconds=progress.seconds,
            train_tokens_per_second=tokens / progress.seconds if progress.seconds else None,
            loss_spikes=progress.spikes,
            warnings=list(progress.collapse.warnings.values()),
            curve=[
                CurvePoint(
                    step=point.step,
                    tokens=point.step * self.training.step_tokens,
                    flops=self.flops(point.step),
                    seconds=point.seconds,
                    bits_per_byte=point.bits_per_byte,
                    train_loss=point.train_loss,
                )
                for point in progress.points
            ],
        )


def failure_text(error: BaseException) -> str:
    """Why training failed, in words; an error that is neither its loss nor memory is a defect and raised again."""
    if isinstance(error, TrainingFailed):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return "it ran out of memory"
    raise error


def tell(message: StepReport | Calibration | Stopped) -> None:
    """Say something to the process that started this one: a line of JSON."""
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()
