"""Networks cut into experts of their channels."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.convert.dense_models import VOCAB, difference, logits

from moekit.convert.dense_to_moe.splitting import Splitting, activity, balanced_clusters, plan_splitting
from moekit.convert.dense_to_moe.upcycling import generator
from moekit.convert.expert_channels import Slot
from moekit.core.errors import MoekitError, UsageError
from moekit.models import load
from moekit.models.stored_model import StoredModel

pytestmark = pytest.mark.usefixtures("quick")
METHODS = ["random", "clustered", "co-activation"]
TOKENS = torch.randint(0, VOCAB, (3, 14), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "llama-with-biases", "gpt2"])
@pytest.mark.parametrize("experts", [2, 6])
def test_all_experts_are_the_network(
    dense: dict[str, Path], tmp_path: Path, name: str, method: str, experts: int
) -> None:
    options = Splitting.model_validate({"experts": experts, "top_k": experts, "method": method})
    report = plan_splitting(dense[name], options, TOKENS).run(tmp_path / "out")
    assert report.exact
    assert report.max_logit_difference <= 1e-5
    real_BT = torch.arange(14) < torch.tensor([[14], [9], [5]])
    (expected,), (whole, padded) = (
        logits(dense[name], TOKENS),
        logits(tmp_path / "out", TOKENS, TOKENS, real_BT=real_BT),
    )
    assert difference(expected, whole) <= 1e-5
    assert difference(expected[real_BT], padded[real_BT]) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_channel_is_in_one_expert(dense: dict[str, Path], tmp_path: Path, method: str) -> None:
    options = Splitting.model_validate({"experts": 4, "top_k": 2, "method": method})
    report = plan_splitting(dense["llama"], options, TOKENS).run(tmp_path / "out")
    assert not report.exact
    assert report.max_logit_difference > 0.01
    assert report.model_type == "mixtral"
    found, given = load_file(tmp_path / "out/model.safetensors"), load_file(dense["llama"] / "model.safetensors")
    places = []
    experts = [f"model.layers.0.block_sparse_moe.experts.{expert}" for expert in range(4)]
    for theirs, ours, dimension, scale in (("w1", "gate", 0, 1), ("w3", "up", 0, 1), ("w2", "down", 1, 4)):
        whole = torch.cat([found[f"{expert}.{theirs}.weight"] for expert in experts], dimension)
        old = given[f"model.layers.0.mlp.{ours}_proj.weight"] * scale
        whole, old = (whole.t(), old.t()) if dimension else (whole, old)
        place = torch.cdist(whole.double(), old.double()).argmin(1)
        assert torch.equal(whole, old[place])
        assert sorted(place.tolist()) == list(range(48))
        places.append(place.tolist())
    # The same channels of all three matrices, in the same order.
    assert places[0] == places[1] == places[2]


def test_without_the_scale_it_fails(dense: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moekit.convert.dense_to_moe import splitting as module

    real = module.Slot
    monkeypatch.setattr(module, "Slot", lambda **given: real(**given | {"scale": 1.0}))
    with pytest.raises(MoekitError, match="not the same function"):
        plan_splitting(dense["llama"], Splitting(experts=4, top_k=4, method="random")).run(tmp_path / "out")


@pytest.mark.parametrize("wrong", [0.0, 0.25, 4.0])
def test_with_a_bias_scaled_wrongly_it_fails(
    dense: dict[str, Path], tmp_path: Path, wrong: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of four experts holds the whole bias of down; neither a share of it, nor that times 4 like the matrix."""
    monkeypatch.setattr(Slot, "bias_scale", wrong)
    with pytest.raises(MoekitError, match="not the same function"):
        plan_splitting(dense["gpt2"], Splitting(experts=4, top_k=4, method="random")).run(tmp_path / "out")


def test_biases_go_with_their_channels(dense: dict[str, Path], tmp_path: Path) -> None:
    plan_splitting(dense["llama-with-biases"], Splitting(experts=4, top_k=4, method="random")).run(tmp_path / "out")
    found = load_file(tmp_path / "out/model.safetensors")
    given = load_file(dense["llama-with-biases"] / "model.safetensors")
    experts, mlp = "layers.1.feed_forward.experts.", "model.layers.1.mlp."
    rows = [
        torch.cat([given[f"{mlp}{part}.weight"], given[f"{mlp}{part}.bias"][:, None]], 1)
        for part in ("gate_proj", "up_proj")
    ]
    old = torch.stack(rows, 1)
    new = torch.cat([found[experts + "gate_up_EGD"], found[experts + "gate_up_bias_EG"][:, :, None]], 2)
    new = new.view(4, 2, 12, 33).transpose(1, 2).flatten(0, 1)
    place = torch.cdist(new[:, 0, :-1].double(), old[:, 0, :-1].double()).argmin(1)
    assert sorted(place.tolist()) == list(range(48))
    assert torch.equal(new, old[place])
    assert torch.equal(found[experts + "down_bias_ED"], given[mlp + "down_proj.bias"].expand(4, 32))


def test_a_router_that_is_drawn_drifts(dense: dict[str, Path], tmp_path: Path) -> None:
    options = Splitting(experts=4, top_k=4, method="random", router_std=0.02)
    report = plan_splitting(dense["llama"], options).run(tmp_path / "out")
    assert not report.exact
    assert report.max_logit_difference > 1e-4


def test_clusters_that_are_there_are_found() -> None:
    centres = torch.eye(4, 10)
    order = torch.randperm(48)
    features = (centres.repeat_interleave(12, 0) + torch.randn(48, 10) * 0.05)[order]
    features *= torch.rand(48, 1) * 5 + 0.1  # directions count, lengths do not
    found = balanced_clusters(features, 4, generator(1))
    assert sorted(channel for part in found for channel in part) == list(range(48))
    assert {frozenset((order[part] // 12).tolist()) for part in found} == {frozenset([n]) for n in range(4)}


def test_clusters_are_of_one_size_where_the_data_are_not() -> None:
    features = torch.cat([torch.ones(20, 3), torch.eye(3)[:1].expand(4, 3), torch.zeros(8, 3)])
    assert [len(part) for part in balanced_clusters(features, 4, generator(0))] == [8, 8, 8, 8]


@pytest.mark.parametrize("name", ["falcon", "falcon-rw"])
def test_activity_is_that_of_the_network(dense: dict[str, Path], name: str) -> None:
    """Against the loaded model's own hidden values, found by a hook."""
    folder = dense[name]
    seen: list[torch.Tensor] = []
    model = load(folder)
    model.layers[1].feed_forward.down.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(TOKENS)
    hidden_TF = seen[0].flatten(0, 1).abs()
    ((layer, active_FT),) = activity(StoredModel(folder), [1], TOKENS)
    assert layer == 1
    assert active_FT.shape == (48, TOKENS.numel())
    assert active_FT.sum(0).tolist() == [5.0] * TOKENS.numel()
    kept, left = hidden_TF[active_FT.t() == 1].view(-1, 5), hidden_TF[active_FT.t() == 0].view(-1, 43)
    assert (kept.amin(1) >= left.amax(1)).all()


def test_what_does_not_fit(dense: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="48 channels, which 5 experts do not divide"):
        plan_splitting(dense["llama"], Splitting(experts=5))
    with pytest.raises(UsageError, match="looks at a text"):
        plan_splitting(dense["llama"], Splitting(method="co-activation"))
    with pytest.raises(ValueError, match="top_k"):
        Splitting(experts=4, top_k=5)
