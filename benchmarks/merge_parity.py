"""moekit's merges against mergekit 0.1.5's, tensor by tensor, bit by bit, on tiny models of every kind.

    python -m venv VENV && VENV/bin/pip install torch mergekit==0.1.5
    python benchmarks/merge_parity.py --mergekit VENV/bin/python

All outputs times all gate modes, in fp32 and bf16, with noise and scales, after both name their tensors the same way.
Exit status 1 where a bit differs.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.convert.merging.merge_recipes import CASES, case_recipe, make_models, planned, write_recipe

SEED = 7
MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "random", "uniform_random")
NOISE = {"noise_scale": 0.1, "residual_scale": 0.5}

# In one process: importing mergekit takes longer than all merges.
THEIRS = """
import json, sys
from mergekit.scripts.moe import main
for file, out in json.load(sys.stdin):
    try:
        main([file, out, "--random-seed", sys.argv[1], "--device", "cpu"], standalone_mode=False)
    except BaseException as error:
        print(f"{out}: {type(error).__name__}: {error}", file=sys.stderr)
"""


def merges(root: Path) -> Iterator[tuple[str, dict[str, Any], Path]]:
    """Yield name, recipe and folder of models of everything that is compared."""
    for case, (kind, settings, _) in CASES.items():
        for dtype in ("float32", "bfloat16"):
            folder = make_models(root / case / dtype, kind, dtype=dtype, **settings)
            for mode in MODES:
                data = case_recipe(folder, case, gate_mode=mode, dtype=dtype)
                if mode == "cheap_embed":
                    data["experts"][0]["negative_prompts"] = ["no, not"]
                if mode in ("hidden", "random"):
                    for expert in data["experts"]:
                        expert |= NOISE
                yield f"{case}-{dtype}-{mode}", data, folder
            data = case_recipe(folder, case, dtype=None)
            data["experts"][1]["negative_prompts"] = ["no, not", "never"]
            yield f"{case}-{dtype}-negatives", data, folder


def unfused(tensors: dict[str, Tensor], mixtral: bool) -> dict[str, Tensor]:
    """Rename mergekit's tensors as ours: a tensor for each matrix of each expert."""
    place = "block_sparse_moe" if mixtral else "mlp"
    names = {"gate": "w1", "up": "w3", "down": "w2"} if mixtral else {n: f"{n}_proj" for n in ("gate", "up", "down")}
    found = {}
    for name, tensor in tensors.items():
        prefix, _, last = name.rpartition(".mlp.")
        if last == "experts.gate_up_proj":
            for expert, both in enumerate(tensor):
                gate, up = both.chunk(2)
                found[f"{prefix}.{place}.experts.{expert}.{names['gate']}.weight"] = gate
                found[f"{prefix}.{place}.experts.{expert}.{names['up']}.weight"] = up
        elif last == "experts.down_proj":
            for expert, down in enumerate(tensor):
                found[f"{prefix}.{place}.experts.{expert}.{names['down']}.weight"] = down
        elif last == "gate.weight":
            found[f"{prefix}.{place}.gate.weight"] = tensor
        else:
            found[name] = tensor
    return found


def compare(name: str, data: dict[str, Any], folder: Path, theirs: Path) -> list[str]:
    """List what differs."""
    from tests.families.round_trips import stored_tensors

    from moekit.convert.storage.output_tensors import whole_tensor

    merge = planned(folder, data, seed=SEED)
    expected = unfused(stored_tensors(theirs), merge.output.format.model_type == "mixtral")
    ours = {tensor.name: whole_tensor(tensor) for tensor in merge.tensors}
    if not expected:
        return [f"{name}: mergekit wrote nothing"]
    wrong = [f"{name}: {key} only on one side" for key in ours.keys() ^ expected.keys()]
    for key in ours.keys() & expected.keys():
        a, b = ours[key], expected[key]
        if a.dtype is not b.dtype or a.shape != b.shape or not torch.equal(a, b):
            gap = (a.float() - b.float()).abs().max() if a.shape == b.shape else "shape"
            wrong.append(f"{name}: {key} {a.dtype} {b.dtype} {float(gap) if gap != 'shape' else gap}")
    return wrong


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mergekit", required=True, metavar="PYTHON", help="where mergekit 0.1.5 is installed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        wanted = list(merges(root))
        jobs = [(str(write_recipe(folder, data, f"{name}.yaml")), str(root / name)) for name, data, folder in wanted]
        result = subprocess.run(
            [options.mergekit, "-c", THEIRS, str(SEED)],
            input=json.dumps(jobs),
            text=True,
            capture_output=True,
            check=True,
        )
        failures = [line for line in result.stderr.splitlines() if line.startswith(str(root))]
        wrong = [line for name, data, folder in wanted for line in compare(name, data, folder, root / name)]
    for line in [*failures, *sorted(wrong)]:
        print(line)
    print(f"{len(wanted)} merges compared, {len(wrong)} tensors differ")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
