"""What every run of a comparison has in common, whatever kind of model it trains.

B windows of a batch, N windows, T tokens of a context.
"""

import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moekit.comparison.results_schema import CurvePoint, Run
from moekit.comparison.run.measurements import DomainFigures, measure_domains
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.spec.comparison_folder import ComparisonFolder
from moekit.comparison.spec.comparison_plan import ComparisonPlan
from moekit.comparison.spec.model_costs import costs_of
from moekit.core import hardware
from moekit.core.errors import TrainingFailed
from moekit.data import Corpus, held_out_parts, held_out_windows, training_batch
from moekit.models import LanguageModel, NGram
from moekit.training import StepReport, TrainingHistory

Tell = Callable[[StepReport], None]

# What a training may fail of; `failure_text` says which are a result.
FAILURES = (TrainingFailed, MemoryError, RuntimeError)


class RunTask(ABC):
    """One contestant with one seed. Memory is counted from when this is made, before there is a model.

    Args:
        folder: of the comparison, with its plan and its corpus.
        contestant: its name in the plan.
        seed: of the run.
        tell: gets a report of each step.
    """

    def __init__(self, folder: ComparisonFolder, contestant: str, seed: int, tell: Tell) -> None:
        self.folder, self.contestant, self.seed, self.tell = folder, contestant, seed, tell
        self.plan: ComparisonPlan = folder.read_plan()
        self.config = self.plan.contestant(contestant).config
        self.training = self.plan.training_of(contestant, seed)
        self.corpus = Corpus.open(folder.corpus)
        self.resident_before = hardware.resident_bytes()
        hardware.reset_peak_resident()

    @abstractmethod
    def run(self) -> Run:
        """Train (or go on training) and measure; a training that fails gives a Run that says why."""

    @abstractmethod
    def calibrate(self) -> Calibrated:
        """Time a little training and one measurement; what was trained is thrown away."""

    @abstractmethod
    def keep_company(self) -> None:
        """Compute as in training, each step told, until this process is stopped: company for those being measured."""

    @contextmanager
    def thrown_away(self) -> Iterator[Path]:
        """Give a folder for what calibration writes, which is gone after the block."""
        self.folder.scratch.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.folder.scratch) as temporary:
            yield Path(temporary)

    def tokens(self, step: int) -> torch.Tensor:
        """Draw the windows of one step, (B, T + 1): the same for every contestant."""
        return training_batch(
            self.corpus,
            step=step,
            sequences=self.training.sequences,
            context=self.training.context,
            seed=self.seed,
        )

    def windows(self, tokens_per_domain: int) -> dict[str, torch.Tensor]:
        """Give held-out windows by domain, (N, T + 1): the same for every contestant, seed and point of the curve."""
        return held_out_windows(self.corpus, context=self.training.context, tokens_per_domain=tokens_per_domain)

    def final_figures(self, model: LanguageModel | NGram) -> DomainFigures:
        """Measure a model on the text of the final figures."""
        wanted = self.plan.final_tokens
        parts = held_out_parts(self.corpus, context=self.training.context, tokens_per_domain=wanted)
        return measure_domains(model, self.windows(wanted), self.training.precision, parts)

    @property
    def prompt_T(self) -> torch.Tensor:
        """What stands before the tokens that are decoded, (T / 2,)."""
        return decode_prompt(self.corpus, self.training.context)

    @property
    def decoded_tokens(self) -> int:
        """How many tokens are decoded and timed."""
        return min(self.plan.decode_tokens, self.training.context // 2)

    def peak_memory_bytes(self) -> int:
        """Give the most memory held since this was made, less what was held then."""
        return hardware.peak_resident_bytes() - self.resident_before

    def flops(self, step: int) -> float:
        """Count the FLOPs spent in training after so many steps."""
        return float(step * self.training.step_tokens * costs_of(self.config, self.training.context).flops_per_token)

    def record(self, history: TrainingHistory, failure: str | None) -> Run:
        """Say what the training itself tells; the final measurements are added to it."""
        tokens = history.step * self.training.step_tokens
        return Run(
            seed=self.seed,
            status="failed" if failure else "done",
            failure=failure,
            tokens=tokens,
            seconds=history.seconds,
            train_tokens_per_second=tokens / history.seconds if history.seconds else None,
            loss_spikes=history.spikes,
            warnings=list(history.collapse.warnings.values()),
            curve=[
                CurvePoint(
                    step=point.step,
                    tokens=point.step * self.training.step_tokens,
                    flops=self.flops(point.step),
                    seconds=point.seconds,
                    bits_per_byte=point.bits_per_byte,
                    train_loss=point.train_loss,
                )
                for point in history.points
            ],
        )


def decode_prompt(corpus: Corpus, context: int) -> torch.Tensor:
    """Give held-out text, (T / 2,), that fills half of the context."""
    windows = held_out_windows(corpus, context=context, tokens_per_domain=context)
    return next(iter(windows.values()))[0, : context // 2]


def failure_text(error: BaseException) -> str:
    """Say why training failed; an error that is neither its loss nor memory is a defect and raised again."""
    if isinstance(error, TrainingFailed):
        return str(error)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return "it ran out of memory"
    raise error
