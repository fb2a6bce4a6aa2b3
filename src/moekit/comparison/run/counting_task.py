"""The run of an n-gram model, which is counted and not trained by gradient descent.

It sees the same windows in the same order as every other contestant, each window a sentence. A point of its curve is
the model of the windows up to there, counted anew; the seconds of the point are those of that counting and estimation.
B windows, T tokens, V byte values.
"""

import itertools
import math
import sys
import time

import numpy as np
import numpy.typing as npt
import torch

from moekit.comparison.results_schema import Decode, Run
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.run.run_task import FAILURES, RunTask, failure_text
from moekit.comparison.run.worker_messages import Calibrated
from moekit.comparison.spec.comparison_plan import MEASURED_SHARES
from moekit.config import BYTE_VOCAB_SIZE, NGramConfig
from moekit.core import hardware
from moekit.core.errors import TrainingFailed
from moekit.models import NGram
from moekit.training import Interrupted, StepReport, TrainingHistory
from moekit.training.loop import Point
from moekit.training.signals import stop_request

_CALIBRATION_STEPS = 32


class CountingTask(RunTask):
    """An n-gram contestant with one seed. There is no state to save: one that was stopped starts again."""

    def run(self) -> Run:
        """Count at each point of the curve and measure; a failure gives a Run that says why."""
        history = TrainingHistory()
        try:
            model = self._count(history)
        except FAILURES as error:
            return self.record(history, failure=failure_text(error))
        peak = self.peak_memory_bytes()
        found = self.final_figures(model)
        return self.record(history, failure=None).model_copy(
            update={
                "peak_memory_bytes": peak,
                "params_by_part": params_by_part(model),
                "weight_bytes": table_bytes(model),
                **vars(found),
                "decode": Decode(
                    engine="tables",
                    engine_reason="it multiplies nothing: probabilities are looked up, timed at the end of its run, "
                    "beside whatever other run there was",
                    weight_type="counts",
                    weight_bytes=table_bytes(model),
                    cache_bytes=0,
                    context=len(self.prompt_T),
                    threads=1,
                    round_ms=[lookup_latency(model, self.prompt_T, self.decoded_tokens)],
                ),
            }
        )

    def calibrate(self) -> Calibrated:
        """Time one counting of a few steps' windows and one measurement."""
        begin = time.perf_counter()
        windows_BT = self._drawn(_CALIBRATION_STEPS)
        drawn = time.perf_counter()
        model = self._model(windows_BT)
        counted = time.perf_counter()
        train_loss_of(model, windows_BT)
        scored = time.perf_counter()
        mean_bits_per_byte(model, self.windows(self.plan.curve_tokens), self.training.precision)
        measured = time.perf_counter()
        lookup_latency(model, self.prompt_T, self.decoded_tokens)
        decoded = time.perf_counter()
        curve_seconds = measured - scored
        # A step is drawn and scored once, and counted again at each point of the curve that lies behind it.
        once = (drawn - begin) + (scored - counted)
        return Calibrated(
            step_seconds=(once + sum(MEASURED_SHARES) * (counted - drawn)) / _CALIBRATION_STEPS,
            curve_seconds=curve_seconds,
            fixed_seconds=begin
            - hardware.process_started()
            + (decoded - measured)
            + curve_seconds * self.plan.final_tokens / self.plan.curve_tokens,
            memory_bytes=hardware.peak_resident_bytes(),
        )

    def keep_company(self) -> None:
        """Count the same windows again and again."""
        windows_BT = self._drawn(_CALIBRATION_STEPS)
        for step in itertools.count(1):
            self._model(windows_BT)
            self.tell(StepReport(step=step, loss=0.0, seconds=0.0))

    def _count(self, history: TrainingHistory) -> NGram:
        """Count the model of all windows, with every point of its curve in `history`."""
        drawn_BT = self._drawn(self.training.steps)
        curve_windows = self.windows(self.plan.curve_tokens)
        steps = sorted(self.training.evaluate_at)
        # Nothing is known before the first point: every byte value is as likely as any other.
        train_loss, spent = math.log2(BYTE_VOCAB_SIZE), 0.0
        with stop_request() as stop:
            for step, following in zip(steps, [*steps[1:], None], strict=True):
                rows = step * self.training.sequences
                begin = time.perf_counter()
                model = self._model(drawn_BT[:rows])
                history.seconds = time.perf_counter() - begin
                spent += history.seconds
                history.step = step
                bits_per_byte = mean_bits_per_byte(model, curve_windows, self.training.precision)
                if not math.isfinite(bits_per_byte):
                    raise TrainingFailed(f"the held-out loss was no longer a number at step {step}")
                history.points.append(
                    Point(step=step, seconds=history.seconds, bits_per_byte=bits_per_byte, train_loss=train_loss)
                )
                self.tell(StepReport(step=step, loss=train_loss, seconds=spent, bits_per_byte=bits_per_byte))
                if stop.is_set():
                    raise Interrupted(f"Stopped after step {step}.")
                if following is None:
                    return model
                train_loss = train_loss_of(model, drawn_BT[rows : following * self.training.sequences])
                del model  # two at a time would count twice in the memory
        raise AssertionError("the last step is always measured")

    def _drawn(self, steps: int) -> npt.NDArray[np.uint8]:
        """Draw the windows of steps 1 to `steps`, one after the other, (B, T + 1)."""
        sequences = self.training.sequences
        drawn_BT = np.empty((steps * sequences, self.training.context + 1), dtype=np.uint8)
        for step in range(steps):
            drawn_BT[step * sequences : (step + 1) * sequences] = self.tokens(step + 1).numpy()
        return drawn_BT

    def _model(self, windows_BT: npt.NDArray[np.uint8]) -> NGram:
        assert isinstance(self.config, NGramConfig)
        # Standard error is the run's log.
        return NGram.train_bytes(
            (window_T.tobytes() for window_T in windows_BT),
            order=self.config.order,
            say=lambda text: print(text, file=sys.stderr),  # noqa: T201
        )


def train_loss_of(model: NGram, windows_BT: npt.NDArray[np.uint8]) -> float:
    """Give bits per byte of windows that the model has not seen yet, as a training step's are before the step."""
    return -float(model.log_prob(windows_BT).mean()) / math.log(2)


def params_by_part(model: NGram) -> dict[str, int]:
    """Count the numbers that the model holds, by order: a probability an n-gram, a backoff weight a context."""
    tables = model.tables
    backoffs = [*map(len, tables.log10_backoffs), 0]
    return {
        f"{order}-grams": len(probs) + weights
        for order, (probs, weights) in enumerate(zip(tables.log10_probs, backoffs, strict=True), start=1)
    }


def table_bytes(model: NGram) -> int:
    """Count the bytes of the tables: n-grams, probabilities and backoff weights, without the index that finds them."""
    tables = model.tables
    columns = [*(level.keys for level in tables.levels), *tables.log10_probs, *tables.log10_backoffs]
    return sum(column.nbytes for column in columns)


def lookup_latency(model: NGram, prompt_T: torch.Tensor, tokens: int) -> list[float]:
    """Time each of `tokens` greedy steps after the prompt, in milliseconds: the probabilities of all 256 next bytes."""
    seen = prompt_T.tolist()
    candidates_V1 = np.arange(BYTE_VOCAB_SIZE)[:, None]
    milliseconds = []
    for _ in range(tokens):
        begin = time.perf_counter()
        context_VT = np.tile(seen[-max(1, model.order - 1) :], (BYTE_VOCAB_SIZE, 1))
        log_prob_VT = model.log_prob(np.concatenate([context_VT, candidates_V1], axis=1))
        seen.append(int(log_prob_VT[:, -1].argmax()))
        milliseconds.append((time.perf_counter() - begin) * 1e3)
    return milliseconds
