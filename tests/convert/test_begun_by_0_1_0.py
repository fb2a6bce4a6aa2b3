"""Runs that version 0.1.0 began go on: what tells a run's plan from others is what that version said of it.

`begun_by_0_1_0.json` holds, by conversion, a digest of names, types, shapes and pieces of all tensors and of the
settings, made by that version.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.convert.dense_models import MODELS, save
from tests.convert.merging.merge_recipes import CASES, case_recipe, make_models, plan_of, recipe
from tests.convert.merging.test_merge_adapters import DOWN, QUERY, save_adapter

from moekit.convert.dense_to_moe.splitting import Splitting, plan_splitting
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling
from moekit.convert.merging.merge_conversion import run_settings
from moekit.convert.storage.output_tensors import Copy, OutputTensor

DIGESTS: dict[str, str] = json.loads(Path(__file__).with_name("begun_by_0_1_0.json").read_text())
UPCYCLINGS: dict[str, dict[str, Any]] = {
    "copy": {},
    "drop": {"method": "drop"},
    "granular": {"granularity": 2, "top_k": 4, "shared": 1},
    "alternate": {"layers": "alternate", "method": "noise"},
}
MERGES: dict[str, Callable[[Path, str], tuple[dict[str, Any], dict[str, Any]]]] = {
    "hidden": lambda folder, case: (case_recipe(folder, case, gate_mode="hidden"), {"seed": 3}),
    "fitted": lambda folder, case: (case_recipe(folder, case, gate_mode="fitted"), {"seed": 3}),
    "average noise": lambda folder, case: (averaged(folder, case), {}),
    "fused": lambda folder, case: (case_recipe(folder, case), {"fused": True}),
    "fused noise": lambda folder, case: (averaged(folder, case), {"fused": True}),
}


def averaged(folder: Path, case: str) -> dict[str, Any]:
    """A recipe with the mean of the backbones, noise and a scale."""
    data = case_recipe(folder, case, dtype=None, backbone="average")
    for expert in data["experts"]:
        expert |= {"noise_scale": 0.1, "residual_scale": 0.5}
    return data


def digest(tensors: Sequence[OutputTensor], settings: str, root: Path) -> str:
    """Digest what decides whether a run goes on, but for where and how old the files are."""
    described = []
    for tensor in tensors:
        pieces: list[list[Any]] = []
        for piece in tensor.pieces:
            if isinstance(piece, Copy):
                file = piece.tensors[piece.name].file.relative_to(root)
                pieces.append([str(file), piece.name, piece.begin_row, piece.end_row])
            else:
                pieces.append([list(piece.shape), piece.key.replace(str(root), "ROOT")])
        described.append([tensor.name, str(tensor.dtype), list(tensor.shape), pieces])
    text = json.dumps([described, settings.replace(str(root), "ROOT")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("case", CASES)
def test_merges(case: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    kind, settings, _ = CASES[case]
    folder = make_models(tmp_path / case, kind, **settings)
    for name, make in MERGES.items():
        if name.startswith("fused") and case.startswith("deepseek"):
            continue
        data, options = make(folder, case)
        merged = plan_of(folder, data, **options).merged
        assert digest(merged.tensors, run_settings(merged), tmp_path) == DIGESTS[f"{case} {name}"], name


def test_a_merge_with_adapters(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    folder = make_models(tmp_path / "ad")
    save_adapter(tmp_path / "lora", {DOWN: 4, QUERY: 4})
    data = recipe(folder, base_model=f"{folder / 'base'}+{tmp_path / 'lora'}")
    data["experts"][1]["source_model"] += f"+{tmp_path / 'lora'}"
    merged = plan_of(folder, data).merged
    assert digest(merged.tensors, run_settings(merged), tmp_path) == DIGESTS["adapters"]


@pytest.mark.parametrize("name", MODELS)
def test_upcyclings_and_splits(name: str, tmp_path: Path) -> None:
    folder = save(tmp_path / "dense", name)
    for key, options in UPCYCLINGS.items():
        plan = plan_upcycling(folder, Upcycling(**options))
        assert digest(plan.tensors, plan.settings, tmp_path) == DIGESTS[f"upcycle {name} {key}"], key
    plan = plan_splitting(folder, Splitting(method="random", experts=4))
    assert digest(plan.tensors, plan.settings, tmp_path) == DIGESTS[f"split {name}"]
