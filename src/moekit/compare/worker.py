"""One training run in a process of its own: `python -m moekit.compare.worker FOLDER CONTESTANT SEED [--calibrate]`.

A process each, so that its peak of memory is its own, and running out of memory ends one run and not the comparison.
Everything it needs lies in the comparison's folder, everything it finds out goes there; progress goes to standard
output, one JSON object a line. A training that fails is a result too; what concerns all runs (a full disk, a stop) is
told as a `Stopped` on the last line.
"""

import statistics
import sys
import time
from pathlib import Path

import torch
from pydantic import BaseModel

from moekit import files, hardware
from moekit.compare.measure import decode_latency, mean_bits_per_byte, measure_domains
from moekit.compare.plan import Folder, Plan
from moekit.compare.results import CurvePoint, Run
from moekit.counting import training_flops_per_token
from moekit.data import Corpus, held_out_windows, training_batch
from moekit.errors import MoekitError, TrainingFailed
from moekit.models import Decoder
from moekit.moe.routers import HashRouter
from moekit.training import Progress, StepLog, StepReport, Trainer, new_optimizer, training_step

# The first steps, which compile and fill caches, are not counted.
_CALIBRATION_WARMUP, _CALIBRATION_STEPS = 5, 12


class Calibration(BaseModel):
    """What a contestant costs here. fixed_seconds: start, final measurement and decoding; curve_seconds: one point."""

    step_seconds: float
    curve_seconds: float
    fixed_seconds: float


class Stopped(BaseModel):
    """The last line of a worker that ended for a reason that is not the contestant's."""

    error: str
    exit_status: int


class Worker:
    """One contestant with one seed."""

    def __init__(self, folder: Folder, contestant: str, seed: int) -> None:
        self.folder, self.contestant, self.seed = folder, contestant, seed
        self.plan: Plan = folder.read_plan()
        self.training = self.plan.training_of(seed)
        self.corpus = Corpus.open(folder.corpus)
        self.resident_before = hardware.resident_bytes()
        hardware.reset_peak_resident()
        torch.manual_seed(seed)
        self.model = Decoder(self.plan.entry(contestant).config)
        self._balance_hash_routers()

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The tokens of one step: the same for every contestant."""
        tokens_BT = training_batch(
            self.corpus,
            step=step,
            sequences=self.training.sequences,
            context=self.training.context,
            seed=self.seed,
        )
        return {"tokens": tokens_BT}

    def windows(self, tokens_per_domain: int) -> dict[str, torch.Tensor]:
        """Held-out windows: the same for every contestant, seed and point of the curve."""
        return held_out_windows(self.corpus, context=self.training.context, tokens_per_domain=tokens_per_domain)

    def run(self) -> Run:
        """Train (or go on training) and measure; a training that fails gives a Run that says why."""
        curve_windows = self.windows(self.plan.curve_tokens)
        trainer = Trainer(
            self.model,
            self.training,
            self.batch,
            lambda model: mean_bits_per_byte(model, curve_windows, self.training.precision),
            self.folder.state(self.contestant, self.seed),
            StepLog(self.folder.run(self.contestant, self.seed), tensorboard=self.plan.tensorboard),
        )
        try:
            progress = trainer.run(_tell)
        except (TrainingFailed, MemoryError, RuntimeError) as error:
            return self._record(trainer.progress, failure=failure_text(error))
        peak = hardware.peak_resident_bytes() - self.resident_before
        final_windows = self.windows(self.plan.final_tokens)
        bits_per_byte, by_domain, routing, tables = measure_domains(
            trainer.averaged, final_windows, self.training.precision
        )
        done = self._record(progress, failure=None)
        return done.model_copy(
            update={
                "peak_memory_bytes": peak,
                "bits_per_byte": bits_per_byte,
                "bits_per_byte_by_domain": by_domain,
                "routing": routing,
                "experts_by_domain": tables,
                "decode_ms": self._decode(),
            }
        )

    def calibrate(self) -> Calibration:
        """Time a few training steps and one measurement; the model is thrown away."""
        begin = time.perf_counter()
        optimizer = new_optimizer(self.model, self.training)
        seconds = []
        for step in range(1, _CALIBRATION_STEPS + 1):
            batch = self.batch(step)
            step_begin = time.perf_counter()
            training_step(self.model, optimizer, batch, self.training, rate=1e-4)
            seconds.append(time.perf_counter() - step_begin)
        measuring = time.perf_counter()
        mean_bits_per_byte(self.model.eval(), self.windows(self.plan.curve_tokens), self.training.precision)
        curve_seconds = time.perf_counter() - measuring
        decoding = time.perf_counter()
        self._decode()
        decode_seconds = time.perf_counter() - decoding
        start_seconds = begin - hardware.process_started()
        return Calibration(
            step_seconds=statistics.median(seconds[_CALIBRATION_WARMUP:]),
            curve_seconds=curve_seconds,
            fixed_seconds=start_seconds
            + decode_seconds
            + curve_seconds * self.plan.final_tokens / self.plan.curve_tokens,
        )

    def _balance_hash_routers(self) -> None:
        """Even out their loads by how often the training meets each byte."""
        routers = [layer.router for layer in self.model.moe_layers if isinstance(layer.router, HashRouter)]
        if routers:
            frequency_V = torch.from_numpy(self.corpus.byte_frequencies())
            for router in routers:
                router.balance(frequency_V)

    def _decode(self) -> list[float]:
        context = self.training.context
        prompt_T = next(iter(self.windows(context).values()))[0, : context // 2]
        tokens = min(self.plan.decode_tokens, context // 2)
        return decode_latency(self.model, prompt_T, tokens, self.training.precision)

    def _record(self, progress: Progress, failure: str | None) -> Run:
        config = self.plan.entry(self.contestant).config
        tokens = progress.step * self.training.step_tokens
        flops_per_token = training_flops_per_token(config, self.training.context)
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
                    flops=float(point.step * self.training.step_tokens * flops_per_token),
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


def _tell(message: StepReport | Calibration | Stopped) -> None:
    sys.stdout.write(message.model_dump_json() + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    """Run the worker; gives the exit status."""
    root, contestant, seed, *rest = arguments
    folder = Folder(Path(root))
    try:
        worker = Worker(folder, contestant, int(seed))
        if rest == ["--calibrate"]:
            _tell(worker.calibrate())
        else:
            result = worker.run()
            files.write_text(folder.result(contestant, int(seed)), result.model_dump_json(indent=1))
    except MoekitError as error:
        _tell(Stopped(error=str(error), exit_status=error.exit_status))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
