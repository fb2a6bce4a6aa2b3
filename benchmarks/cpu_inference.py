"""Running models on a CPU: moekit, llama.cpp and transformers on the same shapes, in one run.

Models have random weights. Rounds go from engine to engine, so that a machine that slows down slows all; of each figure
the best round counts. `share` is what a decoding step reads of weights, times steps a second, over the read bandwidth;
both are measured in turns of a fraction of a second, and the median of the turns' quotients counts. llama.cpp runs in a
Python of its own, where llama-cpp-python is installed:

    python benchmarks/cpu_inference.py --llama-python venv/bin/python --types q8_0 q4_0 --out results.json
"""

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__)
TYPES = ("q8_0", "q4_0", "q4_k", "q6_k", "bf16", "f16")
_TURNS, _STEPS_A_TURN, _SAMPLE = 9, 6, (1 << 29, 3)  # the last: bytes that are read, and how often


def shapes() -> dict[str, Any]:
    """Describe a Mixtral of 3.0 B parameters, dense Llamas around its sizes, and a fine-grained MoE."""
    from moekit.config import AttentionConfig, DenseConfig, ModelConfig, MoEConfig, SoftmaxTopKConfig

    def decoder(layer: Any, depth: int = 8) -> ModelConfig:
        return ModelConfig(
            vocab_size=32_000,
            width=2048,
            context=4096,
            attention=AttentionConfig(heads=16, kv_heads=4, head_width=128),
            layers=(layer,) * depth,
        )

    def mixture(experts: int, width: int, top_k: int) -> MoEConfig:
        return MoEConfig(experts=experts, expert_width=width, router=SoftmaxTopKConfig(top_k=top_k))

    return {
        "mixtral": decoder(mixture(8, 7168, 2)),
        "dense-total": decoder(DenseConfig(width=8 * 7168)),
        "dense-active": decoder(DenseConfig(width=2 * 7168)),
        "fine": decoder(mixture(64, 896, 8)),
        "dense-deep": decoder(DenseConfig(width=2 * 7168), depth=28),
        "dense-small": decoder(DenseConfig(width=2 * 2048), depth=12),
        "tiny": decoder(mixture(8, 512, 2), depth=2),
    }


def write_model(config: Any, kind: Any, path: Path) -> int:
    """Write a file of random blocks with scales that keep activations sane; give the bytes a step reads."""
    import numpy as np

    from moekit.checkpoint.gguf import OutputTensor, write_gguf
    from moekit.checkpoint.views import stored_shape
    from moekit.config import MoEConfig
    from moekit.families.gguf import describe, layout
    from moekit.kernels.packed import F32, Bytes
    from moekit.models import Decoder
    from moekit.models.folder import own_tensors
    from moekit.nn.meta import on_meta

    with on_meta():
        parameters = own_tensors(Decoder(config))
    architecture, metadata = describe(config)
    generator = np.random.default_rng(0)

    def blocks(rows: int, of: Any, columns: int) -> Iterator[Bytes]:
        step = max(1, (64 << 20) // of.row_bytes(columns))
        for begin in range(0, rows, step):
            count = min(step, rows - begin)
            if of.numbers == 1:
                numbers = generator.standard_normal((count, columns), np.float32) * np.float32(0.02)
                if of.name == "bf16":
                    numbers = (numbers.view(np.uint32) >> 16).astype(np.uint16)
                yield (numbers.astype(np.float16) if of.name == "f16" else numbers).view(np.uint8)
                continue
            data = generator.integers(256, size=(count * columns // of.numbers, of.size), dtype=np.uint8)
            scale = 0.0003 if of.name == "q8_0" else 0.004 if of.name == "q4_0" else 0.00007
            half = np.array([scale], np.float16).view(np.uint8)
            places = {"q8_0": (0,), "q4_0": (0,), "q4_k": (0, 2), "q6_k": (208,)}[of.name]
            for place in places:
                data[:, place : place + 2] = half
            yield data.reshape(count, -1)

    tensors, read = [], 0
    for entry in layout(architecture, config):
        shape = stored_shape(entry, parameters)
        of = F32 if len(shape) == 1 or "gate_inp" in entry.name else kind
        rows = math.prod(shape[:-1])
        tensors.append(
            OutputTensor(name=entry.name, type=of, shape=shape, make=lambda r=rows, o=of, c=shape[-1]: blocks(r, o, c))
        )
        layer = config.feed_forwards[0]
        share = layer.router.top_k / layer.experts if isinstance(layer, MoEConfig) and "_exps" in entry.name else 1.0
        read += 0 if entry.name == "token_embd.weight" else int(tensors[-1].size * share)
    metadata = metadata | {"general.quantization_version": 2, "tokenizer.ggml.model": "no_vocab"}
    write_gguf(path, architecture.name, metadata, tensors)
    return read


def measure(prefill: Callable[[int], None], step: Callable[[], None], prompts: list[int], steps: int) -> dict[str, Any]:
    """Measure tokens a second: of prompts of each length, and of steps after the first (a short) one."""
    found: dict[str, Any] = {}
    for length in prompts:
        begin = time.perf_counter()
        prefill(length)
        found[f"prefill_{length}"] = length / (time.perf_counter() - begin)
    prefill(32)
    step()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    found["decode"] = steps / (time.perf_counter() - begin)
    return found


def run_moekit(path: str, prompts: list[int], steps: int, batch: int) -> dict[str, Any]:
    """Measure moekit's native runner.

    Besides what `measure` gives, it measures the decoding of `batch` sequences together, and in several turns the steps
    for a byte of read bandwidth.
    """
    from moekit.families.gguf import GGUFModel
    from moekit.inference.native_runner import NativeRunner
    from moekit.kernels.native import instruction_set, read_bandwidth

    stored = GGUFModel(Path(path))
    runner = NativeRunner(stored.config, stored.weights())
    caches = [runner.new_cache() for _ in range(batch)]

    def prefill(length: int) -> None:
        caches[0].truncate(0)
        runner.prefill(caches[0], tokens(length))

    def step() -> None:
        runner.decode(caches[:1], tokens(1))

    prefill(32)
    found = measure(prefill, step, prompts, steps)
    bandwidths, quotients = [read_bandwidth(*_SAMPLE)], []
    for _ in range(_TURNS):
        begin = time.perf_counter()
        for _ in range(_STEPS_A_TURN):
            step()
        rate = _STEPS_A_TURN / (time.perf_counter() - begin)
        bandwidths.append(read_bandwidth(*_SAMPLE))
        quotients.append(rate / (sum(bandwidths[-2:]) / 2))
    for cache in caches:
        cache.truncate(0)
        runner.prefill(cache, tokens(32))
    begin = time.perf_counter()
    for _ in range(steps // 2):
        runner.decode(caches, tokens(batch))
    found["decode_batch"] = batch * (steps // 2) / (time.perf_counter() - begin)
    found |= {"bandwidth": median(bandwidths), "steps_a_byte": median(quotients)}
    return found | {"instruction_set": instruction_set()}


def tokens(count: int) -> list[int]:
    """Choose arbitrary tokens, so that steps go through other experts each time."""
    return [random.randrange(32_000) for _ in range(count)]


def run_llama(path: str, prompts: list[int], steps: int, repack: bool) -> dict[str, Any]:
    """Measure llama.cpp. repack: with its copies of weights in layouts for AMX and the like (`use_extra_bufts`)."""
    import llama_cpp

    defaults = llama_cpp.llama_cpp.llama_model_default_params

    def parameters() -> Any:
        found = defaults()
        found.use_extra_bufts = repack
        return found

    llama_cpp.llama_cpp.llama_model_default_params = parameters
    model = llama_cpp.Llama(path, n_ctx=4096, n_batch=512, n_threads=2, n_threads_batch=2, verbose=False)

    def prefill(length: int) -> None:
        model.reset()
        model.eval(tokens(length))

    prefill(32)
    return measure(prefill, lambda: model.eval(tokens(1)), prompts, steps) | {"repack": repack}


def run_transformers(shape: str, prompts: list[int], steps: int) -> dict[str, Any]:
    """Measure transformers in bf16, with a cache, its experts by grouped products."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, MixtralConfig

    from moekit.families import describe

    family, settings = describe(shapes()[shape])
    kind = MixtralConfig if family.model_type == "mixtral" else LlamaConfig
    theirs = kind(**{key: value for key, value in settings.items() if key != "model_type"})
    torch.set_default_dtype(torch.bfloat16)
    model = AutoModelForCausalLM.from_config(theirs).eval()
    state: dict[str, Any] = {}

    def feed(tokens_BT: Any) -> None:
        with torch.inference_mode():
            model(tokens_BT, past_key_values=state["cache"], use_cache=True, logits_to_keep=1)

    def prefill(length: int) -> None:
        state["cache"] = DynamicCache(config=theirs)
        feed(torch.randint(32_000, (1, length)))

    prefill(32)
    return measure(prefill, lambda: feed(torch.randint(32_000, (1, 1))), prompts, steps)


def child(python: str, engine: str, target: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Measure one engine in a process of its own; None where it failed."""
    command = [python, str(HERE), "--child", engine, target, "--steps", str(options.steps), "--prompts"]
    done = subprocess.run([*command, *map(str, options.prompts)], capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  {engine} failed ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def best(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Keep the largest of every speed; what tells of the machine as well as of the engine is a median already."""
    middle = {"bandwidth", "steps_a_byte"}
    return {key: (median if key in middle else max)([found[key] for found in rounds]) for key in rounds[0]}


def compared(shape: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare all engines on one model."""
    from moekit.kernels.packed import BLOCK_TYPES_BY_NAME

    engines: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        read = write_model(shapes()[shape], BLOCK_TYPES_BY_NAME[kind], path)
        repack = "llama-repacked"
        for _ in range(options.rounds):
            todo = [("moekit", sys.executable, str(path))]
            if options.llama_python:
                todo += [(repack, options.llama_python, str(path))] if repack else []
                todo += [("llama", options.llama_python, str(path))]
            if options.transformers and kind == "bf16":
                todo += [("transformers", sys.executable, shape)]
            for engine, python, target in todo:
                found = child(python, engine, target, options)
                if found:
                    engines.setdefault(engine, []).append(found)
                elif engine == repack:
                    repack = ""
    figures: dict[str, Any] = {engine: best(rounds) for engine, rounds in engines.items()}
    ours = figures["moekit"]
    theirs = [figures[engine] for engine in ("llama", "llama-repacked") if engine in figures]
    ratios = {
        f"{key} / llama.cpp": ours[key] / max(f[key] for f in theirs) for key in ours if theirs and key in theirs[0]
    }
    if "transformers" in figures:
        ratios |= {f"{key} / transformers": ours[key] / value for key, value in figures["transformers"].items()}
    ratios["share of bandwidth"] = read * ours["steps_a_byte"]
    ratios["batch / single"] = ours["decode_batch"] / ours["decode"]
    print(f"{shape} {kind}: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()), file=sys.stderr)
    return {"shape": shape, "type": kind, "bytes_a_step": read, "engines": figures, "ratios": ratios}


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["mixtral", "dense-total", "dense-active", "fine"])
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0", "q4_k", "bf16"], choices=TYPES)
    parser.add_argument("--skip", nargs="+", default=[], metavar="SHAPE:TYPE", help="e.g. fine:q4_k: no whole blocks")
    parser.add_argument("--prompts", nargs="+", type=int, default=[128, 512, 2048])
    parser.add_argument("--steps", type=int, default=48, help="tokens decoded")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python")
    parser.add_argument("--transformers", action="store_true", help="also transformers, in bf16")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        engine, target = options.child
        if engine == "moekit":
            found = run_moekit(target, options.prompts, options.steps, options.batch)
        elif engine == "transformers":
            found = run_transformers(target, options.prompts, options.steps)
        else:
            found = run_llama(target, options.prompts, options.steps, engine == "llama-repacked")
        print(json.dumps(found))
        return
    from environment import environment

    chosen = [(shape, kind) for shape in options.shapes for kind in options.types]
    results = [compared(shape, kind, options) for shape, kind in chosen if f"{shape}:{kind}" not in options.skip]
    where = environment("numpy", "gguf", "transformers")
    asked = {name: getattr(options, name) for name in ("prompts", "steps", "rounds", "batch")}
    record = {"environment": where, "options": asked, "results": results}
    text = json.dumps(record, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
