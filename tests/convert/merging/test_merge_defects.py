"""What is wrong with mergekit-moe 0.1.5, one test a defect; and that training routers touches nothing else.

Adapters, which it cannot merge, are in test_merge_adapters.py; errors that it finds late, in test_merge.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.convert.merging.merge_recipes import make_models, plan_of, planned, problems_of, recipe, write
from tests.families.round_trips import stored_tensors

from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.convert.merging import router_training
from moekit.convert.merging.gates import make_gates
from moekit.convert.merging.merge_conversion import MergeConversion, MergeOptions
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.merging.router_training import RouterTraining, loaded, train_routers, training_memory_bytes
from moekit.core.errors import MoekitError
from moekit.data import Document

pytest.importorskip("transformers")


@pytest.mark.parametrize("architecture", ["qwen", "deepseek"])
def test_a_shared_expert_that_is_no_routed_expert(architecture: str, tmp_path: Path) -> None:
    """mergekit opens only the base and the routed experts and fails on any other shared one."""
    folder = make_models(tmp_path)
    shared: dict[str, Any] = {"source_model": str(folder / "e2")}
    if architecture == "qwen":
        shared["positive_prompts"] = ["anything"]
    merge = planned(folder, recipe(folder, architecture=architecture, shared_experts=[shared]))
    write(merge, tmp_path / "out")
    out, e2 = stored_tensors(tmp_path / "out"), stored_tensors(folder / "e2")
    name = "shared_expert" if architecture == "qwen" else "shared_experts"
    place = "model.layers.1.mlp.{}down_proj.weight"
    assert torch.equal(out[place.format(f"{name}.")], e2[place.format("")])


def test_the_tokenizer_is_copied_and_not_saved_with_other_padding(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    write(planned(folder, recipe(folder)), tmp_path / "out")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (folder / "base" / name).read_bytes()
    assert "padding_side" not in (tmp_path / "out" / "tokenizer_config.json").read_text()


def test_biases_of_attention_are_kept_or_refused_and_never_dropped(tmp_path: Path) -> None:
    folder = make_models(tmp_path, attention_bias=True)
    (found,) = problems_of(folder, recipe(folder))
    assert "base_model" in found
    assert str(folder / "base") in found
    assert "biases" in found
    assert "deepseek" in found
    merge = planned(folder, recipe(folder, architecture="deepseek"))
    write(merge, tmp_path / "out")
    out, base = stored_tensors(tmp_path / "out"), stored_tensors(folder / "base")
    biases = [name for name in base if name.endswith(".bias")]
    assert len(biases) == 8
    assert all(torch.equal(out[name], base[name]) for name in biases)
    qwen = make_models(tmp_path / "qwen", "Qwen2")
    shared = [{"source_model": str(qwen / "e0"), "positive_prompts": ["x"]}]
    merge = planned(qwen, recipe(qwen, shared_experts=shared))
    name = "model.layers.0.self_attn.k_proj.bias"
    keys = merge.model.parameter("layers.0.attention.query_key_value.bias")[32:48]
    assert torch.equal(keys, stored_tensors(qwen / "base")[name])


def test_biases_of_feed_forward_networks_are_refused(tmp_path: Path) -> None:
    folder = make_models(tmp_path, mlp_bias=True)
    found = problems_of(folder, recipe(folder))
    assert "mlp_bias" in found[0]
    assert str(folder / "base") in found[0]


def test_experts_have_names_that_other_readers_of_mixtral_know(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    names = {tensor.name for tensor in plan_of(folder, recipe(folder)).merged.tensors}
    assert "model.layers.0.block_sparse_moe.experts.1.w2.weight" in names
    assert "model.layers.0.block_sparse_moe.gate.weight" in names
    assert not any(".mlp." in name for name in names)
    fused = {tensor.name: tensor.shape for tensor in plan_of(folder, recipe(folder), fused=True).merged.tensors}
    assert fused["model.layers.0.mlp.experts.gate_up_proj"] == (2, 96, 32)
    assert fused["model.layers.0.mlp.experts.down_proj"] == (2, 32, 48)
    assert fused["model.layers.0.mlp.gate.weight"] == (2, 32)


def test_planning_reads_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors come before the work: a plan is made of headers, whatever the bytes behind them."""
    folder = make_models(tmp_path)
    data = recipe(folder, gate_mode="fitted")

    def read(*arguments: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(StoredTensors, "read", read)
    conversion = plan_of(folder, data)
    assert conversion.plan(tmp_path / "out").tensors == len(conversion.merged.tensors)
    with pytest.raises(AssertionError, match="a weight was read"):
        make_gates(conversion.merged)


def test_drawn_gates_need_no_tokenizer(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    (folder / "base" / "tokenizer.json").unlink()
    assert write(planned(folder, recipe(folder, gate_mode="random")), tmp_path / "out").routing is None
    assert "No text was routed" in (tmp_path / "out" / "README.md").read_text()


def test_several_problems_are_found_at_once(tmp_path: Path) -> None:
    folder = make_models(tmp_path, count=2)
    data = recipe(folder, experts_per_token=3)
    data["experts"][0]["source_model"] = "/nowhere/one"
    data["experts"][1]["source_model"] = "/nowhere/two"
    found = problems_of(folder, data)
    assert len(found) == 3


TEXT = [Document("a", "a", b"def f(x): return x\n" * 20), Document("b", "b", b"The quick brown fox jumps.\n" * 20)]
SHORT = RouterTraining(steps=15, sequences=4, tokens=24, rate=0.05)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen", "deepseek"])
@pytest.mark.parametrize("fused", [False, True])
def test_training_routers_changes_routers_alone(architecture: str, fused: bool, tmp_path: Path) -> None:
    if fused and architecture == "deepseek":
        pytest.skip("nothing reads it so")
    folder = make_models(tmp_path, dtype="bfloat16")
    shared = [{"source_model": str(folder / "e2"), "positive_prompts": ["x"]}] if architecture == "qwen" else None
    data = recipe(folder, architecture=architecture, shared_experts=shared, dtype="bfloat16")
    merge = planned(folder, data, fused=fused)
    trained = train_routers(merge, TEXT, SHORT)
    routers = trained.merged.routers
    assert routers is not None
    assert routers.keys() == merge.router_names.keys()
    write(trained.merged, tmp_path / "out", report=False)
    write(merge, tmp_path / "untrained", report=False)
    out, untrained = stored_tensors(tmp_path / "out"), stored_tensors(tmp_path / "untrained")
    assert out.keys() == untrained.keys()
    stored = {name: theirs for theirs, name in merge.router_names.items()}
    for name, tensor in out.items():
        assert torch.equal(tensor, untrained[name]) == (name not in stored), name
        assert name not in stored or torch.equal(tensor, routers[stored[name]])
        assert name not in stored or tensor.dtype is torch.bfloat16


def test_trained_routers_fit_the_text_better(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    merge = planned(folder, recipe(folder, 3, gate_mode="random"))
    trained = train_routers(merge, TEXT, SHORT)
    tokens = torch.tensor([prompt_encoder(merge.base).ids(document.text.decode())[:60] for document in TEXT])
    with torch.no_grad():
        before, after = (float(loaded(one).loss({"tokens": tokens})[0]) for one in (merge, trained.merged))
    assert after < before


def test_routers_are_trained_in_the_types_of_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 weights take half of fp32's memory, and small steps of a router add up all the same."""
    folder = make_models(tmp_path)
    merges = [planned(folder, recipe(folder, dtype=dtype)) for dtype in ("float32", "bfloat16")]
    wide, narrow = map(training_memory_bytes, merges)
    assert wide > 4 * sum(tensor.numel() for tensor in map(merges[0].model.parameter, merges[0].model.shapes))
    assert narrow < 0.75 * wide
    seen = set()
    monkeypatch.setattr(
        router_training, "_others", lambda model, others=router_training._others: _noted(others(model), seen)
    )
    trained = train_routers(merges[1], TEXT, RouterTraining(steps=30, sequences=4, tokens=24, rate=1e-3))
    assert seen == {torch.bfloat16}
    assert trained.merged.routers is not None
    for name, router in trained.merged.routers.items():
        assert not torch.equal(router, merges[1].model.parameter(name))


def _noted(tensors: dict[str, torch.Tensor], seen: set[torch.dtype]) -> dict[str, torch.Tensor]:
    seen.update(tensor.dtype for tensor in tensors.values())
    return tensors


def test_a_changed_expert_is_found(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    merge = planned(folder, recipe(folder))
    write(merge, tmp_path / "out", report=False)
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.block_sparse_moe.experts.0.w3.weight"
    tensors[name][0, 0] = tensors[name][0, 0] + 1e-6
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(MoekitError, match=name):
        MergeConversion(merged=merge, options=MergeOptions(), warnings=[]).verify(tmp_path / "out")


def test_router_training_repeats_to_the_bit(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    keys = {
        train_routers(planned(folder, recipe(folder), seed=seed), TEXT, SHORT).merged.routers_key for seed in (1, 1, 2)
    }
    assert len(keys) == 2


def test_text_without_tokens_is_refused(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    with pytest.raises(MoekitError, match="--train-router"):
        train_routers(planned(folder, recipe(folder)), [], SHORT)


def test_settings_keep_what_the_base_says(tmp_path: Path) -> None:
    folder = make_models(tmp_path, rope_parameters={"rope_type": "default", "rope_theta": 5e5}, rms_norm_eps=1e-5)
    settings = plan_of(folder, recipe(folder, architecture="deepseek")).merged.output.settings
    assert settings["rope_theta"] == 5e5
    assert settings["n_shared_experts"] is None
    assert settings["norm_topk_prob"] is True
    settings = plan_of(folder, recipe(folder, dtype=None)).merged.output.settings
    assert settings["bos_token_id"] == 1
    assert settings["rms_norm_eps"] == 1e-5
    assert json.loads(json.dumps(dict(settings)))["dtype"] == "float32"
