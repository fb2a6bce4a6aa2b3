"""Every router against loops written from its paper: the same experts, weights, counts and losses, in double."""

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.moe.routers import reference as ref
from tests.moe.routers import samples
from torch import Tensor

from moekit.moe import Decision, Router, RouterInput, Routing

EXAMPLES = settings(deadline=None, max_examples=50)
FACTORS = st.sampled_from([None, 0.1, 0.3, 0.5, 1.0, 1.1, 1.25, 2.0])


class Case:
    """A router, its input, and the same as lists; `run` routes with fresh random numbers that `replay` gives again."""

    def __init__(self, made: Router, seed: int, real: list[bool], *, training: bool) -> None:
        self.router, self.real, self.seed = made.train(training), real, seed
        torch.manual_seed(seed)
        for parameter in made.parameters():
            torch.nn.init.normal_(parameter)
        self.x_TD = torch.randn(len(real), samples.WIDTH, dtype=torch.float64)
        self.token_T = torch.randint(0, samples.VOCAB, (len(real),))
        self.x, self.weight = self.x_TD.tolist(), [] if not list(made.parameters()) else made.weight.tolist()

    def run(self, decision: Decision | None = None) -> Routing:
        # Where nothing is padding, half of the cases say so and half say nothing.
        mask_T = None if all(self.real) and self.seed % 2 else torch.tensor(self.real)
        torch.manual_seed(self.seed + 1)
        with torch.no_grad():
            return self.router(self.x_TD, RouterInput(token_T=self.token_T, real_T=mask_T, decision=decision))

    def replay(self) -> None:
        torch.manual_seed(self.seed + 1)

    def like(self, *shape: int) -> Tensor:
        return torch.empty(*shape, dtype=torch.float64)


@st.composite
def shapes(draw: Any, least_experts: int = 1) -> tuple[int, int, list[bool], int, bool]:
    """E, K from 1 to E, which tokens are real (at least one), a seed, training or not."""
    experts = draw(st.integers(least_experts, 8))
    real = (
        draw(st.lists(st.booleans(), min_size=1, max_size=14))
        if draw(st.booleans())
        else [True] * draw(st.integers(1, 14))
    )
    assume(any(real))
    return experts, draw(st.integers(1, experts)), real, draw(st.integers(0, 10_000)), draw(st.booleans())


def check(case: Case, expected: ref.Expected) -> None:
    routing = case.run()
    got = samples.listed(routing)
    assert [pair[:2] for pair in got] == [pair[:2] for pair in expected.kept]
    assert [weight for *_, weight in got] == pytest.approx([weight for *_, weight in expected.kept], rel=1e-12)
    experts = len(expected.chosen)
    computed = ref.tally(experts, [expert for expert, _, _ in expected.kept])
    assert routing.counts_E.tolist() == routing.sums["computed"].tolist() == computed
    assert routing.sums["chosen"].tolist() == expected.chosen
    assert routing.sums["tokens"].item() == sum(case.real)
    for got_row, wanted, real in zip(routing.probs_TE.tolist(), expected.probs, case.real, strict=True):
        assert not real or got_row == pytest.approx(wanted, rel=1e-12, abs=1e-300)
    top = sum(max(row) for row, real in zip(expected.probs, case.real, strict=True) if real)
    assert routing.sums["top_score"].item() == pytest.approx(top, rel=1e-12)
    if case.router.training:
        losses = case.router.losses(routing.sums)
        assert losses.keys() == case.router.coefficients.keys()
        for name, loss in losses.items():
            wanted_loss = expected.losses[name] * case.router.coefficients[name]
            assert loss.item() == pytest.approx(wanted_loss, rel=1e-12, abs=1e-14), name


@EXAMPLES
@given(shape=shapes(), renormalize=st.booleans(), factor=FACTORS)
def test_softmax_top_k_is_the_papers(shape: Any, renormalize: bool, factor: float | None) -> None:
    experts, k, real, seed, training = shape
    training = training and not (renormalize and k == 1)  # which would not learn
    made = samples.router("softmax_top_k", experts, top_k=k, renormalize=renormalize, capacity_factor=factor)
    case = Case(made, seed, real, training=training)
    check(case, ref.softmax_top_k(case.x, case.weight, real, k=k, renormalize=renormalize, factor=factor))


@EXAMPLES
@given(shape=shapes(), jitter=st.sampled_from([0.0, 0.01, 0.5]), factor=FACTORS)
def test_switch_is_the_papers(shape: Any, jitter: float, factor: float | None) -> None:
    experts, _, real, seed, training = shape
    case = Case(samples.router("switch", experts, jitter=jitter, capacity_factor=factor), seed, real, training=training)
    case.replay()
    drawn = case.like(*case.x_TD.shape).uniform_(1 - jitter, 1 + jitter).tolist() if training and jitter else None
    check(case, ref.switch(case.x, case.weight, real, jitter=drawn, factor=factor))


@EXAMPLES
@given(shape=shapes(least_experts=2), factor=FACTORS)
def test_noisy_top_k_is_the_papers(shape: Any, factor: float | None) -> None:
    experts, k, real, seed, training = shape
    training = training and k > 1  # the only one of one expert would not learn
    case = Case(samples.router("noisy_top_k", experts, top_k=k, capacity_factor=factor), seed, real, training=training)
    case.replay()
    noise = torch.randn_like(case.like(len(real), experts)).tolist() if training else None
    noise_weight = case.router.noise_weight.tolist()
    check(case, ref.noisy_top_k(case.x, case.weight, noise_weight, real, k=k, noise=noise, factor=factor))


@EXAMPLES
@given(shape=shapes(least_experts=2), threshold=st.sampled_from([0.0, 0.2, 0.5, 1.0]), factor=FACTORS)
def test_gshard_is_the_papers(shape: Any, threshold: float, factor: float | None) -> None:
    experts, _, real, seed, training = shape
    case = Case(
        samples.router("gshard", experts, second_threshold=threshold, capacity_factor=factor),
        *(seed, real),
        training=training,
    )
    case.replay()
    u = torch.rand_like(case.like(len(real))).tolist() if training and threshold else None
    check(case, ref.gshard(case.x, case.weight, real, u=u, threshold=threshold, factor=factor))


@EXAMPLES
@given(shape=shapes())
def test_expert_choice_is_the_papers(shape: Any) -> None:
    experts, mean, real, seed, training = shape
    case = Case(samples.router("expert_choice", experts, mean_experts=mean), seed, real, training=training)
    check(case, ref.expert_choice(case.x, case.weight, real, mean_experts=mean))


@EXAMPLES
@given(
    shape=shapes(),
    groups=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2), (4, 2), (4, 3)]),
    renormalize=st.booleans(),
    scale=st.sampled_from([1.0, 2.5]),
    factor=FACTORS,
)
def test_sigmoid_bias_is_the_papers(
    shape: Any, groups: tuple[int, int], renormalize: bool, scale: float, factor: float | None
) -> None:
    size, k, real, seed, training = shape
    many, top = groups
    experts, k = size * many, min(k, size * top)
    training = training and not (renormalize and k == 1)  # which would not learn
    changes = {"renormalize": renormalize, "scale": scale}
    made = samples.router(
        "sigmoid_bias", experts, top_k=k, groups=many, top_groups=top, capacity_factor=factor, **changes
    )
    made.bias_E.copy_(torch.linspace(-0.5, 0.5, experts)[torch.randperm(experts)])
    case = Case(made, seed, real, training=training)
    expected = ref.sigmoid_bias(
        *(case.x, case.weight, made.bias_E.tolist(), real),
        k=k,
        groups=many,
        top_groups=top,
        factor=factor,
        **changes,
    )
    check(case, expected)
    before = made.bias_E.tolist()
    made.after_step(case.run().sums)
    assert made.bias_E.tolist() == pytest.approx(ref.moved_bias(before, expected.chosen, 0.001), abs=1e-7)


@EXAMPLES
@given(shape=shapes(), factor=FACTORS)
def test_hash_is_the_table(shape: Any, factor: float | None) -> None:
    experts, _, real, seed, training = shape
    made = samples.router("hash", experts, seed=seed, capacity_factor=factor)
    case = Case(made, seed, real, training=training)
    table = made.expert_V.tolist()
    loads = ref.tally(experts, table)
    assert max(loads) - min(loads) <= 1
    check(case, ref.hashed(table, case.token_T.tolist(), experts, real, factor=factor))


@EXAMPLES
@given(shape=shapes(), iterations=st.sampled_from([1, 2, 8]), factor=FACTORS)
def test_sinkhorn_is_the_papers(shape: Any, iterations: int, factor: float | None) -> None:
    experts, k, real, seed, training = shape
    # With one or two tokens the normalised columns tie to the last bits, and which is first is rounding.
    assume(sum(real) > 2 or not training)
    made = samples.router("sinkhorn", experts, top_k=k, iterations=iterations, capacity_factor=factor)
    case = Case(made, seed, real, training=training)
    wanted = ref.sinkhorn(*(case.x, case.weight, real), k=k, iterations=iterations if training else None, factor=factor)
    check(case, wanted)


@pytest.mark.parametrize("kind", list(samples.KINDS))
def test_nothing_but_padding_is_nothing(kind: str) -> None:
    made = samples.router(kind)
    x_TD = torch.randn(5, samples.WIDTH, dtype=torch.float64)
    routing = made(x_TD, samples.given(5, real_T=torch.zeros(5, dtype=torch.bool)))
    assert samples.listed(routing) == []
    for name in ("chosen", "computed", "probs"):
        assert routing.sums[name].tolist() == [0] * 4, name
    assert routing.sums["tokens"] == 0


@pytest.mark.parametrize("kind", list(samples.KINDS))
def test_what_stands_in_padding_changes_nothing(kind: str) -> None:
    """Not even infinities there, in experts, weights or losses."""
    made = samples.router(kind)
    x_TD = torch.randn(9, samples.WIDTH, dtype=torch.float64)
    real_T = torch.arange(9) % 3 > 0
    seen = []
    for fill in (0.0, 1e3, torch.inf):
        torch.manual_seed(3)
        routing = made(x_TD.masked_fill(~real_T[:, None], fill), samples.given(9, real_T=real_T))
        seen.append((samples.listed(routing), {name: loss.item() for name, loss in made.losses(routing.sums).items()}))
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("kind", ["softmax_top_k", "switch", "gshard"])
def test_a_balanced_router_has_a_balance_loss_of_one(kind: str) -> None:
    made = samples.router(kind)
    sums = made(torch.randn(8, samples.WIDTH, dtype=torch.float64), samples.given(8)).sums
    even = {name: torch.full((4,), 10) for name in ("chosen", "first_choices")}
    losses = samples.unscaled_losses(made, sums | even | {"probs": torch.full((4,), 2.0), "tokens": torch.tensor(8.0)})
    assert losses["balance"].item() == pytest.approx(1.0)
