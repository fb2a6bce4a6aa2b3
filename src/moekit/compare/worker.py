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

from moekit import files, hardware
from moekit.compare.counted import CountingTask
from moekit.compare.measure import decode_latency, mean_bits_per_byte, measure_domains
from moekit.compare.plan import Folder
from moekit.compare.results import Run
from moekit.compare.task import Calibration, Stopped, Task, failure_text, tell
from moekit.config import NGramConfig
from moekit.errors import MoekitError, TrainingFailed
from moekit.models import build
from moekit.moe.routers import HashRouter
from moekit.training import StepLog, Trainer, new_optimizer, training_step

# The first steps, which compile and fill caches, are not counted.
_CALIBRATION_WARMUP, _CALIBRATION_STEPS = 5, 12


class Worker(Task):
    """One contestant with one seed, trained by gradient descent, the same for every kind of model."""

    def __init__(self, folder: Folder, contestant: str, seed: int) -> None:
        super().__init__(folder, contestant, seed)
        torch.manual_seed(seed)
        self.model = build(self.config)
        self._balance_hash_routers()

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The tokens of one step, as a model's loss takes them."""
        return {"tokens": self.tokens(step)}

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
            progress = trainer.run(tell)
        except (TrainingFailed, MemoryError, RuntimeError) as error:
            return self.record(trainer.progress, failure=failure_text(error))
        peak = self.peak_memory_bytes()
        final_windows = self.windows(self.plan.final_tokens)
        bits_per_byte, by_domain, routing, tables = measure_domains(
            trainer.averaged, final_windows, self.training.precision
        )
        done = self.record(progress, failure=None)
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
        return decode_latency(self.model, self.prompt_T, self.decoded_tokens, self.training.precision)


def new_task(folder: Folder, contestant: str, seed: int) -> Task:
    """The task of that contestant, by the kind of its model."""
    counted = isinstance(folder.read_plan().entry(contestant).config, NGramConfig)
    return (CountingTask if counted else Worker)(folder, contestant, seed)


def main(arguments: list[str]) -> int:
    """Run the worker; gives the exit status."""
    root, contestant, seed, *rest = arguments
    folder = Folder(Path(root))
    try:
        task = new_task(folder, contestant, int(seed))
        if rest == ["--calibrate"]:
            tell(task.calibrate())
        else:
            result = task.run()
            files.write_text(folder.result(contestant, int(seed)), result.model_dump_json(indent=1))
    except MoekitError as error:
        tell(Stopped(error=str(error), exit_status=error.exit_status))
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
