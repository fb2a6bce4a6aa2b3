"""Is a dense model's extra budget better spent on it as it is, or on it upcycled?

A dense model of `moekit compare` is trained on the embedded corpus; from its averaged weights, with a fresh optimiser
and a new warm-up, each of ARMS then spends half as many FLOPs again on the text that follows. Held-out bits per byte
are measured on the way. `never stopped` is the dense run that just goes on, optimiser and all. A run that was killed
goes on where `--folder` is given.

    python benchmarks/upcycling.py --steps 240 --seeds 0,1,2 --out benchmarks/results/upcycling.json
"""

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from comparison_training import comparison_training
from environment import environment
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.spec.contestants import SIZES, default_contestants
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import ModelConfig
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling
from moekit.data import Corpus, held_out_windows, load_corpus, training_batch
from moekit.models import LanguageModel, build, load
from moekit.training import Trainer, TrainingConfig

DENSE, NEVER_STOPPED = "dense", "never stopped"
ARMS = {
    "copy": Upcycling(),
    "noise": Upcycling(method="noise"),
    "drop": Upcycling(method="drop"),
    "granular": Upcycling(granularity=2),
}
# Shares of the extra budget after which the held-out text is measured, beside its start.
SHARES = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Bench:
    """The parts that all runs have in common.

    Attributes:
        training: how the dense model is trained.
        extra: the share of that training that comes on top.
    """

    dense: ModelConfig
    corpus: Corpus
    windows: dict[str, torch.Tensor]
    training: TrainingConfig
    extra: float
    folder: Path

    def trainer(self, model: LanguageModel, training: TrainingConfig, state: Path, before: int = 0) -> Trainer:
        """Make the training on the text after `before` steps; the average of the weights goes on as after so many."""

        def batch(step: int) -> dict[str, torch.Tensor]:
            given = training_batch(
                self.corpus,
                step=before + step,
                sequences=training.sequences,
                context=training.context,
                seed=training.seed,
            )
            return {"tokens": given}

        state.parent.mkdir(parents=True, exist_ok=True)
        trainer = Trainer(model, training, batch, self.score, state)
        if trainer.progress.step == 0:
            trainer.average.n_averaged.fill_(before)
        return trainer

    def score(self, model: LanguageModel) -> float:
        """Measure held-out bits per byte over all domains."""
        return mean_bits_per_byte(model.eval(), self.windows, self.training.precision)

    def seed(self, seed: int) -> list[dict[str, Any]]:
        """Run all arms of one seed."""
        training, folder = self.training.model_copy(update={"seed": seed}), self.folder / f"seed-{seed}"
        torch.manual_seed(seed)
        trainer = self.trainer(build(self.dense), training, folder / "base.safetensors")
        trainer.run(lambda report: None)
        if not (folder / DENSE).exists():
            trainer.averaged.save(folder / DENSE)
        rows = [self._never_stopped(trainer, folder), self._arm(DENSE, self.dense, training, folder)]
        for name, options in ARMS.items():
            conversion = plan_upcycling(folder / DENSE, options.model_copy(update={"seed": seed}))
            if not (folder / name).exists():
                conversion.run(folder / name)
            rows.append(self._arm(name, conversion.config, training, folder))
        return rows

    def _never_stopped(self, base: Trainer, folder: Path) -> dict[str, Any]:
        """Continue the dense run itself from the state that it saved."""
        done = base.config.steps
        more = round(self.extra * done)
        measured = frozenset(done + round(share * more) for share in SHARES)
        training = base.config.model_copy(update={"steps": done + more, "evaluate_at": measured})
        state = folder / "never-stopped.safetensors"
        if not state.exists():
            shutil.copyfile(folder / "base.safetensors", state)
        progress = self.trainer(build(self.dense), training, state).run(lambda report: None)
        points = [(0, self.score(base.averaged))]
        points += [(point.step - done, point.bits_per_byte) for point in progress.points]
        return self._row(NEVER_STOPPED, training.seed, self.dense, points)

    def _arm(self, name: str, config: ModelConfig, base: TrainingConfig, folder: Path) -> dict[str, Any]:
        """Train what lies in the folder of that name for the extra FLOPs."""
        budget = round(self.extra * base.steps) * costs_of(self.dense, base.context).flops_per_token
        steps = budget // costs_of(config, base.context).flops_per_token
        measured = frozenset(max(1, round(share * steps)) for share in SHARES)
        training = base.model_copy(update={"steps": steps, "evaluate_at": measured})
        model = load(folder / name)
        assert isinstance(model, LanguageModel)
        points = [(0, self.score(model))]
        progress = self.trainer(model, training, folder / f"{name}.safetensors", before=base.steps).run(
            lambda report: None
        )
        points += [(point.step, point.bits_per_byte) for point in progress.points]
        return self._row(name, base.seed, config, points)

    def _row(self, name: str, seed: int, config: ModelConfig, points: list[tuple[int, float]]) -> dict[str, Any]:
        """Describe one run: its model, and (step after the dense model, bits per byte) from the start on."""
        print(f"seed {seed} {name:14} {[round(bits, 4) for _, bits in points]}", file=sys.stderr, flush=True)
        costs = costs_of(config, self.training.context)
        return {
            "arm": name,
            "seed": seed,
            "params_total": costs.params_total,
            "flops_per_token": costs.flops_per_token,
            "points": [{"step": step, "bits_per_byte": bits} for step, bits in points],
        }


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=240, help="of the dense model")
    parser.add_argument("--extra", type=float, default=0.5, help="FLOPs on top, as a share of the dense model's")
    parser.add_argument("--warmup", type=int, default=20, help="steps, of the dense model and of each arm")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--held-out-tokens", type=int, default=4096, help="of each domain")
    parser.add_argument("--folder", type=Path, help="keep the runs here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    size = SIZES["xs"]
    dense = default_contestants(size)["dense"].config(size)
    assert isinstance(dense, ModelConfig)
    corpus = load_corpus(())
    training = comparison_training(dense, steps=options.steps, sequences=size.sequences, warmup_steps=options.warmup)
    windows = held_out_windows(corpus, context=size.context, tokens_per_domain=options.held_out_tokens)
    where = environment("numpy")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        bench = Bench(dense, corpus, windows, training, options.extra, folder)
        rows = [row for seed in map(int, options.seeds.split(",")) for row in bench.seed(seed)]
    for name in (NEVER_STOPPED, DENSE, *ARMS):
        of_arm = [row["points"] for row in rows if row["arm"] == name]
        means = [fmean(point["bits_per_byte"] for point in points) for points in zip(*of_arm, strict=True)]
        print(f"{name:14}" + "".join(f"{mean:9.4f}" for mean in means))
    if options.out:
        record = {
            **where,
            "settings": training.model_dump(mode="json") | {"extra": options.extra, "shares": SHARES},
            "corpus_sha256": corpus.sha256,
            "held_out_tokens": options.held_out_tokens * len(windows),
            "arms": {name: arm.model_dump(mode="json") for name, arm in ARMS.items()},
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
