"""How long `moekit merge` takes and how much memory, against `cp` of its result on the same disk, and mergekit.

    python benchmarks/merge.py --gigabytes 6.7 --rounds 5 [--mergekit-python VENV/bin/python] --out results.json

Makes four dense bf16 models of random weights, so many gigabytes together (6.7: four of 0.84 B), the first of which is
also the base, and merges them once. Then in turns, each in a fresh process, sources and result in the page cache:

cp: of the result, which is done when all is in the page cache; cp+sync: until it is on disk;
moekit, a gate mode each: the whole command, until the result is on disk; `random` reads no prompt, the others compute
    the base model on prompts first and the merged one on them afterwards, which cp does not have;
mergekit, likewise: the whole command (mergekit-moe 0.1.5), which does not sync.

A ratio is the time over that of cp, or cp+sync, in the same round; seconds of processors say what a
busy machine hides. Anonymous memory is what is not a file's, sampled
from /proc; resident memory includes pages of mapped files.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from environment import environment
from moekit.config import AttentionConfig, DenseConfig, ModelConfig
from moekit.models import Decoder
from moekit.nn.meta import on_meta

DEPTH, VOCAB, MODELS = 16, 32_000, 4
PROMPTS = (
    "def f(x): return x + 1",
    "Once upon a time there was",
    "The theorem follows from",
    "SELECT name FROM people",
)
_STATUS = {"anonymous_bytes": "RssAnon", "resident_bytes": "VmHWM"}


def shape_of(parameters: float) -> ModelConfig:
    """Describe a model of Llama's shape with about so many parameters."""
    # 4 D² of attention and 9 D² of the feed-forward network a layer, and two tables of tokens
    width = max(64, round(((VOCAB**2 + 13 * DEPTH * parameters) ** 0.5 - VOCAB) / (13 * DEPTH) / 64) * 64)
    return ModelConfig(
        vocab_size=VOCAB,
        width=width,
        context=2048,
        attention=AttentionConfig(heads=width // 64, kv_heads=width // 64, head_width=64),
        layers=(DenseConfig(width=3 * width),) * DEPTH,
    )


def make_models(folder: Path, gigabytes: float) -> int:
    """Write the models `m0` to `m3`, and give the bytes of their weights."""
    config = shape_of(gigabytes * 1e9 / 2 / MODELS)
    numbers = torch.randn(1 << 24).mul_(0.02).bfloat16()
    places = cycle(range(0, 1 << 23, 1_000_003))
    for index in range(MODELS):
        with on_meta():
            model = Decoder(config)
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        for parameter in model.parameters():
            flat = parameter.data.view(-1)
            for begin in range(0, len(flat), 1 << 23):
                part, place = flat[begin : begin + (1 << 23)], next(places)
                part.copy_(numbers[place : place + len(part)])
        model.save(folder / f"m{index}")
        del model
        tokenizer(folder / f"m{index}")
    return sum(file.stat().st_size for file in folder.glob("m?/*.safetensors"))


def tokenizer(folder: Path) -> None:
    """Write a tokenizer of bytes, a start and an end token, in files that transformers reads, too."""
    vocab = {text: index for index, text in enumerate(["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def recipe(folder: Path, mode: str) -> Path:
    """Write the recipe of the merge with that gate mode."""
    experts = [
        {"source_model": str(folder / f"m{index}"), "positive_prompts": [prompt]}
        for index, prompt in enumerate(PROMPTS)
    ]
    data = {"base_model": str(folder / "m0"), "experts": experts, "gate_mode": mode, "dtype": "bfloat16"}
    file = folder / f"{mode}.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def run(command: Sequence[object], after: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Run a process, and measure its seconds, `after` included, its processor seconds, and its peaks of memory."""
    peaks, before = dict.fromkeys(_STATUS, 0), resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen([str(part) for part in command], stdout=said, stderr=said)
        while process.poll() is None:
            watch(process.pid, peaks)
            time.sleep(0.02)
        after()
        seconds = time.perf_counter() - begin
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read().decode())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, **peaks}


def watch(pid: int, peaks: dict[str, int]) -> None:
    """Raise the peaks of memory to what the process holds now."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return
    found = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    for name, theirs in _STATUS.items():
        peaks[name] = max(peaks[name], int(found.get(theirs, 0)) * 1024)


def warm(*folders: Path) -> None:
    """Bring the files into the page cache."""
    for file in (file for folder in folders for file in folder.glob("*.safetensors")):
        with file.open("rb", buffering=0) as opened:
            while opened.read(16 << 20):
                pass


def programs(folder: Path, modes: Sequence[str], mergekit: Path | None) -> dict[str, Callable[[], dict[str, float]]]:
    """List the programs that are run in turns, each making the folder `out`."""
    out = folder / "out"
    copy = ["cp", "-r", "--reflink=never", folder / "merged", out]
    found: dict[str, Callable[[], dict[str, float]]] = {"cp": lambda: run(copy), "cp+sync": lambda: run(copy, os.sync)}
    moekit = Path(sys.executable).with_name("moekit")
    for mode in modes:
        found[f"moekit {mode}"] = lambda mode=mode: run([moekit, "merge", folder / f"{mode}.yaml", "--out", out])
        if mergekit is not None and mode in ("random", "hidden"):
            command = [mergekit.with_name("mergekit-moe"), folder / f"{mode}.yaml", out, "--device", "cpu"]
            found[f"mergekit {mode}"] = lambda command=command: run(command)
    return found


def measure(gigabytes: float, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all programs on models of that size."""
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary)
        read = make_models(folder, gigabytes)
        for mode in ("random", *options.modes):
            recipe(folder, mode)
        run([Path(sys.executable).with_name("moekit"), "merge", folder / "random.yaml", "--out", folder / "merged"])
        written = sum(file.stat().st_size for file in (folder / "merged").iterdir())
        turns = programs(folder, options.modes, options.mergekit_python)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
        for _ in range(options.rounds):
            for name, once in turns.items():
                os.sync()
                warm(*folder.glob("m?"), folder / "merged")
                runs[name].append(once())
                shutil.rmtree(folder / "out")
        rows = [row(name, runs) for name in runs]
    return {"input_bytes": read, "output_bytes": written, "rows": rows}


def row(name: str, runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Summarise a program's rounds against plain copies."""
    seconds = {which: [one["seconds"] for one in measured] for which, measured in runs.items()}
    found: dict[str, Any] = {"program": name, "seconds": seconds[name]}
    for base in ("cp", "cp+sync"):
        ratios = [mine / theirs for mine, theirs in zip(seconds[name], seconds[base], strict=True)]
        found |= {f"over_{base}_median": statistics.median(ratios), f"over_{base}_range": [min(ratios), max(ratios)]}
    found["cpu_seconds_median"] = statistics.median(one["cpu_seconds"] for one in runs[name])
    return found | {f"peak_{which}": max(one[which] for one in runs[name]) for which in _STATUS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[6.7], help="of all four models, a run each")
    parser.add_argument("--modes", nargs="+", default=["random", "hidden", "router_input"], help="gate modes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder; the disk that is measured")
    parser.add_argument("--mergekit-python", type=Path, help="the interpreter beside which mergekit-moe is installed")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args(arguments)
    sizes = []
    for gigabytes in options.gigabytes:
        sizes.append(measure(gigabytes, options))
        for one in sizes[-1]["rows"]:
            print(json.dumps({"input_bytes": sizes[-1]["input_bytes"], **one}), flush=True)
    if options.out:
        result = {"rounds": options.rounds, "sizes": sizes}
        options.out.write_text(json.dumps(environment("safetensors", "transformers") | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
