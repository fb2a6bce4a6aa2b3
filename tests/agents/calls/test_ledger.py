"""The budget: never over, to the last digit, and everything in the books."""

import random
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moekit.agents.calls.budget_ledger import Ledger, Reservation, money
from moekit.agents.config.agents_config import BudgetConfig, PriceConfig
from moekit.agents.members.member import MemberError
from moekit.core.messages import Usage

PRICE = PriceConfig(input=0.1, output=0.3)


def usage(prompt: int, completion: int = 0) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion)


def test_what_is_set_aside_cannot_be_spent_twice() -> None:
    ledger = Ledger(BudgetConfig(tokens=100))
    first = ledger.reserve("a", usage(40, 20), None)
    with pytest.raises(MemberError, match=r"^b may need up to 41 tokens, .* has 40 of 100 left\.$") as error:
        ledger.reserve("b", usage(41), None)
    assert (error.value.reason, error.value.retryable, error.value.usage) == ("budget", False, Usage())
    ledger.settle(first, usage(30, 5))
    ledger.reserve("b", usage(65), None)


def test_what_nobody_knows_stays_set_aside() -> None:
    ledger = Ledger(BudgetConfig(tokens=100))
    ledger.settle(ledger.reserve("a", usage(40, 20), PRICE), None)
    ledger.settle(ledger.reserve("a", usage(10, 30), PRICE), usage(9, 1))
    spent = ledger.spent
    assert (spent.usage, spent.unsettled) == (usage(9, 1), usage(40, 20))
    assert spent.cost == float(money(usage(9, 1), PRICE))
    assert spent.unsettled_cost == float(money(usage(40, 20), PRICE))
    with pytest.raises(MemberError):
        ledger.reserve("a", usage(31), PRICE)


def test_a_budget_can_be_spent_to_the_last_digit() -> None:
    """Ten times 0.1 are 1, which binary floats do not say."""
    ledger = Ledger(BudgetConfig(money=1.0))
    for _ in range(10):
        ledger.settle(ledger.reserve("a", usage(1_000_000), PRICE), usage(1_000_000))
    assert ledger.spent.cost == 1.0
    with pytest.raises(MemberError, match=r"^a may need up to 1E-7 of money, .* has 0\S* of 1\.0 left\.$|0\.0000001"):
        ledger.reserve("a", usage(1), PRICE)


def test_cost_is_unknown_where_a_price_is() -> None:
    ledger = Ledger(BudgetConfig())
    ledger.settle(ledger.reserve("a", usage(10), None), Usage())
    assert ledger.spent.cost == 0  # it came to nothing
    ledger.settle(ledger.reserve("a", usage(10), None), usage(1))
    assert ledger.spent.cost is None
    assert ledger.spent.unsettled_cost is None


@given(seed=st.integers(0, 2**32), tokens=st.integers(1, 2000), cents=st.integers(1, 500))
def test_no_order_of_events_spends_more_than_the_budget(seed: int, tokens: int, cents: int) -> None:
    """A server of the test's own counts; no request costs more than was set aside for it."""
    draw = random.Random(seed)
    ledger = Ledger(BudgetConfig(tokens=tokens, money=cents / 1_000_000))
    open_: list[tuple[Reservation, PriceConfig]] = []
    used, told, cost = 0, Usage(), Decimal(0)
    for _ in range(60):
        if open_ and draw.random() < 0.5:
            reservation, price = open_.pop(draw.randrange(len(open_)))
            most = reservation.usage
            really = usage(draw.randint(0, most.prompt_tokens), draw.randint(0, most.completion_tokens))
            known = draw.random() < 0.7
            ledger.settle(reservation, really if known else None)
            used, cost = used + really.total_tokens, cost + money(really, price)
            told += really if known else Usage()
        else:
            price = PriceConfig(input=draw.choice([0.0, 0.15, 1.1]), output=draw.choice([0.6, 4.4]))
            try:
                open_.append((ledger.reserve("a", usage(draw.randint(1, 200), draw.randint(1, 50)), price), price))
            except MemberError:
                continue
        assert used <= tokens
        assert cost <= Decimal(cents) / 1_000_000
        assert ledger.spent.usage == told
