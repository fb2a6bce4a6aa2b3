"""The budget of an answer, by the count of the servers themselves."""

import asyncio
import random
from collections.abc import Sequence

from tests.agents.in_memory import OPTIONS, QUESTION, Answering, Asking, Complete, FakeMember, reply, run

from moekit.agents.config.agents_config import PriceConfig
from moekit.agents.members.member import MemberError
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage


def anyhow(draw: random.Random, books: list[Usage], told: list[Usage]) -> Complete:
    """A member that fails in every way there is; books: its own count; told: what it says of it."""

    async def complete(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
        assert options.max_tokens is not None
        most = sum(len(message.content) for message in messages)
        used = Usage(prompt_tokens=draw.randint(1, most), completion_tokens=draw.randint(1, options.max_tokens))
        kind = draw.choice(["well", "well", "well", "silent", "refused", "unreachable", "broken", "empty", "hangs"])
        if kind != "refused":
            books.append(used)
        await asyncio.sleep(draw.choice([0.1, 1.0, 20.0]) if kind != "hangs" else 1000.0)
        match kind:
            case "well" | "empty":
                told.append(used)
            case "refused":
                raise MemberError("refused.", reason="status", retryable=draw.random() < 0.5, usage=Usage())
            case "broken" | "unreachable":
                raise MemberError("broken.", reason="truncated", retryable=True)
        if kind == "empty":
            raise MemberError("empty.", reason="empty", usage=used)
        return reply("x" * draw.randint(1, 30), used if kind != "silent" else Usage())

    return complete


async def one_random_answer(seed: int) -> bool:
    """Whether there was an answer; in any case, no more was spent than the budget, by the servers' own count."""
    draw = random.Random(seed)
    books: list[Usage] = []
    told: list[Usage] = []
    prices = {name: PriceConfig(input=draw.choice([0.5, 1.1]), output=draw.choice([2.0, 7.7])) for name in "abc"}
    tokens, money = draw.randint(50, 1500), draw.choice([None, draw.randint(50, 3000) / 1e6])
    members = [
        FakeMember(name, anyhow(draw, books, told), price=prices[name], max_tokens=draw.randint(1, 40))
        for name in "abc"
    ]
    answering = Answering(
        *members,
        strategies={"s": Asking("ab", quorum=1, then="c"), "t": Asking("sb", quorum=2, then="s")},
        budget={"tokens": tokens, "money": money},
        hedge_after=draw.choice([None, 5.0]),
        retries=1,
    )
    try:
        await answering.session.ask(draw.choice("st"), QUESTION, OPTIONS, stage="")
    except MoekitError:
        return False
    finally:
        spent = answering.ledger.spent
        assert spent.usage == sum(told, Usage())
        assert sum(books, Usage()).total_tokens <= tokens
        assert spent.usage.total_tokens + spent.unsettled.total_tokens <= tokens
        if money is not None:
            assert spent.cost is not None
            assert spent.unsettled_cost is not None
            assert spent.cost + spent.unsettled_cost <= money * (1 + 1e-12)  # both are rounded to floats
    return True


def test_a_thousand_random_answers_never_cost_more_than_their_budget() -> None:
    """With retries, hedging, layers, strategies in strategies and every kind of failure."""

    async def main() -> list[bool]:
        return [await one_random_answer(seed) for seed in range(1000)]

    answered = sum(run(main()))
    assert 100 < answered < 900
