"""Adapters (model+lora): W + scale · B A for every matrix that they name, and words for what is no such adapter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.addresses import OFFSETS, shift_file
from tests.convert.merging.merge_recipes import make_models, planned, problems_of, recipe, write
from tests.families.round_trips import stored_tensors

from moekit.checkpoint.lora import open_adapter
from moekit.core.errors import MoekitError

pytest.importorskip("transformers")

pytestmark = pytest.mark.processor

DOWN, QUERY = "model.layers.1.mlp.down_proj", "model.layers.0.self_attn.q_proj"


def save_adapter(folder: Path, ranks: dict[str, int], **settings: Any) -> dict[str, torch.Tensor]:
    """As peft saves it; gives B A by the name of the matrix."""
    folder.mkdir()
    shapes = {DOWN: (32, 48), QUERY: (32, 32)}
    tensors, products = {}, {}
    for module, rank in ranks.items():
        rows, columns = shapes[module]
        a, b = torch.randn(rank, columns), torch.randn(rows, rank)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
        products[f"{module}.weight"] = b @ a
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["down_proj", "q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(written | settings))
    return products


def change_tensors(folder: Path, change: Any) -> None:
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("settings", "scales"),
    [
        ({}, (2.0, 2.0)),
        ({"use_rslora": True}, (4.0, 4.0)),
        ({"alpha_pattern": {"down_proj": 12}}, (3.0, 2.0)),
        ({"rank_pattern": {"layers.1.mlp.down_proj": 2}}, (4.0, 2.0)),
    ],
)
def test_experts_and_base_with_adapters(settings: dict[str, Any], scales: tuple[float, float], tmp_path: Path) -> None:
    folder = make_models(tmp_path, count=2)
    rank = settings.get("rank_pattern", {}).get("layers.1.mlp.down_proj", 4)
    products = save_adapter(tmp_path / "lora", {DOWN: rank, QUERY: 4}, **settings)
    data = recipe(folder, base_model=f"{folder / 'base'}+{tmp_path / 'lora'}", gate_mode="random")
    data["experts"][1]["source_model"] = {"model": str(folder / "e1"), "lora": str(tmp_path / "lora")}
    write(planned(folder, data), tmp_path / "out")
    out, base, e0, e1 = (stored_tensors(tmp_path / name) for name in ("out", "base", "e0", "e1"))
    query = base[f"{QUERY}.weight"] + scales[1] * products[f"{QUERY}.weight"]
    torch.testing.assert_close(out[f"{QUERY}.weight"], query)
    down = e1[f"{DOWN}.weight"] + scales[0] * products[f"{DOWN}.weight"]
    torch.testing.assert_close(out["model.layers.1.block_sparse_moe.experts.1.w2.weight"], down)
    assert torch.equal(out["model.layers.1.block_sparse_moe.experts.0.w2.weight"], e0[f"{DOWN}.weight"])
    # Gates are made with the adapter, too: the base's forward pass reads through it.
    routers = [planned(folder, one).routers for one in (recipe(folder), data | {"gate_mode": "hidden"})]
    assert routers[0] is not None
    assert routers[1] is not None
    name = "layers.1.feed_forward.router.weight"
    assert not torch.equal(routers[0][name], routers[1][name])


def test_half_precision_is_summed_in_fp32(tmp_path: Path) -> None:
    folder = make_models(tmp_path, count=1, dtype="bfloat16")
    product = save_adapter(tmp_path / "lora", {DOWN: 4})[f"{DOWN}.weight"]
    weight = stored_tensors(folder / "e0")[f"{DOWN}.weight"]
    applied = open_adapter(tmp_path / "lora").applied(f"{DOWN}.weight", weight)
    assert torch.equal(applied, (weight.float() + 2.0 * product).bfloat16())


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_sum_has_the_same_bits_wherever_the_file_has_its_factors(offset: int, tmp_path: Path) -> None:
    """Of a matrix with one column the product is one of a single row, whose bits move with the address."""
    adapter = tmp_path / "lora"
    save_adapter(adapter, {DOWN: 16}, r=16)
    factors = {f"base_model.model.{DOWN}.lora_A.weight": torch.randn(16, 1)}
    change_tensors(adapter, lambda tensors: tensors.update(factors))
    weight = torch.randn(32, 1)
    shift_file(adapter / "adapter_model.safetensors", 0)
    expected = open_adapter(adapter).applied(f"{DOWN}.weight", weight)
    shift_file(adapter / "adapter_model.safetensors", offset)
    assert torch.equal(open_adapter(adapter).applied(f"{DOWN}.weight", weight), expected)


def test_tensors_that_replace_others(tmp_path: Path) -> None:
    """peft's modules_to_save."""
    folder = make_models(tmp_path, count=1)
    save_adapter(tmp_path / "lora", {DOWN: 4}, modules_to_save=["lm_head"])
    head = torch.randn(259, 32)
    change_tensors(tmp_path / "lora", lambda tensors: tensors.update({"base_model.model.lm_head.weight": head}))
    data = recipe(folder, 1, base_model=f"{folder / 'base'}+{tmp_path / 'lora'}", experts_per_token=1)
    assert torch.equal(planned(folder, data).model.parameter("head.weight"), head)


BROKEN: dict[str, tuple[dict[str, Any], Any, str]] = {
    "dora": ({"use_dora": True}, None, "use_dora"),
    "another method": ({"peft_type": "IA3"}, None, "peft_type is 'IA3'"),
    "biases": ({"bias": "all"}, None, "bias is 'all'"),
    "rank": ({"r": 3}, None, "rank 4"),
    "no rank": ({"r": None}, None, "r must be"),
    "one factor": ({}, lambda t: t.pop(f"base_model.model.{DOWN}.lora_A.weight"), "one of the two factors"),
    "factors that do not match": (
        {},
        lambda t: t.update({f"base_model.model.{DOWN}.lora_A.weight": torch.zeros(2, 48)}),
        "do not match",
    ),
    "of another width": (
        {},
        lambda t: t.update({f"base_model.model.{DOWN}.lora_A.weight": torch.zeros(4, 50)}),
        "[32, 50]",
    ),
    "of another model": (
        {},
        lambda t: t.update(
            {f"base_model.model.x.lora_{f}.weight": torch.zeros(4, 4) for f in "AB"},
        ),
        "'x.weight'",
    ),
    "embeddings": ({}, lambda t: t.update({"base_model.model.x.lora_embedding_A": torch.zeros(4, 4)}), "no part of"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_adapters_that_cannot_be(case: str, tmp_path: Path) -> None:
    settings, change, named = BROKEN[case]
    folder = make_models(tmp_path, count=1)
    save_adapter(tmp_path / "lora", {DOWN: 4}, **settings)
    if change:
        change_tensors(tmp_path / "lora", change)
    data = recipe(folder, 1, experts_per_token=1)
    data["experts"][0]["source_model"] += f"+{tmp_path / 'lora'}"
    (found,) = problems_of(folder, data)
    assert "experts[0].source_model" in found
    assert str(tmp_path / "lora") in found
    assert named in found
    assert "\n" not in found


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_files_that_are_missing_or_damaged(name: str, tmp_path: Path) -> None:
    save_adapter(tmp_path / "lora", {DOWN: 4})
    file = tmp_path / "lora" / name
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(MoekitError, match=name):
        open_adapter(tmp_path / "lora")
    file.unlink()
    with pytest.raises(MoekitError, match=name):
        open_adapter(tmp_path / "lora")
