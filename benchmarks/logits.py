"""moekit's native runner against llama.cpp: how far the next-token distributions are apart on the same GGUF file.

Models are folders that read bytes, trained so that their distributions are not flat (`quantisation.py --folder` leaves
some). Each is written in every type, and both engines read windows of the held-out text of the embedded corpus, one
token after the other. KL divergences are KL(llama.cpp ‖ moekit) in nats per position. `prompts`: moekit's logits after
whole prompts instead, one for each position. `from_f32`: KL(f32 ‖ type), both of moekit, which is what quantising
itself changes. `off_llama_f32`: KL(llama.cpp's f32 ‖ type) of llama.cpp, and of moekit's steps and prompts, which is
who keeps more of the model. llama.cpp runs in a Python of its own, where llama-cpp-python is installed:

    python benchmarks/logits.py --llama-python venv/bin/python --models dense=runs/dense-0/model --out logits.json
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__)
TYPES = ("f32", "bf16", "q8_0", "q6_k", "q4_k", "q4_0")
_LLAMA = """
import json, sys
import llama_cpp, numpy
path, tokens, out, repack = sys.argv[1:]
defaults = llama_cpp.llama_cpp.llama_model_default_params
def parameters():
    found = defaults()
    found.use_extra_bufts = repack == "repack"
    return found
llama_cpp.llama_cpp.llama_model_default_params = parameters
windows = json.load(open(tokens))
model = llama_cpp.Llama(path, n_ctx=512, n_batch=512, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False)
logits = []
for window in windows:
    model.reset()
    for token in window:
        model.eval([token])
    logits.append(numpy.array(model.scores[: len(window)], numpy.float32))
numpy.save(out, numpy.stack(logits))
print(llama_cpp.__version__)
"""


def windows(positions: int, context: int) -> Any:
    """Cut tokens_NT from the held-out text: `positions` of all domains, or a few less."""
    import torch

    from moekit.data import held_out_windows, load_corpus

    corpus = load_corpus(())
    of_domain = positions // len(corpus.domains)
    length = min(of_domain, context)
    cut = held_out_windows(corpus, context=length, tokens_per_domain=of_domain // length * length)
    return torch.cat(list(cut.values()))[:, :-1]


def own_logits(path: Path, tokens_NT: Any) -> tuple[Any, Any]:
    """Compute logits_NTV step by step, and of whole prompts up to every position."""
    import numpy as np
    import torch

    from moekit.inference import load_runner

    runner = load_runner(path).runner
    caches = [runner.new_cache() for _ in tokens_NT]
    steps_NTV = np.stack([runner.decode(caches, tokens_N) for tokens_N in tokens_NT.T.tolist()], 1)
    ends = range(1, tokens_NT.shape[1] + 1)
    prompts_NTV = np.stack(
        [np.stack([runner.prefill(runner.new_cache(), tokens[:end]) for end in ends]) for tokens in tokens_NT.tolist()]
    )
    return torch.from_numpy(steps_NTV), torch.from_numpy(prompts_NTV)


def llama_logits(path: Path, tokens_NT: Any, options: argparse.Namespace) -> Any:
    """Compute logits_NTV by llama.cpp, and find its version."""
    import numpy as np
    import torch

    out, tokens = path.with_suffix(".npy"), path.with_suffix(".json")
    tokens.write_text(json.dumps(tokens_NT.tolist()), encoding="utf-8")
    repack = "repack" if options.repack else "plain"
    command = [options.llama_python, "-c", _LLAMA, str(path), str(tokens), str(out), repack]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"llama.cpp failed on {path.name} ({done.returncode}): {done.stderr[-500:]}")
    return torch.from_numpy(np.load(out)), done.stdout.split()[-1]


def compared(theirs_NTV: Any, ours_NTV: Any) -> dict[str, float]:
    """Compute KL(theirs ‖ ours) over all positions, and how often the most probable token is the same."""
    theirs_NTV, ours_NTV = theirs_NTV.double().log_softmax(-1), ours_NTV.double().log_softmax(-1)
    kl_S = (theirs_NTV.exp() * (theirs_NTV - ours_NTV)).sum(-1).flatten()
    return {
        "positions": kl_S.numel(),
        "kl_mean": kl_S.mean().item(),
        "kl_p99": kl_S.quantile(0.99).item(),
        "kl_max": kl_S.max().item(),
        "top_1_agreement": (theirs_NTV.argmax(-1) == ours_NTV.argmax(-1)).double().mean().item(),
    }


def rows_of(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure a model in every type, a row each."""
    from moekit.convert.export.gguf_export import plan_quantization
    from moekit.kernels.packed import BLOCK_TYPES_BY_NAME
    from moekit.models.folder import read_config

    tokens_NT = windows(options.positions, read_config(folder)[1].context)
    rows: list[dict[str, Any]] = []
    exact_NTV = llama_f32_NTV = None
    with tempfile.TemporaryDirectory() as temporary:
        for kind in ("f32", *(kind for kind in options.types if kind != "f32")):
            path = Path(temporary) / f"{kind}.gguf"
            plan_quantization(folder, BLOCK_TYPES_BY_NAME[kind]).run(path)
            steps_NTV, prompts_NTV = own_logits(path, tokens_NT)
            theirs_NTV, version = llama_logits(path, tokens_NT, options)
            exact_NTV = steps_NTV if exact_NTV is None else exact_NTV
            llama_f32_NTV = theirs_NTV if llama_f32_NTV is None else llama_f32_NTV
            engines = {"llama.cpp": theirs_NTV, "steps": steps_NTV, "prompts": prompts_NTV}
            row = {
                "model": name,
                "type": kind,
                "llama_cpp_python": version,
                "steps": compared(theirs_NTV, steps_NTV),
                "prompts": compared(theirs_NTV, prompts_NTV),
                "from_f32": compared(exact_NTV, steps_NTV),
                "off_llama_f32": {engine: compared(llama_f32_NTV, of_NTV) for engine, of_NTV in engines.items()},
            }
            print(f"{name:6} {kind:5} {shown(row)}", file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def shown(row: dict[str, Any]) -> str:
    """Write a row as a line."""
    parts = [f"{part} {row[part]['kl_mean']:.2e} {row[part]['top_1_agreement']:.3f}" for part in ("steps", "prompts")]
    off = [f"{engine} {found['kl_mean']:.2e}" for engine, found in row["off_llama_f32"].items()]
    return "  ".join([*parts, "off llama.cpp's f32:", *off])


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-python", required=True, help="a Python with llama-cpp-python")
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--types", nargs="+", default=list(TYPES), choices=TYPES)
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--repack", action="store_true", help="llama.cpp's own layouts of weights (use_extra_bufts)")
    parser.add_argument("--out", type=Path, help="also write everything to this JSON file")
    options = parser.parse_args()
    from environment import environment
    from moekit.kernels.native import instruction_set

    where, rows = environment("gguf"), []
    for model in options.models:
        name, _, folder = model.partition("=")
        rows += rows_of(name, Path(folder), options)
    if options.out:
        record = {**where, "instruction_set": instruction_set(), "repack": options.repack, "rows": rows}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
