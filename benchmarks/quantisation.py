"""What quantising costs in quality, by type: a dense decoder and a mixture of experts of the same active size.

Both are trained on the embedded corpus, written in every type, and scored on its held-out text in bits per byte:
- `as_computed`: token by token on the native kernels, where activations are rounded, too, and the cache is bf16;
- `weights`: the rounded weights alone, computed in fp32;
- `networks`, `rest`: only the feed-forward networks (of a mixture, its experts) are rounded, or only everything else.
What is lost is the difference from f32, each model from itself. A run that was killed goes on where `--folder` is
given.

    python benchmarks/quantisation.py --seeds 0,1,2 --folder runs --out benchmarks/results/quantisation.json
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from comparison_training import comparison_training
from environment import environment
from moekit.comparison.run.measurements import mean_bits_per_byte
from moekit.comparison.spec.model_costs import costs_of
from moekit.config import BYTE_VOCAB_SIZE, AttentionConfig, DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.export.gguf_export import plan_quantization
from moekit.data import Corpus, held_out_windows, is_scored, load_corpus, training_batch
from moekit.families.gguf import GGUFModel
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native import instruction_set
from moekit.kernels.packed import BLOCK_TYPES_BY_NAME
from moekit.models import build
from moekit.models.gguf import load_gguf
from moekit.training import Trainer, TrainingConfig

KINDS = ("f32", "bf16", "q8_0", "q6_k", "q4_k", "q4_0")
Windows = dict[str, Tensor]
_BATCH = 32


def shapes() -> dict[str, ModelConfig]:
    """Describe the models; widths are whole blocks of 256 numbers, so that no tensor falls back to another type."""
    width, hidden = 256, 512

    def decoder(layer: DenseConfig | MoEConfig) -> ModelConfig:
        return ModelConfig(
            vocab_size=BYTE_VOCAB_SIZE,
            width=width,
            context=256,
            attention=AttentionConfig(heads=4, kv_heads=2, head_width=64),
            layers=(layer,) * 4,
            init_std=math.sqrt(2 / (5 * width)),
        )

    mixture = MoEConfig(experts=8, expert_width=hidden // 2, router=SoftmaxTopKConfig(top_k=2))
    return {"dense": decoder(DenseConfig(width=hidden)), "moe": decoder(mixture)}


def trained(config: ModelConfig, corpus: Corpus, training: TrainingConfig, folder: Path) -> Path:
    """Train a model and give its folder, with the average of its weights; one that is there already is taken."""
    made = folder / "model"
    if made.exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)

    def batch(step: int) -> dict[str, Tensor]:
        given = training_batch(
            corpus, step=step, sequences=training.sequences, context=training.context, seed=training.seed
        )
        return {"tokens": given}

    torch.manual_seed(training.seed)
    trainer = Trainer(build(config), training, batch, lambda model: math.nan, folder / "state.safetensors")
    trainer.run(lambda report: None)
    trainer.averaged.save(made)
    return made


def computed_bits(path: Path, windows: Windows) -> float:
    """Measure bits per byte of a GGUF file, a step at a time, as text is generated."""
    stored = GGUFModel(path)
    runner = NativeRunner(stored.config, stored.weights())
    bits, count = 0.0, 0
    for tokens_BT in (part for windows_NT in windows.values() for part in torch.split(windows_NT, _BATCH)):
        caches = [runner.new_cache() for _ in tokens_BT]
        for tokens_B, targets_B in zip(tokens_BT[:, :-1].T, tokens_BT[:, 1:].T, strict=True):
            logits_BV = torch.from_numpy(runner.decode(caches, tokens_B.tolist()))
            nats_B = torch.nn.functional.cross_entropy(logits_BV, targets_B, reduction="none")
            scored_B = is_scored(targets_B)
            bits += float(nats_B[scored_B].double().sum()) / math.log(2)
            count += int(scored_B.sum())
    return bits / count


def weight_bits(exact: Path, packed: Path, windows: Windows) -> dict[str, float]:
    """Measure bits per byte with all, or only some, of the weights of `exact` replaced by those of `packed`."""
    rounded = dict(load_gguf(packed).named_parameters())
    found = {}
    for part in ("weights", "networks", "rest"):
        model = load_gguf(exact)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if part == "weights" or (part == "networks") == (".feed_forward." in name):
                    parameter.copy_(rounded[name])
        found[part] = mean_bits_per_byte(model, windows, "float32")
    return found


def rows_of(name: str, seed: int, model: Path, windows: Windows) -> Iterator[dict[str, Any]]:
    """Measure a model in every type, a row each."""
    exact = model.parent / "f32.gguf"
    for kind in KINDS:
        path = model.parent / f"{kind}.gguf"
        path.unlink(missing_ok=True)
        plan = plan_quantization(model, BLOCK_TYPES_BY_NAME[kind]).run(path)
        row = {"model": name, "seed": seed, "type": kind, "bits_per_weight": plan.bits_per_weight}
        row |= {"tensors": plan.tensors, "as_computed": computed_bits(path, windows)}
        row |= weight_bits(exact, path, windows)
        print(
            f"{name:6} seed {seed} {kind:5} {row['as_computed']:.5f} {row['weights']:.5f}", file=sys.stderr, flush=True
        )
        yield row


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--sequences", type=int, default=16, help="of 256 bytes, in a step")
    parser.add_argument("--warmup", type=int, default=40, help="steps")
    parser.add_argument("--seeds", default="0,1,2", help="with commas between")
    parser.add_argument("--held-out-tokens", type=int, default=8192, help="of each domain")
    parser.add_argument("--folder", type=Path, help="keep the models here (default: a temporary folder)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    configs = shapes()
    dense = configs["dense"]
    corpus = load_corpus(())
    training = comparison_training(dense, steps=options.steps, sequences=options.sequences, warmup_steps=options.warmup)
    windows = held_out_windows(corpus, context=dense.context, tokens_per_domain=options.held_out_tokens)
    where = environment("gguf")
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for seed in map(int, options.seeds.split(",")):
            for name, config in configs.items():
                folder = (options.folder or Path(temporary)) / f"{name}-{seed}"
                of_seed = training.model_copy(update={"seed": seed})
                rows += rows_of(name, seed, trained(config, corpus, of_seed, folder), windows)
    print_losses(rows)
    if options.out:
        costs = {name: costs_of(config, config.context) for name, config in configs.items()}
        record = {
            **where,
            "instruction_set": instruction_set(),
            "settings": training.model_dump(mode="json"),
            "corpus_sha256": corpus.sha256,
            "held_out_tokens": sum(windows_NT[:, 1:].numel() for windows_NT in windows.values()),
            "models": {
                name: {"params_total": cost.params_total, "params_active": cost.params_active}
                for name, cost in costs.items()
            },
            "rows": rows,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def print_losses(rows: list[dict[str, Any]]) -> None:
    """Print what each type loses against f32, means over the seeds."""
    exact = {(row["model"], row["seed"]): row for row in rows if row["type"] == "f32"}
    for name in dict.fromkeys(row["model"] for row in rows):
        for kind in KINDS:
            of_kind = [row for row in rows if (row["model"], row["type"]) == (name, kind)]
            lost = {
                key: fmean(row[key] - exact[name, row["seed"]][key] for row in of_kind)
                for key in ("as_computed", "weights", "networks", "rest")
            }
            print(f"{name:6} {kind:5}" + "".join(f"  {key} {value:+.5f}" for key, value in lost.items()))


if __name__ == "__main__":
    main()
