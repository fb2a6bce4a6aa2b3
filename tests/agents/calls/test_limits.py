"""Limits: never exceeded in any window, as a server sees it, and no slower than they must be."""

import asyncio
import random

import pytest
from tests.agents.in_memory import now, run

from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.config.agents_config import EndpointConfig
from moekit.agents.members.member import MemberError
from moekit.core.messages import Usage


def limits_of(**settings: int) -> Limits:
    return Limits("e", EndpointConfig.model_validate({"url": "http://127.0.0.1:9", **settings}))


class Server:
    """Counts what arrives, each request some time after it was sent."""

    def __init__(self, limits: Limits, *, transit_s: float = 2.0, working_s: float = 20.0) -> None:
        self.limits, self.transit_s, self.working_s = limits, transit_s, working_s
        self.arrivals: list[tuple[float, int]] = []
        self.under_way = self.most_under_way = 0

    async def ask(self, random_: random.Random, most: int) -> None:
        """One request, which uses some of its tokens, or is cancelled under way."""
        await asyncio.sleep(random_.uniform(0, 30))
        task = asyncio.create_task(self._request(random_, most))
        if random_.random() < 0.1:
            await asyncio.sleep(random_.uniform(0, 100))
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def _request(self, random_: random.Random, most: int) -> None:
        async with self.limits.slot(most) as answered:
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            used = random_.randint(1, most)
            asyncio.get_running_loop().call_later(random_.uniform(0, self.transit_s), self._arrive, used)
            try:
                await asyncio.sleep(self.transit_s + random_.uniform(0, self.working_s))
                answered(Usage(completion_tokens=used))
            finally:
                self.under_way -= 1

    def _arrive(self, used: int) -> None:
        self.arrivals.append((now(), used))

    def most_in_window(self, weights: bool) -> int:
        return max(
            sum(used if weights else 1 for at, used in self.arrivals if start <= at < start + 60.0)
            for start, _ in self.arrivals
        )


@pytest.mark.parametrize("seed", range(5))
def test_no_window_has_more_than_is_allowed(seed: int) -> None:
    random_ = random.Random(seed)

    async def main() -> None:
        server = Server(limits_of(concurrency=4, requests_per_minute=10, tokens_per_minute=500))
        await asyncio.gather(*(server.ask(random_, random_.randint(1, 100)) for _ in range(60)))
        assert server.most_in_window(weights=False) <= 10
        assert server.most_in_window(weights=True) <= 500
        assert server.most_under_way <= 4
        assert len(server.arrivals) > 50

    run(main())


def test_limits_are_used_to_the_full() -> None:
    """25 requests at 10 a minute, each answered at once: ten now, ten a minute later, five after another one."""

    async def main() -> list[float]:
        limits = limits_of(requests_per_minute=10)
        sent = []
        for _ in range(25):
            async with limits.slot(1) as answered:
                sent.append(now())
                answered(Usage(completion_tokens=1))
        return sent

    assert run(main()) == [0.0] * 10 + [60.0] * 10 + [120.0] * 5


def test_tokens_that_were_not_used_are_given_back() -> None:
    async def main() -> list[float]:
        limits = limits_of(tokens_per_minute=100)
        sent = []
        for used in (10, 80, 90):
            async with limits.slot(90 if used != 80 else 85) as answered:
                sent.append(now())
                answered(Usage(completion_tokens=used))
        return sent

    assert run(main()) == [0.0, 0.0, 60.0]


def test_a_request_that_was_called_off_counts_as_if_it_had_arrived() -> None:
    async def main() -> float:
        limits = limits_of(requests_per_minute=1)
        async with limits.slot(1):
            pass  # no answer came
        async with limits.slot(1):
            return now()

    assert run(main()) == 65.0  # it may have been under way for five seconds


def test_requests_go_in_the_order_in_which_they_came() -> None:
    async def main() -> list[int]:
        limits = limits_of(concurrency=1, tokens_per_minute=100)
        order = []

        async def request(number: int) -> None:
            # Small ones must not overtake a large one for ever.
            async with limits.slot(90 if number == 1 else 20) as answered:
                order.append(number)
                await asyncio.sleep(1)
                answered(Usage(completion_tokens=20))

        await asyncio.gather(*(request(number) for number in range(6)))
        return order

    assert run(main()) == list(range(6))


def test_whoever_stops_waiting_holds_nobody_up() -> None:
    async def main() -> float:
        limits = limits_of(concurrency=1)

        async def hold() -> None:
            async with limits.slot(1):
                await asyncio.sleep(10)

        holding, waiting = asyncio.create_task(hold()), asyncio.create_task(hold())
        await asyncio.sleep(1)
        waiting.cancel()
        async with limits.slot(1):
            assert holding.done()
            return now()

    assert run(main()) == 10.0


def test_what_never_fits_is_an_error_at_once() -> None:
    async def main() -> None:
        async with limits_of(tokens_per_minute=100).slot(101):
            raise AssertionError

    with pytest.raises(MemberError, match=r"101 tokens is more than the 100 a minute of endpoint e") as error:
        run(main())
    assert error.value.reason == "limit"
