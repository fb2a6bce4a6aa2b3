"""Merges written to disk: what is in them, that others read them, and what is found before any work."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.merging.merge_recipes import (
    CASES,
    PROMPTS,
    case_recipe,
    make_models,
    plan_of,
    planned,
    problems_of,
    recipe,
    write,
    write_recipe,
)
from tests.families.round_trips import check_logits, stored_tensors
from torch import Tensor

from moekit.convert.merging.merge_config import GATE_MODES, read_merge_config
from moekit.convert.merging.merged_model import MergedModel
from moekit.convert.merging.mergekit_arithmetic import Draw, Noise
from moekit.convert.merging.prompts import prompt_encoder
from moekit.convert.merging.router_training import loaded
from moekit.core.errors import UsageError
from moekit.models import Decoder, load

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.processor

TOKENS = torch.tensor([[1, 9, 30, 47, 200, 8], [1, 4, 250, 6, 7, 90]])


def written(merge: MergedModel, folder: Path, **options: Any) -> Path:
    write(merge, folder, **options)
    return folder


def logits_of(model: Any) -> Tensor:
    with torch.no_grad():
        found = model(TOKENS)
    return found if isinstance(found, Tensor) else found.logits


@pytest.mark.parametrize("case", CASES)
def test_every_matrix_comes_from_its_model(case: str, tmp_path: Path) -> None:
    """And everything else from the base; written by name, not by the plan's own reading."""
    kind, settings, _ = CASES[case]
    folder = make_models(tmp_path, kind, **settings)
    data = case_recipe(folder, case, gate_mode="random")
    merge = planned(folder, data)
    out = stored_tensors(written(merge, tmp_path / "out"))
    base, models = stored_tensors(folder / "base"), [stored_tensors(folder / f"e{index}") for index in range(3)]
    parts = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    for name, tensor in out.items():
        before, _, last = name.partition(".experts.")
        if last:
            expert, part = last.split(".")[:2]
            place = before.rpartition(".")[0] + f".mlp.{parts.get(part, part)}.weight"
            assert torch.equal(tensor, models[int(expert)][place]), name
        elif ".shared_expert" in name and "gate.weight" not in name:
            place = name.replace(".shared_experts.", ".").replace(".shared_expert.", ".")
            assert torch.equal(tensor, models[1][place]), name
        elif name.endswith(("gate.weight",)):
            assert tensor.shape[1] == 32
        elif name in base:
            assert torch.equal(tensor, base[name]), name
        else:
            assert name.endswith("_proj.bias"), name
            assert not tensor.any(), name
    assert len(out) == len(merge.tensors)
    assert {name for name in base if ".mlp." not in name} <= out.keys()


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("deepseek")])
@pytest.mark.parametrize("fused", [False, True])
def test_transformers_and_moekit_read_the_same_model(case: str, fused: bool, tmp_path: Path) -> None:
    kind, settings, _ = CASES[case]
    folder = make_models(tmp_path, kind, **settings)
    merge = planned(folder, case_recipe(folder, case), fused=fused)
    out = written(merge, tmp_path / "out")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    assert theirs.config.num_experts_per_tok == 2
    expected = logits_of(theirs.eval())
    check_logits(expected, logits_of(loaded(merge)))
    check_logits(expected, logits_of(load(out)))


@pytest.mark.parametrize("mode", GATE_MODES)
def test_what_is_in_memory_is_what_is_written(mode: str, tmp_path: Path) -> None:
    folder = make_models(tmp_path, CASES["mixtral"][0], **CASES["mixtral"][1])
    merge = planned(folder, case_recipe(folder, "mixtral", gate_mode=mode))
    written_model, in_memory = load(written(merge, tmp_path / "out")), loaded(merge)
    assert isinstance(written_model, Decoder)
    for (name, theirs), ours in zip(written_model.state_dict().items(), in_memory.state_dict().values(), strict=True):
        assert torch.equal(theirs, ours), name


@pytest.mark.parametrize("case", ["mixtral", "deepseek", "qwen3-moe"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_copies_of_one_model_compute_what_it_does(case: str, top_k: int, tmp_path: Path) -> None:
    """For any router: the weights sum to 1. With another model among them they do not."""
    kind, settings, _ = CASES[case]
    folder = make_models(tmp_path, kind, **settings)
    data = case_recipe(folder, case, gate_mode="random", experts_per_token=top_k)
    for expert in data["experts"]:
        expert["source_model"] = str(folder / "base")
    expected = logits_of(load(folder / "base"))
    check_logits(expected, logits_of(loaded(planned(folder, data))))
    for expert in data["experts"]:
        expert["source_model"] = str(folder / "e0")
    with pytest.raises(AssertionError):
        check_logits(expected, logits_of(loaded(planned(folder, data))))


def test_a_shared_expert_is_added_as_it_is_or_behind_its_gate(tmp_path: Path) -> None:
    """With routed experts that write nothing DeepSeek's shared expert is the whole; Qwen's is halved by a zero gate."""
    folder = make_models(tmp_path)
    shared = [{"source_model": str(folder / "base")}]
    data = recipe(folder, gate_mode="random", architecture="deepseek", shared_experts=shared)
    for expert in data["experts"]:
        expert["residual_scale"] = 0.0
    check_logits(logits_of(load(folder / "base")), logits_of(loaded(planned(folder, data))))
    halved = make_models(tmp_path / "halved", count=2)
    data = recipe(
        halved, gate_mode="random", architecture="qwen", shared_experts=[{"source_model": str(halved / "base")}]
    )
    for expert in data["experts"]:
        expert["residual_scale"] = 0.0
    model = loaded(planned(halved, data))
    for layer in model.moe_layers:
        assert layer.branch_gate is not None
        torch.nn.init.zeros_(layer.branch_gate.weight)
    dense = load(halved / "base")
    with torch.no_grad():
        for layer in dense.layers:  # type: ignore[union-attr]
            layer.feed_forward.down.weight.mul_(0.5)
    check_logits(logits_of(dense), logits_of(model))


def test_one_expert_a_token_is_written_and_read_by_transformers(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    merge = planned(folder, recipe(folder, experts_per_token=1))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(merge, tmp_path / "out"))
    assert theirs.config.num_experts_per_tok == 1
    check_logits(logits_of(theirs.eval()), logits_of(loaded(merge)))


def test_an_averaged_backbone_is_the_mean_of_the_experts(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    merge = planned(folder, recipe(folder, 3, backbone="average"))
    out = stored_tensors(written(merge, tmp_path / "out"))
    models = [stored_tensors(folder / f"e{index}") for index in range(3)]
    for name in ("model.embed_tokens.weight", "model.layers.1.self_attn.k_proj.weight", "lm_head.weight"):
        torch.testing.assert_close(out[name], torch.stack([model[name] for model in models]).mean(0))
    torch.testing.assert_close(merge.model.rows("embedding.weight", 3, 5), out["model.embed_tokens.weight"][3:5])


def test_noise_and_scale_change_what_they_say(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    data = recipe(folder, gate_mode="uniform_random")
    data["experts"][0] |= {"noise_scale": 0.25, "residual_scale": 3.0}
    merge = planned(folder, data, seed=3)
    plain = stored_tensors(folder / "e0")
    for matrix, scale in (("gate", 1.0), ("down", 3.0)):
        dense = plain[f"model.layers.1.mlp.{matrix}_proj.weight"]
        noise = expert_matrix(merge, 0, matrix) / scale - dense
        assert 0.2 < float(noise.std()) < 0.3
    assert torch.equal(
        expert_matrix(merge, 1, "down"), stored_tensors(folder / "e1")["model.layers.1.mlp.down_proj.weight"]
    )
    other = planned(folder, data, seed=4)
    assert not torch.equal(expert_matrix(merge, 0, "up"), expert_matrix(other, 0, "up"))


def expert_matrix(merge: MergedModel, expert: int, matrix: str) -> Tensor:
    """Give a matrix of an expert of layer 1, as the result holds it."""
    if matrix == "down":
        return merge.model.parameter("layers.1.feed_forward.experts.down_EDF")[expert]
    gate, up = merge.model.parameter("layers.1.feed_forward.experts.gate_up_EGD")[expert].chunk(2)
    return gate if matrix == "gate" else up


def test_noise_is_the_same_in_any_order() -> None:
    draws = [Draw(index, (3 + 7 * index,), torch.float32 if index % 2 else torch.bfloat16) for index in range(9)]
    torch.manual_seed(2)
    expected = [torch.randn(draw.shape, dtype=draw.dtype) for draw in draws]
    noise = Noise(torch.Generator().manual_seed(2), draws)
    for index in (4, 0, 8, 7, 4, 1):
        assert torch.equal(noise.of(index), expected[index])


@pytest.mark.parametrize("fused", [False, True])
def test_the_forecast_is_exact(fused: bool, tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    conversion = plan_of(folder, recipe(folder), fused=fused)
    found = conversion.plan(tmp_path / "out")
    conversion.run(out := tmp_path / "out")
    assert found.peak_memory_bytes is not None
    assert found.output_bytes == sum(file.stat().st_size for file in out.glob("model*"))
    assert found.tensors == len(stored_tensors(out))
    assert found.peak_memory_bytes > 0


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    data = recipe(folder, gate_mode="fitted")
    data["experts"][1]["noise_scale"] = 0.1
    first, second = (written(planned(folder, data, seed=1), tmp_path / name) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_what_stands_beside_the_weights(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    out = written(planned(folder, recipe(folder, gate_mode="fitted")), tmp_path / "out", command="moekit merge x.yaml")
    report = json.loads((out / "report.json").read_text())
    assert [text["meant"] for text in report["texts"]] == [0, 0, 1, 1]
    assert all(abs(sum(layer) - 1) < 1e-3 for text in report["texts"] for layer in text["top_1"])
    assert len(report["accuracy"]) == 2
    # In the first layer; the second reads what strangers wrote, these models having nothing in common.
    assert report["accuracy"][0] > 0.8
    card = (out / "README.md").read_text()
    for fact in ("`fitted`", "seed 0", "moekit merge x.yaml", str(folder / "e1"), "prompts of expert 1"):
        assert fact in card
    assert read_merge_config(out / "merge.json") == read_merge_config(
        write_recipe(folder, recipe(folder, gate_mode="fitted"))
    )


def test_the_report_says_what_the_written_model_s_routers_do(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    merge = planned(folder, recipe(folder, 3, backbone="average"))
    out = written(merge, tmp_path / "out")
    report = json.loads((out / "report.json").read_text())
    model = load(out)
    for index, prompt in enumerate(prompt for expert in range(3) for prompt in PROMPTS[expert]):
        routings: list[Any] = []
        with torch.no_grad():
            model(torch.tensor([prompt_encoder(merge.base).ids(prompt)]), routings=routings)
        for layer, routing in enumerate(routings):
            first = routing.probs_TE.argmax(-1).bincount(minlength=3) / len(routing.probs_TE)
            torch.testing.assert_close(torch.tensor(report["texts"][index]["top_1"][layer]), first, atol=1e-4, rtol=0)


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


PROBLEMS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "too many a token": ({"experts_per_token": 5}, ("experts_per_token", "5", "2 experts")),
    "architecture": ({"architecture": "mixtrall"}, ("architecture", "'mixtrall'", "Mixtral")),
    "no shared expert in Mixtral": (
        {"architecture": "mixtral", "shared_experts": [{"source_model": "BASE"}]},
        ("architecture", "Mixtral has 0 in shared_experts", "BASE"),
    ),
    "one shared expert in Qwen": (
        {"architecture": "qwen"},
        ("architecture", "Qwen MoE has 1 in shared_experts", "BASE"),
    ),
    "a shared expert without prompts": (
        {"architecture": "qwen", "shared_experts": [{"source_model": "BASE"}]},
        ("shared_experts[0].positive_prompts", "BASE"),
    ),
    "two shared experts": (
        {"architecture": "deepseek", "shared_experts": [{"source_model": "BASE"}, {"source_model": "BASE"}]},
        ("architecture", "DeepSeek MoE has 0 to 1 in shared_experts and not 2"),
    ),
    "a model that is not there": (
        {"base_model": "/nowhere/at/all"},
        ("base_model", "/nowhere/at/all", "no folder"),
    ),
    "an adapter that is not there": (
        {"base_model": "BASE+/nowhere/lora"},
        ("base_model", "BASE+/nowhere/lora", "adapter"),
    ),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_name_key_and_model(case: str, tmp_path: Path) -> None:
    folder = make_models(tmp_path, count=2)
    changes, parts = PROBLEMS[case]
    text = json.dumps(changes).replace("BASE", str(folder / "base"))
    found = problems_of(folder, recipe(folder, **json.loads(text)))
    assert len(found) == 1, found
    for part in parts:
        assert part.replace("BASE", str(folder / "base")) in found[0]
    assert "\n" not in found[0]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"vocab_size": 300}, "vocab_size is 300"),
        ({"hidden_size": 64}, "hidden_size is 64"),
        ({"intermediate_size": 40}, "intermediate_size is 40"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3"),
        ({"num_key_value_heads": 4}, "num_key_value_heads is 4"),
    ],
)
def test_models_that_do_not_fit(settings: dict[str, Any], key: str, tmp_path: Path) -> None:
    folder = make_models(tmp_path, count=2)
    other = make_models(tmp_path / "other", count=1, **settings)
    data = recipe(folder)
    data["experts"][1]["source_model"] = str(other / "e0")
    found = problems_of(folder, data)
    assert len(found) == 1
    assert f"experts[1].source_model: {other / 'e0'}" in found[0]
    assert key in found[0]
    assert str(folder / "base") in found[0]


def test_prompts_and_tokenizers_that_are_missing(tmp_path: Path) -> None:
    folder = make_models(tmp_path)
    data = recipe(folder)
    del data["experts"][1]["positive_prompts"]
    assert "experts[1].positive_prompts" in problems_of(folder, data)[0]
    assert str(folder / "e1") in problems_of(folder, data)[0]
    assert not problems_of(folder, data | {"gate_mode": "random"})
    data["experts"][1]["positive_prompts"] = data["experts"][0]["positive_prompts"]
    assert "same prompts" in problems_of(folder, data)[0]
    without(folder / "base", "tokenizer.json")
    (found,) = problems_of(folder, recipe(folder))
    assert "base_model" in found
    assert str(folder / "base") in found
    assert "tokenizer.json" in found


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"gate_mode": "hiden"}, ("gate_mode", "'hiden'", "did you mean 'hidden'")),
        ({"gate_mod": "hidden"}, ("gate_mod", "did you mean 'gate_mode'")),
        ({"dtype": "bfloat61"}, ("dtype", "'bfloat16'")),
        ({"base_model": None}, ("base_model", "missing")),
        ({"experts": []}, ("experts", "1 or more")),
        ({"experts": [{"source_model": "a+b+c"}]}, ("experts[0].source_model", "a+b+c")),
        ({"experts": [{"source_modl": "a"}]}, ("experts[0].source_modl", "did you mean 'source_model'")),
        ({"base_model": "a/b@main"}, ("base_model", "revision")),
    ],
)
def test_a_file_that_cannot_be(changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    file = write_recipe(tmp_path, recipe(tmp_path, **changes))
    with pytest.raises(UsageError, match=r"merge\.yaml") as caught:
        read_merge_config(file)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_references_as_mergekit_writes_them(tmp_path: Path) -> None:
    odd = tmp_path / "a+b@c"
    odd.mkdir()
    data = {
        "base_model": {"model": {"path": "owner/name", "revision": None}, "lora": "owner/adapter"},
        "experts": [{"source_model": str(odd), "positive_prompts": None}, {"source_model": "x/y+z"}],
        "shared_experts": None,
    }
    config = read_merge_config(write_recipe(tmp_path, data))
    assert str(config.base_model) == "owner/name+owner/adapter"
    assert [one.source_model.lora for one in config.experts] == [None, "z"]
    assert config.experts[0].source_model.model == str(odd)
    assert config.gate_mode == "hidden"
    assert config.experts_per_token == 2
