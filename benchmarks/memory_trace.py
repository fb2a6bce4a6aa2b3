"""The routing of a trained mixture at the size of one that is too large: how often is an expert in memory, how fast?

The experts of a trained model are widened by zeros until its file has the size asked for: gate and up get rows, down
gets columns, so that what it computes, and what its router chooses, stays what was trained, while an expert weighs as
much as one of a large model. It reads held-out text. For several shares of the experts in memory, each policy is
counted twice, on the routing as torch computes it (`simulated_hits` drives the store's own policies) and in the run
itself, whose speed is measured. Beside them stands Belady's choice, which knows the future: who leaves is the expert
whose next use is farthest away, the new one included.

    python benchmarks/memory_trace.py runs/mine/moe-many/seed-0/model --out benchmarks/results/memory_trace.json
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

import moekit
from environment import environment
from moekit.checkpoint.gguf import GGUFFile, OutputTensor, write_gguf
from moekit.config import ModelConfig, MoEConfig
from moekit.core import files
from moekit.core.progress import Task, no_progress
from moekit.data import embedded_documents, split_documents
from moekit.families.gguf import GGUFModel, describe
from moekit.inference.native_runner import NativeRunner
from moekit.kernels.native.expert_streaming import ExpertStreaming, PolicyName, simulated_hits
from moekit.kernels.native.streaming import Streaming
from moekit.kernels.packed import F32, Q8_0, Bytes
from moekit.kernels.packed.quantize_blocks import quantize
from moekit.models import Decoder
from moekit.moe import without_capacity
from moekit.moe.routing import Decision
from moekit.placement.model_memory import model_memory
from moekit.placement.placed_weights import TensorsInMemory

POLICIES: tuple[PolicyName, ...] = ("lru", "lfu", "lfru", "static")
Passes = list[list[int]]
"""Of a layer, the experts of each token."""


def widened(config: ModelConfig, size: int) -> ModelConfig:
    """Widen the experts until all of them take about so many bytes in q8_0."""
    experts = sum(layer.experts for layer in config.feed_forwards if isinstance(layer, MoEConfig))
    width = round(size / (experts * 3 * config.width * Q8_0.size / Q8_0.numbers) / 32) * 32
    layers = config.model_dump()["layers"]
    for layer in layers:
        if layer["feed_forward"]["kind"] == "moe":
            layer["feed_forward"]["expert_width"] = width
    return ModelConfig.model_validate(config.model_dump() | {"layers": layers})


def write_widened(small: GGUFFile, config: ModelConfig, path: Path) -> None:
    """Write the model in `small`, whose numbers are fp32, with experts of the configuration's width, in q8_0."""
    width = next(layer.expert_width for layer in config.feed_forwards if isinstance(layer, MoEConfig))

    def experts(name: str) -> Iterator[Bytes]:
        for numbers_RC in torch.from_numpy(small.numbers(name)):
            if "down" in name:
                yield quantize(torch.nn.functional.pad(numbers_RC, (0, width - numbers_RC.shape[1])), Q8_0).data_RB
                continue
            data_RB = quantize(numbers_RC, Q8_0).data_RB
            yield data_RB
            yield np.zeros((width - len(data_RB), data_RB.shape[1]), np.uint8)

    def plain(name: str, kind: Any) -> Iterator[Bytes]:
        yield quantize(torch.from_numpy(small.rows(name)), kind).data_RB

    tensors = []
    for tensor in small.tensors.values():
        name, shape = tensor.name, tensor.shape
        if "_exps" in name:
            shape = (shape[0], shape[1], width) if "down" in name else (shape[0], width, shape[2])
            tensors.append(OutputTensor(name=name, type=Q8_0, shape=shape, make=lambda n=name: experts(n)))
            continue
        kind = F32 if len(shape) == 1 or "gate_inp" in name else Q8_0
        tensors.append(OutputTensor(name=name, type=kind, shape=shape, make=lambda n=name, k=kind: plain(n, k)))
    architecture, metadata = describe(config)
    write_gguf(path, architecture.name, metadata | {"tokenizer.ggml.model": "no_vocab"}, tensors)


def texts(count: int, length: int) -> list[list[int]]:
    """Cut so many pieces out of held-out documents, of all domains in turn; tokens are bytes."""
    by_domain: dict[str, list[bytes]] = {}
    for document in split_documents(embedded_documents(), seed=0).held_out:
        begins = range(length, len(document.text) - length, 8 * length)
        by_domain.setdefault(document.domain, []).extend(document.text[at : at + length] for at in begins)
    in_turn = (piece for pieces in zip_longest(*by_domain.values()) for piece in pieces if piece is not None)
    return [list(piece) for piece in islice(in_turn, count)]


def trace(model: Decoder, pieces: list[list[int]]) -> list[Passes]:
    """Record what the routers choose, layer by layer."""
    found: list[Passes] = [[] for _ in model.config.layers]
    with torch.no_grad(), without_capacity(model):
        for piece in pieces:
            decisions = [Decision() for _ in model.config.layers]
            model(torch.tensor([piece]), decisions=decisions)
            for passes, decision in zip(found, decisions, strict=True):
                assert decision.chosen is not None
                passes += decision.chosen.tolist()
    return found


def belady_hits(places: int, passes: Passes) -> int:
    """Count the uses that find their expert in memory where the future is known."""
    later: dict[int, list[int]] = {}
    for at, used in reversed(list(enumerate(passes))):
        for expert in used:
            later.setdefault(expert, []).append(at)
    hits, kept = 0, set[int]()
    for used in passes:
        hits += len(kept.intersection(used))
        for expert in used:
            later[expert].pop()
        kept |= set(used)
        while len(kept) > places:
            kept.remove(max(kept, key=lambda expert: later[expert][-1] if later[expert] else len(passes)))
    return hits


def run(path: Path, places: int, policy: PolicyName, pieces: list[list[int]], threads: int) -> dict[str, Any]:
    """Decode the pieces token by token, with so many places a layer."""
    stored = GGUFModel(path)
    memory = model_memory(stored)
    streaming = ExpertStreaming(
        files=stored.file.paths,
        experts=[() if layer is None else layer.spans for layer in memory.layers],
        places=[places if layer else 0 for layer in memory.layers],
        policy=policy,
        prefetch="off",  # which would choose who leaves, too
        threads=threads,
        passing=3,
    )
    names = {name for layer in memory.layers if layer for name in layer.names}
    with Task(no_progress, "Loading", unit="bytes") as task:
        weights = stored.weights(TensorsInMemory(stored, names, task))
    runner = NativeRunner(stored.config, weights, None, Streaming(experts=streaming))
    began = time.perf_counter()
    for piece in pieces:
        cache = runner.new_cache()
        for token in piece:
            runner.decode([cache], [token])
    seconds = time.perf_counter() - began
    counts = runner.streaming_counts.experts
    assert counts is not None
    tokens = sum(map(len, pieces))
    return {"hit_rate": counts.hits / (counts.hits + counts.misses), "tokens_per_second": tokens / seconds} | {
        "read_bytes_per_second": counts.bytes / counts.busy_seconds if counts.bytes else None,
        "share_of_bound": counts.busy_seconds / seconds,
    }


def hit_rates(traced: Sequence[Passes], experts: int, places: int) -> dict[str, float]:
    """Count hits over all layers, of each policy and of Belady's choice."""
    uses = sum(len(used) for passes in traced for used in passes)
    rates: dict[str, float] = {
        policy: sum(simulated_hits(policy, experts, places, passes) for passes in traced) / uses for policy in POLICIES
    }
    return rates | {"belady": sum(belady_hits(places, passes) for passes in traced) / uses}


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder that `moekit compare` left, of a mixture")
    parser.add_argument("--bytes", type=float, default=3.2e9, help="of the file (3.2e9)")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.75], help="of a layer's experts")
    parser.add_argument("--pieces", type=int, default=4, help="of text, as long as the model's context")
    parser.add_argument("--long", type=int, default=64, help="pieces that are counted alone, and not run")
    parser.add_argument("--threads", type=int, default=4, help="that read")
    parser.add_argument("--out", type=Path, help="JSON file that all figures are written to")
    arguments = parser.parse_args()
    model = moekit.load(arguments.model)
    assert isinstance(model, Decoder)
    mixtures = [layer for layer in model.config.feed_forwards if isinstance(layer, MoEConfig)]
    experts = mixtures[0].experts
    pieces = texts(arguments.long, model.config.context)
    long = trace(model, pieces)
    tokens = arguments.pieces * model.config.context
    short = [passes[:tokens] for passes in long]
    found: dict[str, Any] = environment() | {"experts": experts, "top_k": mixtures[0].router.experts_per_token}
    found |= {"layers": len(mixtures), "tokens": tokens, "long_tokens": len(long[0]), "shares": {}}
    with tempfile.TemporaryDirectory() as folder:
        small, path = Path(folder) / "small.gguf", Path(folder) / "widened.gguf"
        moekit.quantize(arguments.model, small, "f32")
        config = widened(model.config, int(arguments.bytes))
        write_widened(GGUFFile(small), config, path)
        found["bytes"] = path.stat().st_size
        print(f"{found['bytes'] / 1e9:.2f} GB, {len(mixtures)} layers of {experts} experts")
        for share in arguments.shares:
            places = round(share * experts)
            here = {"places": places, "simulated": hit_rates(short, experts, places)}
            here |= {"simulated_long": hit_rates(long, experts, places), "run": {}}
            for policy in POLICIES:
                got = run(path, places, policy, pieces[: arguments.pieces], arguments.threads)
                here["run"][policy] = got
                print(
                    f"{share:.0%} {policy:<7} hits {got['hit_rate']:.3f}, simulated {here['simulated'][policy]:.3f}, "
                    f"longer {here['simulated_long'][policy]:.3f}, {got['tokens_per_second']:.2f} tokens/s",
                    flush=True,
                )
            print(f"{share:.0%} belady  simulated {here['simulated']['belady']:.3f}, "
                  f"longer {here['simulated_long']['belady']:.3f}", flush=True)  # fmt: skip
            found["shares"][f"{share:.0%}"] = here
            if arguments.out:
                files.write_text(arguments.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
