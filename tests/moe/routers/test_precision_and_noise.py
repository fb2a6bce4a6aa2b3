"""What a router must not do: round its choices, draw in evaluation, change its input, lose its bias."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.moe.routers import samples
from torch import Tensor

from moekit.config import SigmoidBiasConfig
from moekit.moe import Router
from moekit.moe.routers import SigmoidBias

pytestmark = pytest.mark.processor

RANDOM = ["noisy_top_k", "switch", "gshard"]


def outcome(router: Router, x_TD: Tensor) -> tuple[list[tuple[int, int, float]], list[list[float]]]:
    routing = router(x_TD, samples.given(len(x_TD)))
    return samples.listed(routing), routing.probs_TE.tolist()


@pytest.mark.parametrize("kind", list(samples.KINDS))
def test_evaluation_draws_nothing(kind: str) -> None:
    router = samples.router(kind).eval()
    x_TD = torch.randn(30, samples.WIDTH, dtype=torch.float64)
    state = torch.get_rng_state()
    first = outcome(router, x_TD)
    assert torch.equal(torch.get_rng_state(), state)
    assert outcome(router, x_TD) == first


@pytest.mark.parametrize("kind", RANDOM)
def test_training_draws_anew_each_time(kind: str) -> None:
    router = samples.router(kind)
    x_TD = torch.randn(30, samples.WIDTH, dtype=torch.float64)
    assert outcome(router, x_TD) != outcome(router, x_TD)


@pytest.mark.parametrize("kind", list(samples.KINDS))
@pytest.mark.parametrize("training", [True, False])
def test_the_input_stays_as_it_was(kind: str, training: bool) -> None:
    """Jitter in place would reach the experts too."""
    x_TD = torch.randn(30, samples.WIDTH, dtype=torch.float64)
    before_TD = x_TD.clone()
    outcome(samples.router(kind).train(training), x_TD)
    assert torch.equal(x_TD, before_TD)


@pytest.mark.parametrize("kind", list(samples.KINDS))
@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_a_router_computes_as_without(kind: str, training: bool) -> None:
    """In fp32, from an input that bf16 rounded: the same choices, and weights, to the bit."""
    router = samples.router(kind, experts=8).float().train(training)
    x_TD = torch.randn(64, samples.WIDTH).bfloat16()
    torch.manual_seed(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = router(x_TD, samples.given(64))
    torch.manual_seed(8)
    wanted = router(x_TD.float(), samples.given(64))
    assert got.probs_TE.dtype == got.assignments.weight_S.dtype == torch.float32
    assert samples.listed(got) == samples.listed(wanted)
    for name, value in wanted.sums.items():
        assert torch.equal(got.sums[name], value), name


@pytest.mark.parametrize("kind", samples.LEARNED)
def test_a_router_in_bf16_still_computes_in_fp32(kind: str) -> None:
    router = samples.router(kind, experts=8).bfloat16().eval()
    x_TD = torch.randn(64, samples.WIDTH).bfloat16()
    probs_TE = router(x_TD, samples.given(64)).probs_TE
    logits_TE = x_TD.float() @ router.weight.float().t()
    wanted_TE = logits_TE.sigmoid() if kind == "sigmoid_bias" else logits_TE.softmax(-1)
    torch.testing.assert_close(probs_TE, wanted_TE, rtol=1e-5, atol=1e-7)


def bias_router(**changes: object) -> SigmoidBias:
    router = samples.router("sigmoid_bias", **changes)
    assert isinstance(router, SigmoidBias)
    return router


def test_the_bias_stays_in_fp32() -> None:
    router = bias_router()
    router.bias_E.fill_(0.123456)
    module = torch.nn.Sequential(router).to(torch.bfloat16)
    assert router.weight.dtype == torch.bfloat16
    assert router.bias_E.dtype == torch.float32
    assert (router.bias_E == torch.tensor(0.123456)).all()
    assert module.half()[0].bias_E.dtype == torch.float32


def test_a_thousand_small_steps_of_the_bias_add_up_in_a_bf16_model() -> None:
    router = bias_router().bfloat16()
    for _ in range(1000):
        router.after_step({"chosen": torch.tensor([9, 1, 5, 5])})
    assert router.bias_E.tolist() == pytest.approx([-1.0, 1.0, 0.0, 0.0], rel=1e-4)


def test_the_bias_is_saved_with_the_weights(tmp_path: Path) -> None:
    router, other = bias_router(), bias_router()
    router.after_step({"chosen": torch.tensor([9, 1, 5, 5])})
    save_file(router.state_dict(), tmp_path / "router.safetensors")
    other.load_state_dict(load_file(tmp_path / "router.safetensors"), strict=True)
    assert other.bias_E.any()
    assert torch.equal(other.bias_E, router.bias_E)


@pytest.mark.parametrize("training", [True, False])
def test_the_bias_moves_only_after_a_step(training: bool) -> None:
    router = bias_router().train(training)
    router.bias_E.copy_(torch.tensor([0.5, -0.5, 0.0, 0.25]))
    before_E = router.bias_E.clone()
    for _ in range(3):
        outcome(router, torch.randn(30, samples.WIDTH, dtype=torch.float64))
    assert torch.equal(router.bias_E, before_E)
    assert "bias_E" not in dict(router.named_parameters())


def test_the_bias_chooses_and_does_not_weigh() -> None:
    router = bias_router(renormalize=False)
    router.bias_E.copy_(torch.tensor([5.0, 5.0, 0.0, 0.0]))
    x_TD = torch.randn(9, samples.WIDTH, dtype=torch.float64)
    score_TE = (x_TD @ router.weight.t()).sigmoid()
    for expert, token, weight in samples.listed(router(x_TD)):
        assert expert < 2
        assert weight == pytest.approx(score_TE[token, expert].item(), rel=1e-12)


def test_groups_limit_the_choice() -> None:
    """The best expert stands in a group whose second is bad, so that its group loses."""
    router = bias_router(experts=6, groups=3, top_groups=1)
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor([4.0, -4.0, 1.0, 1.1, 0.0, 0.5])
    x_TD = torch.eye(1, samples.WIDTH, dtype=torch.float64)
    assert [expert for expert, *_ in samples.listed(router(x_TD))] == [2, 3]


@pytest.mark.parametrize("changes", [{"groups": 2, "top_groups": 3}, {"groups": 3}, {"groups": 4, "top_k": 3}])
def test_groups_that_do_not_fit_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="group"):
        SigmoidBiasConfig(**({"top_k": 2} | changes)).check_experts(8)


def test_balanced_hashing_evens_out_the_load_of_unequal_ids() -> None:
    router = samples.router("hash")
    frequency_V = torch.arange(samples.VOCAB, 0, -1) ** 2
    router.balance(frequency_V)  # type: ignore[operator]
    load_E = torch.zeros(4, dtype=torch.int64).index_add(0, router.expert_V, frequency_V)
    assert load_E.max() - load_E.min() <= 25
