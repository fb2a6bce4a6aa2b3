"""How long from `moekit generate model.gguf` to the first token, and of what that is made.

Without MODEL, a q8_0 file of 3 GB is written first: random weights in the shape of `cpu_inference.py`, and a byte-level
vocabulary of the model's size. The file is read once, so that it lies in the page cache. Then, in rounds and each in a
process of its own: the command itself, up to the first byte of its answer; Python and `import torch` alone; and the
parts one after the other. Of each figure the fastest round counts, with the median beside it: whatever else the machine
does only adds to them. CPU seconds are those of all threads.

    python benchmarks/first_token.py --rounds 9 --out benchmarks/results/first-token.json
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__)
# As a user's Python has it, which compiles a module once.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
PROMPT = "Once upon a time"
_START = "<s>"


def vocabulary(size: int) -> dict[str, Any]:
    """Make the keys of a byte-level tokenizer with `size` tokens, each but the bytes a merge of two others."""
    from tokenizers.pre_tokenizers import ByteLevel

    draw = random.Random(0)
    words = sorted(ByteLevel.alphabet())
    short, merges, seen = list(words), [], set(words)
    while len(words) < size - 1:
        pair = draw.choice(short), draw.choice(short)
        word = "".join(pair)
        if word in seen:
            continue
        seen.add(word)
        words.append(word)
        merges.append(" ".join(pair))
        if len(word) <= 4:
            short.append(word)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": [*words, _START],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.token_type": [1] * (size - 1) + [3],
        "tokenizer.ggml.bos_token_id": size - 1,
        "tokenizer.ggml.add_bos_token": True,
    }


def write(path: Path, shape: str) -> None:
    """Write a q8_0 file as `cpu_inference.py` does, with a vocabulary."""
    from cpu_inference import shapes, write_model
    from moekit.checkpoint.gguf import GGUFFile, OutputTensor, write_gguf
    from moekit.families.gguf import describe, layout
    from moekit.kernels.packed import BLOCK_TYPES, Q8_0

    config = shapes()[shape]
    bare = path.with_name("bare.gguf")
    write_model(config, Q8_0, bare)
    file, types = GGUFFile(bare), {of.code: of for of in BLOCK_TYPES}
    architecture, metadata = describe(config)
    tensors = [
        OutputTensor(
            name=entry.name,
            type=types[file[entry.name].code],
            shape=file[entry.name].shape,
            make=lambda name=entry.name: [file.bytes_of(name)],
        )
        for entry in layout(architecture, config)
    ]
    write_gguf(path, architecture.name, metadata | vocabulary(config.vocab_size), tensors)
    bare.unlink()


def parts(path: str) -> dict[str, float]:
    """Time each step of the command, in this process. The first line of Python comes before."""
    from moekit.cli.generate_and_chat import garbage_collection_paused

    found, begin = {}, time.perf_counter()

    def passed(name: str) -> None:
        nonlocal begin
        now = time.perf_counter()
        found[name], begin = now - begin, now

    with garbage_collection_paused():
        from moekit.core.hardware import process_started
        from moekit.inference import load_runner
        from moekit.inference.prompt_tokens import prompt_ids

        passed("imports")
        loaded = load_runner(path)
        passed("loading")
    ids = prompt_ids(PROMPT, loaded.tokenizer)
    process_started()
    passed("prompt")
    loaded.runner.prefill(loaded.runner.new_cache(), ids).argmax()
    passed("prefill")
    return found | {"prompt_tokens": float(len(ids))}


def command_seconds(path: str) -> float:
    """Time `moekit generate` from its start to the first byte of its answer."""
    arguments = ["generate", path, "--prompt", PROMPT, "--max-tokens", "64", "--context", "512"]
    begin = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", "from moekit.cli import main; main()", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    seconds = time.perf_counter() - begin
    process.kill()
    process.communicate()
    if not first:
        raise SystemExit("moekit generate gave no text.")
    return seconds


def measured(*arguments: str) -> tuple[str, float, float]:
    """Run a Python process, and give what it printed, its wall and its CPU seconds."""
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def one_round(path: str) -> dict[str, float]:
    """Measure everything once."""
    found = {"command": command_seconds(path)}
    _, found["python"], found["python_cpu"] = measured("-c", "pass")
    _, found["torch"], found["torch_cpu"] = measured("-c", "import torch")
    _, found["imports"], found["imports_cpu"] = measured("-c", IMPORTS)
    said, _, _ = measured(str(HERE), path, "--child")
    return found | {f"part_{name}": value for name, value in json.loads(said).items()}


IMPORTS = """
from moekit.cli.generate_and_chat import garbage_collection_paused
with garbage_collection_paused():
    import moekit.core.hardware, moekit.inference.prompt_tokens
"""


def vocabularies(sizes: list[int], rounds: int) -> dict[str, float]:
    """Time the way from metadata to tokenizer, in CPU seconds by the number of tokens; the fastest round."""
    from moekit.checkpoint.gguf import GGUFFile, write_gguf
    from moekit.data.gguf_tokenizer import gguf_tokenizer

    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            path = Path(folder) / f"{size}.gguf"
            write_gguf(path, "llama", vocabulary(size), [])
            seconds = []
            for _ in range(rounds):
                begin = time.process_time()
                gguf_tokenizer(GGUFFile(path).metadata, size)
                seconds.append(time.process_time() - begin)
            found[str(size)] = min(seconds)
    return found


def summary(rounds: list[dict[str, float]]) -> dict[str, Mapping[str, float]]:
    """Of every figure the least and the median; `imports_beyond_python` is the difference of the two processes."""
    for found in rounds:
        found["imports_beyond_python"] = found["imports"] - found["python"]
    columns = {name: [found[name] for found in rounds] for name in rounds[0]}
    least = {name: min(values) for name, values in columns.items()}
    least["imports_beyond_python"] = least["imports"] - least["python"]
    return {"least": least, "median": {name: median(values) for name, values in columns.items()}}


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a GGUF file with a tokenizer (default: one is made)")
    parser.add_argument("--shape", default="mixtral", help="of the file that is made; a name of cpu_inference.py")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--vocabularies", type=int, nargs="*", default=[32_000, 128_256, 151_936])
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(parts(options.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(options.model or Path(folder) / "model.gguf")
        if options.model is None:
            write(path, options.shape)
        size = warm(path)
        one_round(str(path))  # after which all modules are compiled
        rounds = [one_round(str(path)) for _ in range(options.rounds)]
    from environment import environment
    from moekit.kernels.native import instruction_set

    record = {
        "environment": environment("tokenizers", "pydantic"),
        "instruction_set": instruction_set(),
        "file_bytes": size,
        "prompt": PROMPT,
        "seconds": summary(rounds),
        "vocabulary_seconds": vocabularies(options.vocabularies, options.rounds),
        "rounds": rounds,
    }
    text = json.dumps(record, indent=2) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(json.dumps({key: record[key] for key in ("seconds", "vocabulary_seconds")}, indent=2))


def warm(path: Path) -> int:
    """Read all of a file; gives its bytes."""
    with path.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass
    return path.stat().st_size


if __name__ == "__main__":
    main()
