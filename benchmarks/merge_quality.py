"""Does merging fine-tunes work, and which gates make it work? Tried on small models, from training to measurement.

One dense byte-level decoder of Llama's shape is trained on the embedded corpus, fine-tuned on each of its four domains,
and the four are merged by every gate mode. Measured on held-out text: bits per byte by domain, and for each layer the
share of tokens whose first expert is the one of their domain; against the base, the specialists, and merges whose
routers were trained afterwards. Prompts are pieces of training text.

    python benchmarks/merge_quality.py --size xs --steps 600 --tune-steps 300 --out merge-quality.json
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from environment import environment
from moekit.comparison.run.measurements import measure_domains
from moekit.comparison.spec.contestants import SIZES
from moekit.config import BYTE_VOCAB_SIZE, AttentionConfig, DenseConfig, ModelConfig
from moekit.convert.merging.gates import make_gates
from moekit.convert.merging.merge_config import PROMPT_MODES, MergeConfig
from moekit.convert.merging.merge_conversion import plan_merging
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.router_training import RouterTraining, loaded, train_routers
from moekit.data import Corpus, Document, held_out_windows, load_corpus, training_batch
from moekit.models import Decoder
from moekit.training import TrainingConfig, learning_rate, new_optimizer, training_step

MODES = (*(mode for mode in PROMPT_MODES if mode != "hidden_last"), "random", "uniform_random")


def train(model: Decoder, corpus: Corpus, training: TrainingConfig, first_step: int = 0) -> None:
    """Train in place; the data of step 1 are those of step `first_step` + 1 of the corpus."""
    optimizer = new_optimizer(model, training)
    model.train()
    for step in range(1, training.steps + 1):
        rate = learning_rate(step, peak=training.learning_rate, warmup_steps=training.warmup_steps)
        rate *= 1 - 0.9 * step / training.steps
        tokens_BT = training_batch(
            corpus, step=first_step + step, sequences=training.sequences, context=training.context, seed=training.seed
        )
        training_step(model, optimizer, {"tokens": tokens_BT}, training, rate)
    model.eval()


def prompts_of(corpus: Corpus, count: int, size: int) -> list[list[str]]:
    """Cut for each domain `count` pieces of `size` bytes from its training text, evenly spread."""
    found = []
    for domain in corpus.domains:
        text = bytes(domain.train)
        places = [len(text) // (count + 1) * (index + 1) for index in range(count)]
        pieces = (text[place : place + size].replace(b"\0", b" ") for place in places)
        found.append([piece.decode("utf-8", errors="ignore") for piece in pieces])
    return found


def accuracy(model: Decoder, windows: dict[str, Tensor]) -> list[float]:
    """Measure for each layer the share of held-out tokens whose first expert is their domain's, mean over domains."""
    shares = []
    for index, tokens_BT in enumerate(windows.values()):
        routings: list[Any] = []
        with torch.no_grad():
            model(tokens_BT[:, :-1], routings=routings)
        shares.append([float((routing.probs_TE.argmax(-1) == index).float().mean()) for routing in routings])
    return [sum(layer) / len(shares) for layer in zip(*shares, strict=True)]


def measured(model: Decoder, windows: dict[str, Tensor]) -> dict[str, Any]:
    """Measure bits per byte, by domain, and routing accuracy where there are routers."""
    figures = measure_domains(model, windows, "float32")
    found: dict[str, Any] = {"bits_per_byte": figures.bits_per_byte, "by_domain": figures.bits_per_byte_by_domain}
    return found | ({"accuracy": accuracy(model, windows)} if model.moe_layers else {})


def merge_of(
    folder: Path, names: list[str], prompts: list[list[str]], mode: str, top_k: int, backbone: str
) -> MergedModel:
    """Make the merge of the specialists by that gate mode."""
    experts = [
        {"source_model": str(folder / name), "positive_prompts": texts}
        for name, texts in zip(names, prompts, strict=True)
    ]
    data = {"base_model": str(folder / "base"), "experts": experts, "gate_mode": mode, "dtype": "float32"}
    config = MergeConfig.model_validate(data | {"experts_per_token": top_k, "backbone": backbone})
    return make_gates(plan_merging(config).merged)


def make_models(corpus: Corpus, folder: Path, options: argparse.Namespace, windows: dict[str, Tensor]) -> Iterator[Any]:
    """Train the base and the specialists, and yield what each measures."""
    size = SIZES[options.size]
    training = TrainingConfig(
        steps=options.steps,
        sequences=size.sequences,
        micro_sequences=size.sequences,
        context=size.context,
        learning_rate=2e-3,
        warmup_steps=20,
    )
    torch.manual_seed(0)
    base = Decoder(
        ModelConfig(
            vocab_size=BYTE_VOCAB_SIZE,
            width=size.width,
            context=size.context,
            attention=AttentionConfig(heads=size.heads, kv_heads=size.kv_heads, head_width=size.width // size.heads),
            layers=(DenseConfig(width=size.hidden),) * size.depth,
            init_std=math.sqrt(2 / (5 * size.width)),  # as the contestants of `moekit compare`
        )
    )
    train(base, corpus, training)
    base.save(folder / "base")
    yield "base", measured(base, windows)
    tuning = training.model_copy(update={"steps": options.tune_steps, "learning_rate": 5e-4})
    for domain in corpus.domains:
        model = Decoder(base.config)
        model.load_state_dict(base.state_dict())
        train(model, replace(corpus, domains=(domain,)), tuning, options.steps)
        model.save(folder / domain.name)
        yield f"specialist {domain.name}", measured(model, windows)
    model = Decoder(base.config)
    model.load_state_dict(base.state_dict())
    train(model, corpus, tuning, options.steps)
    yield "base trained on", measured(model, windows)


def merges(corpus: Corpus, folder: Path, options: argparse.Namespace, windows: dict[str, Tensor]) -> Iterator[Any]:
    """Merge by each gate mode with both backbones, then with trained routers, and yield what each measures."""
    names = [domain.name for domain in corpus.domains]
    prompts = prompts_of(corpus, options.prompts, options.prompt_bytes)
    for backbone in ("base", "average"):
        for mode in MODES:
            merge = merge_of(folder, names, prompts, mode, options.top_k, backbone)
            yield f"{mode}, backbone {backbone}", measured(loaded(merge), windows)
    documents = [
        Document(domain.name, domain.name, bytes(domain.train[: options.router_bytes]).replace(b"\0", b"\n"))
        for domain in corpus.domains
    ]
    size = SIZES[options.size]
    training = RouterTraining(steps=options.router_steps, sequences=size.sequences, tokens=size.context - 1)
    for mode in ("hidden", "fitted", "random"):
        merge = merge_of(folder, names, prompts, mode, options.top_k, "average")
        trained = train_routers(merge, documents, training)
        yield (
            f"{mode}, backbone average, router trained",
            measured(loaded(trained.merged), windows),
        )


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="xs")
    parser.add_argument("--steps", type=int, default=600, help="of the base model")
    parser.add_argument("--tune-steps", type=int, default=300, help="of each specialist")
    parser.add_argument("--router-steps", type=int, default=150)
    parser.add_argument("--router-bytes", type=int, default=200_000, help="of each domain, for training routers")
    parser.add_argument("--prompts", type=int, default=8, help="of each domain")
    parser.add_argument("--prompt-bytes", type=int, default=96)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--held-out-tokens", type=int, default=16_384, help="of each domain")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    where = environment("numpy")
    corpus = load_corpus(())
    windows = held_out_windows(corpus, context=SIZES[options.size].context, tokens_per_domain=options.held_out_tokens)
    results, begin = {}, time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        for stage in (make_models, merges):
            for name, figures in stage(corpus, Path(temporary), options, windows):
                results[name] = figures
                domains = " ".join(f"{value:6.3f}" for value in figures["by_domain"].values())
                layers = " ".join(f"{value:4.0%}" for value in figures.get("accuracy", []))
                print(f"{name:44} {figures['bits_per_byte']:.3f}  {domains}  {layers}", file=sys.stderr, flush=True)
    settings = {name: value for name, value in vars(options).items() if name != "out"}
    record = {
        "environment": where,
        "command": " ".join(sys.argv),
        "settings": settings,
        "domains": list(windows),
        "seconds": time.monotonic() - begin,
        "results": results,
    }
    text = json.dumps(record, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
