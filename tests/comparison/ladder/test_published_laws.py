"""Published laws, held to what their papers print beside the constants."""

import pytest

from moekit.comparison.ladder import published_laws
from moekit.comparison.ladder.published_laws import (
    PUBLISHED_LAWS,
    Sparsity,
    clark_equivalent,
    krajewski_loss,
    ling_leverage,
    ludziejewski_loss,
    ludziejewski_terms,
)

BY_NAME = {law.name: law for law in PUBLISHED_LAWS}


@pytest.mark.parametrize(
    ("experts", "terms"),
    [
        (1, (30.3640, -0.1817, 53.9838, -0.1965)),
        (4, (24.8462, -0.1731, 87.7022, -0.2192)),
        (32, (16.5424, -0.1557, 234.6726, -0.2652)),
    ],
)
def test_ludziejewski_reduces_to_the_printed_table(experts: int, terms: tuple[float, ...]) -> None:
    """Table 4 of arXiv 2502.05172, to the rounding of the constants."""
    assert ludziejewski_terms(experts) == pytest.approx(terms, rel=5e-3)


@pytest.mark.parametrize(
    ("flops", "experts", "size", "tokens"),
    [(1e20, 1, 1.7e9, 9.7e9), (1e20, 8, 990e6, 17e9), (1e21, 32, 2.85e9, 58.4e9), (1e22, 1, 18.8e9, 88.6e9)],
)
def test_ludziejewski_has_the_printed_optima(flops: float, experts: int, size: float, tokens: float) -> None:
    """Table 1 of arXiv 2502.05172: the best N and D, at which the loss is no more than beside them."""
    m, mu, n, nu = ludziejewski_terms(experts)
    printed = m * size**mu + n * tokens**nu + 1.3637
    assert printed == pytest.approx(ludziejewski_loss(flops, experts), abs=2e-3)


def test_more_experts_never_raise_the_loss() -> None:
    """A transcription with wrong signs in circulation has a loss that rises with experts."""
    for flops in (1e18, 1e20, 1e22):
        losses = [ludziejewski_loss(flops, experts) for experts in (1, 2, 4, 8, 16, 32)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] - losses[-1] > 0.02


@pytest.mark.parametrize(
    ("flops", "granularity", "loss"),
    [(2.95e18, 8, 3.133), (1.93e20, 16, 2.491), (6.46e21, 32, 2.076), (4.16e23, 32, 1.694), (4.97e25, 64, 1.367)],
)
def test_krajewski_has_the_printed_losses(flops: float, granularity: float, loss: float) -> None:
    """Table 2 of arXiv 2402.07871: N is then all parameters; the constants have three digits."""
    assert krajewski_loss(flops, granularity) == pytest.approx(loss, abs=0.03)


def test_krajewski_gains_twentyfold_at_1e20() -> None:
    mixture = Sparsity(expansion=64, granularity=8, active_experts=16)
    assert 18 < BY_NAME["Krajewski 2024"].leverage(mixture, 1e20) < 23


def test_clark_has_the_printed_equivalent() -> None:
    """5 M parameters with 128 experts equal a dense model of 55 M, and one expert is dense (arXiv 2202.01169)."""
    assert clark_equivalent(5e6, 128) == pytest.approx(55e6, rel=0.1)
    assert clark_equivalent(1e9, 1) == pytest.approx(1e9)
    assert clark_equivalent(2e12, 64) < 2e12  # beyond about 1e12 routing does not help there


def test_ling_has_the_printed_leverage() -> None:
    """Above 7 at 1e22 FLOPs, 3.1 % and granularity 12; the best granularity between 8 and 12; dense is 1."""
    assert 7 < ling_leverage(0.031, 12, 1e22) < 7.5
    assert 8 <= max(range(1, 40), key=lambda fine: ling_leverage(0.031, fine, 1e21)) <= 12
    assert ling_leverage(1, 2, 1e20) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("law", PUBLISHED_LAWS, ids=lambda law: law.name)
def test_leverage_of_a_sparser_mixture_is_larger_within_the_range(law: published_laws.PublishedLaw) -> None:
    middle = (law.flops[0] * law.flops[1]) ** 0.5
    mixtures = [Sparsity(expansion=x, granularity=8, active_experts=8) for x in (2, 4, 8, 16, 32, 64)]
    found = [law.leverage(one, middle) for one in mixtures if law.speaks_of(one)]
    assert found == sorted(found)
    assert all(value > 0.9 for value in found)


def test_laws_do_not_speak_of_what_they_never_saw() -> None:
    few, many = Sparsity(4, 4, 2), Sparsity(64, 4, 2)
    assert not BY_NAME["Krajewski 2024"].speaks_of(few)
    assert not BY_NAME["Ludziejewski 2025"].speaks_of(many)
    assert not any(law.speaks_of(Sparsity(1, 4, 1)) for law in PUBLISHED_LAWS)
