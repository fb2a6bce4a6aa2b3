"""Upcycling: the same function to rounding wherever it can be, and said where it cannot."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.convert.dense_models import TOKENS, check_same, difference, expected_logits, logits, model_type, save

from moekit.checkpoint.stored_tensors import StoredTensors
from moekit.config import MoEConfig
from moekit.convert.dense_to_moe import upcycling as module
from moekit.convert.dense_to_moe.dense_conversion import DenseConversion
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling, shares
from moekit.convert.storage import streaming_writer as streaming
from moekit.convert.storage.partial_folder import partial_folder
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import ProgressEvent
from moekit.models import load

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    ("name", "options", "written"),
    [
        ("llama", {}, "mixtral"),
        ("llama", {"shared": 1}, "qwen2_moe"),
        ("llama", {"shared": 1, "layers": "alternate"}, "qwen2_moe"),
        ("llama", {"layers": (0,)}, "moekit_decoder"),
        ("mistral", {}, "mixtral"),
        ("mistral", {"granularity": 2, "top_k": 6, "shared": 2}, "qwen2_moe"),
        ("qwen2", {"shared": 2}, "qwen2_moe"),
        ("qwen3", {}, "qwen3_moe"),
        ("qwen3", {"layers": "alternate", "granularity": 4, "top_k": 4}, "qwen3_moe"),
        ("qwen3", {"shared": 1}, "moekit_decoder"),
        ("falcon", {"granularity": 4, "top_k": 8, "shared": 3}, "moekit_decoder"),
        ("llama-with-biases", {}, "moekit_decoder"),
        ("llama-with-biases", {"granularity": 2, "top_k": 2, "shared": 1}, "moekit_decoder"),
        ("scaled", {"top_k": 3}, "moekit_decoder"),
        ("latent", {"shared": 1}, "deepseek_v3"),
        ("latent", {"granularity": 2, "top_k": 4, "shared": 3, "layers": (1,)}, "deepseek_v3"),
    ],
)
def test_every_family_and_the_folder_it_becomes(
    dense: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any], written: str
) -> None:
    report = plan_upcycling(dense[name], Upcycling(**options)).run(tmp_path / "out")
    assert report.exact
    assert report.max_logit_difference <= 1e-5
    assert report.model_type == model_type(tmp_path / "out") == written
    check_same(dense[name], tmp_path / "out")


@pytest.mark.parametrize("granularity", [1, 2, 4])
@pytest.mark.parametrize(("name", "shared"), [("llama", 0), ("llama", 1), ("gpt2", 0), ("gpt2", 2)])
def test_exact_for_every_k_and_many_routers(
    dense: dict[str, Path], tmp_path: Path, name: str, shared: int, granularity: int
) -> None:
    """Weights renormalised: whole groups of parts are chosen, whatever the router."""
    experts = 3
    for copies in range(1, experts + 1):
        if copies * granularity == 1:
            continue  # a renormalised router of one expert never learns
        options = Upcycling(
            experts=experts,
            granularity=granularity,
            top_k=copies * granularity,
            shared=shared,
            router_std=0.3,
            renormalize=True,
        )
        assert plan_upcycling(dense[name], options).run(tmp_path / str(copies)).exact
        check_same(dense[name], tmp_path / str(copies), other_routers=4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("top_k", [1, 2, 3, 4])
@pytest.mark.parametrize("shared", [0, 1])
def test_softmax_before_the_choice_is_exact_for_a_uniform_router(
    dense: dict[str, Path], tmp_path: Path, name: str, top_k: int, shared: int
) -> None:
    options = Upcycling(experts=4, top_k=top_k, renormalize=False, router_std=0.0, shared=shared)
    assert options.scale == 4 / top_k
    assert plan_upcycling(dense[name], options).run(tmp_path / "out").exact
    check_same(dense[name], tmp_path / "out")


@pytest.mark.parametrize(("name", "granularity"), [("gpt2", 1), ("llama", 2), ("gpt2", 4)])
def test_softmax_before_the_choice_is_exact_where_all_are_chosen(
    dense: dict[str, Path], tmp_path: Path, name: str, granularity: int
) -> None:
    options = Upcycling(experts=4, granularity=granularity, top_k=4 * granularity, renormalize=False, router_std=0.5)
    assert plan_upcycling(dense[name], options).run(tmp_path / "out").exact
    check_same(dense[name], tmp_path / "out")


@pytest.mark.parametrize(
    "options",
    [
        {"renormalize": False},
        {"top_k": 1},
        {"renormalize": False, "granularity": 2, "top_k": 4},
        {"granularity": 4, "top_k": 3},
        {"method": "noise"},
        {"method": "drop"},
    ],
)
def test_elsewhere_the_drift_is_measured(dense: dict[str, Path], tmp_path: Path, options: dict[str, Any]) -> None:
    report = plan_upcycling(dense["llama"], Upcycling(experts=4, **options)).run(tmp_path / "out")
    assert not report.exact
    assert report.inexact_because
    assert report.tolerance is None
    # What it says is what a user would find: the same order of size on other tokens.
    seen = difference(expected_logits(dense["llama"]), logits(tmp_path / "out", TOKENS)[0])
    assert report.max_logit_difference > 1e-5
    assert 1 / 4 < seen / report.max_logit_difference < 4


def test_a_nearly_uniform_router_drifts_little(dense: dict[str, Path], tmp_path: Path) -> None:
    """The scale E G² / K is right, also where parts are chosen: what is left goes with the router's size."""
    drifts = []
    for std in (1e-2, 1e-3):
        options = Upcycling(experts=4, granularity=2, top_k=4, renormalize=False, router_std=std)
        drifts.append(plan_upcycling(dense["llama"], options).run(tmp_path / f"{std}").max_logit_difference)
    assert drifts[1] < 0.04
    assert 5 < drifts[0] / drifts[1] < 20


@pytest.mark.parametrize(
    "options",
    [{"granularity": 2, "top_k": 4}, {"renormalize": False, "router_std": 0.0}, {"granularity": 4, "top_k": 4}],
)
@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_without_the_scale_it_fails_and_nothing_is_left(
    dense: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Upcycling, "scale", 1.0)
    with pytest.raises(MoekitError, match="not the same function"):
        plan_upcycling(dense[name], Upcycling(**options)).run(tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_a_shared_expert_that_doubles_the_output_fails(
    dense: dict[str, Path], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shares(1, 1, gated=name == "llama")
    doubled = module.Shares(whole.slots, (1.0,))
    monkeypatch.setattr(module, "shares", lambda *arguments, **named: doubled)
    with pytest.raises(MoekitError, match="not the same function"):
        plan_upcycling(dense[name], Upcycling(shared=1)).run(tmp_path / "out")


def test_a_damaged_copy_fails(dense: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conversion = plan_upcycling(dense["llama"], Upcycling())
    verify = DenseConversion.verify

    def damaged(self: DenseConversion, folder: Path) -> Any:
        file = folder / "model.safetensors"
        info = StoredTensors.open(folder)["model.layers.1.input_layernorm.weight"]
        with file.open("r+b") as opened:
            opened.seek(info.start)
            opened.write(b"\x01")
        return verify(self, folder)

    monkeypatch.setattr(DenseConversion, "verify", damaged)
    with pytest.raises(MoekitError, match=r"attention_norm.*damaged"):
        conversion.run(tmp_path / "out")
    assert os.listdir(tmp_path) == []


def test_half_precision_keeps_the_bits(tmp_path: Path) -> None:
    source = save(tmp_path, "llama", torch.bfloat16)
    report = plan_upcycling(source, Upcycling(granularity=2, top_k=2)).run(tmp_path / "out")
    assert report.tolerance == 1e-5
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(source / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    down = given["model.layers.0.mlp.down_proj.weight"]
    gate = given["model.layers.0.mlp.gate_proj.weight"]
    experts = "model.layers.0.block_sparse_moe.experts."
    for expert in range(16):
        part = slice(expert % 2 * 24, expert % 2 * 24 + 24)
        assert torch.equal(found[f"{experts}{expert}.w2.weight"], down[:, part] * 2)
        assert torch.equal(found[f"{experts}{expert}.w1.weight"], gate[part])
    check_same(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("llama", {"granularity": 3, "top_k": 3}),  # three times a bfloat16 is not one
        # Matrices times 1/2, 1 and 4, which is exact, but three shared parts of four hold 3/8 of the bias.
        ("gpt2", {"granularity": 4, "top_k": 4, "shared": 3}),
    ],
)
def test_a_factor_that_half_precision_rounds(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    """As near as the type allows."""
    report = plan_upcycling(save(tmp_path, name, torch.bfloat16), Upcycling(**options)).run(tmp_path / "out")
    assert report.tolerance is not None
    assert 1e-4 < report.max_logit_difference < report.tolerance < 0.2


def test_what_drop_leaves_and_draws(tmp_path: Path, dense: dict[str, Path]) -> None:
    options = Upcycling(experts=3, method="drop", drop=0.25, seed=4)
    plan_upcycling(dense["llama"], options).run(tmp_path / "out")
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(dense["llama"] / "model.safetensors")
    sets = []
    for expert in range(3):
        changed = []
        for theirs, ours, by_column in (("w1", "gate", False), ("w3", "up", False), ("w2", "down", True)):
            new = found[f"model.layers.1.block_sparse_moe.experts.{expert}.{theirs}.weight"]
            old = given[f"model.layers.1.mlp.{ours}_proj.weight"]
            new, old = (new.t(), old.t()) if by_column else (new, old)
            rows = (new != old).any(1)
            assert int(rows.sum()) == 12
            assert (new[rows] != old[rows]).all()
            # 12 · 32 draws: the mean within four standard errors, the deviation within a fifth.
            assert abs(new[rows].mean() - old[rows].mean()) < 4 * old[rows].std() / (12 * 32) ** 0.5
            assert 0.8 < new[rows].std() / old[rows].std() < 1.2
            changed.append(rows.nonzero().flatten().tolist())
        assert changed[0] == changed[1] == changed[2]
        sets.append(tuple(changed[0]))
    assert len(set(sets)) == 3


def test_noise_is_as_large_as_asked_for(tmp_path: Path, dense: dict[str, Path]) -> None:
    plan_upcycling(dense["falcon-rw"], Upcycling(experts=2, method="noise", noise=0.1)).run(tmp_path / "out")
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(dense["falcon-rw"] / "model.safetensors")
    # Of 48 draws the deviation is known to a tenth.
    for ours, theirs, most in (("down_EDF", "4h_to_h.weight", 0.02), ("gate_up_bias_EG", "h_to_4h.bias", 0.04)):
        new, old = found[f"layers.0.feed_forward.experts.{ours}"], given[f"transformer.h.0.mlp.dense_{theirs}"]
        for expert in new:
            assert abs((expert - old).std() / old.std() - 0.1) < most
        assert not torch.equal(new[0], new[1])
    stays = given["transformer.h.0.mlp.dense_4h_to_h.bias"]
    assert torch.equal(found["layers.0.feed_forward.experts.down_bias_ED"], stays.expand(2, 32))


def test_a_source_in_other_order_is_not_changed_by_drop(tmp_path: Path, dense: dict[str, Path]) -> None:
    """GPT-2's matrices are stored transposed, so they are assembled, and what was assembled is used again."""
    options = Upcycling(experts=3, method="drop", drop=0.1)
    plan_upcycling(dense["gpt2"], options).run(tmp_path / "out")
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(dense["gpt2"] / "model.safetensors")
    experts, mlp = "layers.0.feed_forward.experts.", "transformer.h.0.mlp."
    kept = (found[experts + "down_EDF"] == given[mlp + "c_proj.weight"].t()).all(1)
    assert kept.sum(1).tolist() == [43, 43, 43]
    # A channel's bias goes with its weights.
    assert torch.equal(found[experts + "gate_up_bias_EG"] == given[mlp + "c_fc.bias"], kept)


def test_router_and_seed(tmp_path: Path, dense: dict[str, Path]) -> None:
    weights = []
    for number, seed in enumerate((0, 0, 1)):
        options = Upcycling(experts=8, granularity=2, top_k=2, seed=seed, router_std=0.05)
        plan_upcycling(dense["llama"], options).run(tmp_path / str(number))
        weights.append(load_file(tmp_path / str(number) / "model.safetensors"))
    gate = "model.layers.{}.block_sparse_moe.gate.weight"
    rows = weights[0][gate.format(0)].view(8, 2, 32)
    assert torch.equal(rows[:, 0], rows[:, 1])
    assert 0.03 < rows.std() < 0.07
    assert not torch.equal(weights[0][gate.format(0)], weights[0][gate.format(1)])
    assert not torch.equal(weights[0][gate.format(0)], weights[2][gate.format(0)])
    first, again = ((tmp_path / number / "model.safetensors").read_bytes() for number in "01")
    assert first == again


def test_transformers_reads_it_as_the_same_function(tmp_path: Path, dense: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers")
    for name, options in (
        ("llama", {}),
        ("llama", {"shared": 2, "granularity": 2}),
        ("qwen3", {"layers": "alternate"}),
    ):
        out = tmp_path / f"{name}-{len(options)}"
        plan_upcycling(dense[name], Upcycling(**options)).run(out)
        read = transformers.AutoModelForCausalLM
        theirs, info = read.from_pretrained(out, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        with torch.no_grad():
            expected = read.from_pretrained(dense[name])(TOKENS).logits
            assert difference(expected, theirs.eval()(TOKENS).logits) <= 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": 5}, "48 channels, which granularity 5 does not divide"),
        ({"layers": (0, 7)}, "no layer 7: .* has 2, from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_the_model(dense: dict[str, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_upcycling(dense["llama"], Upcycling(**options))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 9},
        {"top_k": 1, "renormalize": True},
        {"layers": ()},
        {"method": "blend"},
        {"experts": 0},
        {"drop": 0.0},
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"top_k|top-1|layer|method|experts|drop"):
        Upcycling(**options)


def test_models_that_cannot_be_upcycled(tmp_path: Path, dense: dict[str, Path]) -> None:
    plan_upcycling(dense["llama"], Upcycling(layers=(1,))).run(tmp_path / "half")
    with pytest.raises(UsageError, match=r"Layer 1 .* mixture already"):
        plan_upcycling(tmp_path / "half", Upcycling())
    plan_upcycling(tmp_path / "half", Upcycling(layers=(0,))).run(tmp_path / "whole")
    assert all(isinstance(layer, MoEConfig) for layer in load(tmp_path / "whole").config.feed_forwards)  # type: ignore[attr-defined]
    check_same(dense["llama"], tmp_path / "whole")


@pytest.mark.parametrize(("name", "options"), [("llama", {}), ("qwen2", {"shared": 1}), ("gpt2", {"granularity": 2})])
def test_the_plan_is_what_is_written_and_reads_no_weight(
    dense: dict[str, Path], tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    (tmp_path / "source").mkdir()
    for file in dense[name].iterdir():
        (tmp_path / "source" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "source" / "tokenizer.json").write_text("{}")
    conversion = plan_upcycling(tmp_path / "source", Upcycling(**options))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StoredTensors, "read", lambda *arguments: pytest.fail("a weight was read"))
        plan = conversion.plan(tmp_path / "out")
    assert plan.problems == []
    assert not partial_folder(tmp_path / "out").exists()
    conversion.run(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"
    assert plan.output_bytes == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert plan.params_total == sum(parameter.numel() for parameter in load(tmp_path / "out").parameters())
    taken = conversion.plan(tmp_path / "out")
    assert len(taken.problems) == 1
    assert "exists already" in taken.problems[0]


def test_a_run_that_was_stopped_goes_on(
    dense: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Exception):
        pass

    monkeypatch.setattr(streaming, "_CHUNK_BYTES", 4096)  # so that there is something between first and last
    reports: list[ProgressEvent] = []
    plan_upcycling(dense["llama"], Upcycling(method="drop")).run(tmp_path / "whole", reports.append)
    assert len(reports) > 20

    for limit in (1, len(reports) // 3, len(reports) * 2 // 3):
        left = limit

        def stop(event: ProgressEvent) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Stopped

        with pytest.raises(Stopped):
            plan_upcycling(dense["llama"], Upcycling(method="drop")).run(tmp_path / "out", stop)
    with pytest.raises(UsageError, match="another result"):
        plan_upcycling(dense["llama"], Upcycling(method="drop", seed=1)).run(tmp_path / "out")
    plan_upcycling(dense["llama"], Upcycling(method="drop")).run(tmp_path / "out")
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
