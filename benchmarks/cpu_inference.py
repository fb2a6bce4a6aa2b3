"""Running models on a CPU: moekit, llama.cpp, ik_llama.cpp and transformers on the same shapes, in one run.

Models have random weights. First each peer's ways of running (layouts of its own for weights, flash attention, fused
experts) are tried on a short prompt and a few tokens, and the fastest at either stay. Then rounds go from engine to
engine, so that a machine that slows down slows all; medians of the rounds are compared, the best way of a peer for each
figure, and quartiles are kept. `decode` is after 128 tokens of context, `decode_N` after N. `share` is what a decoding
step reads of weights, times steps a second, over the read bandwidth; both are measured in turns of a fraction of a
second, and the median of the turns' quotients counts. llama.cpp runs in a Python of its own, where llama-cpp-python is
installed, ik_llama.cpp as its llama-bench:

    python benchmarks/cpu_inference.py --llama-python venv/bin/python --ik-bench build/bin/llama-bench --out out.json
"""

import argparse
import itertools
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

HERE = Path(__file__)
TYPES = ("q8_0", "q4_0", "q4_k", "q6_k", "bf16", "f16")
_SHORT = 128  # tokens of context that decoding is measured after, if nothing else is said
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


def measure(prefill: Callable[[int], None], step: Callable[[], None], options: argparse.Namespace) -> dict[str, float]:
    """Measure tokens a second: of prompts of each length, and of steps after each context and a first (a short) one."""
    found: dict[str, float] = {}
    for length in options.prompts:
        begin = time.perf_counter()
        prefill(length)
        found[f"prefill_{length}"] = length / (time.perf_counter() - begin)
    for context in options.contexts:
        prefill(context)
        step()
        begin = time.perf_counter()
        for _ in range(options.steps):
            step()
        found[decode_key(context)] = options.steps / (time.perf_counter() - begin)
    return found


def decode_key(context: int) -> str:
    """Name the speed of decoding after so many tokens."""
    return "decode" if context == _SHORT else f"decode_{context}"


def run_moekit(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure moekit's native runner.

    Besides what `measure` gives, it measures the decoding of `batch` sequences together, and in several turns the steps
    for a byte of read bandwidth.
    """
    from moekit.families.gguf import GGUFModel
    from moekit.inference.native_runner import NativeRunner
    from moekit.kernels.native import instruction_set, read_bandwidth

    stored = GGUFModel(Path(path))
    runner = NativeRunner(stored.config, stored.weights())
    caches = [runner.new_cache() for _ in range(options.batch)]

    def prefill(length: int) -> None:
        caches[0].truncate(0)
        runner.prefill(caches[0], tokens(length))

    def step() -> None:
        runner.decode(caches[:1], tokens(1))

    prefill(32)
    found: dict[str, Any] = measure(prefill, step, options)
    prefill(_SHORT)
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
    for _ in range(options.steps // 2):
        runner.decode(caches, tokens(options.batch))
    found["decode_batch"] = options.batch * (options.steps // 2) / (time.perf_counter() - begin)
    found |= {"bandwidth": median(bandwidths), "steps_a_byte": median(quotients)}
    return found | {"instruction_set": instruction_set()}


def tokens(count: int) -> list[int]:
    """Choose arbitrary tokens, so that steps go through other experts each time."""
    return [random.randrange(32_000) for _ in range(count)]


def run_llama(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure llama.cpp; `repack`: with its copies of weights in layouts of its own (`use_extra_bufts`)."""
    import llama_cpp

    mode, defaults = json.loads(options.mode), llama_cpp.llama_cpp.llama_model_default_params

    def parameters() -> Any:
        found = defaults()
        found.use_extra_bufts = mode["repack"]
        return found

    llama_cpp.llama_cpp.llama_model_default_params = parameters
    context = max(4096, *options.contexts) + 256
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = llama_cpp.Llama(path, n_ctx=context, n_batch=512, flash_attn=mode["flash"], verbose=False, **threads)

    def prefill(length: int) -> None:
        model.reset()
        model.eval(tokens(length))

    prefill(32)
    return measure(prefill, lambda: model.eval(tokens(1)), options)


def run_ik(path: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure ik_llama.cpp by its own benchmark."""
    command = [options.ik_bench, "-m", path, "-t", str(options.threads), "-r", "1", "-n", "0", "-o", "json"]
    command += ["-p", ",".join(map(str, options.prompts))]
    for context in options.contexts:
        command += ["-gp", f"{context},{options.steps}"]
    for flag, value in json.loads(options.mode).items():
        command += [f"-{flag}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    # What its library says comes first.
    rows = json.loads(done.stdout[done.stdout.index("[\n") :])
    found = {}
    for row in rows:
        if row["n_gen"] == 0:
            found[f"prefill_{row['n_prompt']}"] = row["avg_ts"]
        else:
            found[decode_key(row["n_prompt"])] = row["avg_ts"]
    return found


def run_transformers(shape: str, options: argparse.Namespace) -> dict[str, Any]:
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
    return measure(prefill, lambda: feed(torch.randint(32_000, (1, 1))), options)


RUN = {"moekit": run_moekit, "llama.cpp": run_llama, "ik_llama.cpp": run_ik, "transformers": run_transformers}


@dataclass(frozen=True)
class Way:
    """An engine, and a way of running it."""

    engine: str
    mode: dict[str, Any]

    def __str__(self) -> str:
        return " ".join([self.engine, *(f"{key}={int(value)}" for key, value in self.mode.items())])

    def run(self, target: str, options: argparse.Namespace) -> dict[str, Any] | None:
        """Measure it in a process of its own; None where it failed."""
        python = options.llama_python if self.engine == "llama.cpp" else sys.executable
        command = [python, str(HERE), "--child", self.engine, target, "--mode", json.dumps(self.mode)]
        for name in ("steps", "prompts", "contexts", "threads", "batch", "ik_bench"):
            value = getattr(options, name)
            command += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {self} failed ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
            return None
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def ways(options: argparse.Namespace, *, mixture: bool) -> list[list[Way]]:
    """List the ways of each peer that there is."""
    found = []
    if options.llama_python:
        modes = itertools.product((True, False), (False, True))
        found.append([Way("llama.cpp", {"repack": repack, "flash": flash}) for repack, flash in modes])
    if options.ik_bench:
        modes = itertools.product((1, 0), (1, 0) if mixture else (1,), (1, 0))
        found.append([Way("ik_llama.cpp", {"rtr": rtr, "fmoe": fmoe, "fa": fa}) for rtr, fmoe, fa in modes])
    return found


def fastest(of_peer: list[Way], path: str, options: argparse.Namespace) -> list[Way]:
    """Try each way shortly; keep the fastest with a prompt and the fastest with tokens."""
    short = argparse.Namespace(**vars(options) | {"prompts": [256], "contexts": [_SHORT], "steps": 16})
    tried = [(way, found) for way in of_peer if (found := way.run(path, short))]
    kept = {str(max(tried, key=lambda pair: pair[1][key])[0]) for key in ("prefill_256", "decode") if tried}
    for way, found in tried:
        print(f"  {way}: {found['prefill_256']:.0f} {found['decode']:.1f}", file=sys.stderr)
    return [way for way in of_peer if str(way) in kept]


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Take of every figure the median and, of three rounds and more, the quartiles."""
    numbers = [key for key, value in rounds[0].items() if isinstance(value, float)]
    found: dict[str, Any] = {key: median(found[key] for found in rounds) for key in numbers}
    if len(rounds) > 2:
        found["quartiles"] = {key: quantiles([of[key] for of in rounds], n=4)[::2] for key in numbers}
    return found | {key: value for key, value in rounds[0].items() if key not in numbers}


def compared(shape: str, kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Compare all engines on one model."""
    from moekit.config import MoEConfig
    from moekit.kernels.packed import BLOCK_TYPES_BY_NAME

    rounds: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = str(Path(folder) / "model.gguf")
        read = write_model(shapes()[shape], BLOCK_TYPES_BY_NAME[kind], Path(path))
        todo = [Way("moekit", {})]
        mixture = isinstance(shapes()[shape].feed_forwards[0], MoEConfig)
        for of_peer in ways(options, mixture=mixture):
            todo += fastest(of_peer, path, options)
        if options.transformers and kind == "bf16":
            todo.append(Way("transformers", {}))
        for _ in range(options.rounds):
            for way in todo:
                if found := way.run(shape if way.engine == "transformers" else path, options):
                    rounds.setdefault(str(way), []).append(found)
    figures = {way: summary(of) for way, of in rounds.items()}
    ours = figures["moekit"]
    ratios = {}
    for engine in ("llama.cpp", "ik_llama.cpp", "transformers"):
        theirs = [of for way, of in figures.items() if way.split(" ")[0] == engine]
        keys = [key for key in ours if key.startswith(("prefill", "decode")) and theirs and key in theirs[0]]
        ratios |= {f"{key} / {engine}": ours[key] / max(of[key] for of in theirs) for key in keys}
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
    parser.add_argument("--contexts", nargs="+", type=int, default=[_SHORT, 2048], help="decoding comes after")
    parser.add_argument("--steps", type=int, default=48, help="tokens decoded")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2, help="of the peers; moekit takes what OMP_NUM_THREADS says")
    parser.add_argument("--llama-python", help="a Python with llama-cpp-python")
    parser.add_argument("--ik-bench", default="", help="llama-bench of ik_llama.cpp")
    parser.add_argument("--transformers", action="store_true", help="also transformers, in bf16")
    parser.add_argument("--folder", help="where models are written (default: where temporary files are)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--mode", default="{}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        engine, target = options.child
        print(json.dumps(RUN[engine](target, options)))
        return
    from environment import environment

    chosen = [(shape, kind) for shape in options.shapes for kind in options.types]
    results = []
    for shape, kind in chosen:
        if f"{shape}:{kind}" not in options.skip:
            results.append(compared(shape, kind, options))
            record = {
                "environment": environment("numpy", "gguf", "transformers"),
                "options": {
                    name: getattr(options, name) for name in ("prompts", "contexts", "steps", "rounds", "batch")
                },
                "results": results,
            }
            if options.out:
                options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
