"""Every subset of six proposers under every fault: an answer in time whenever the quorum stands, else all reasons."""

import asyncio
import itertools
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from tests.agents.fault_server import (
    HTML,
    OTHER_SHAPE,
    Behaviour,
    Closed,
    Drip,
    Fail,
    FaultServer,
    Garbage,
    Hang,
    Ok,
    Truncated,
)
from tests.agents.in_memory import OPTIONS, QUESTION, Answering, FakeMember, after, now, run

from moekit.agents import AgentsConfig, AnswerFailed, Engine
from moekit.agents.members.member import MemberError
from moekit.agents.session import Call, QuorumFailed

PROPOSERS, QUORUM = 6, 3
CALL_S, ANSWER_S = 0.8, 4.0
LATE_S = 0.1

FAULTS: dict[str, Behaviour] = {
    "500": Fail(500, retry_after="0"),
    "400": Fail(400),
    "429": Fail(429, retry_after="0.01"),
    "429 for long": Fail(429, retry_after="100"),
    "hang": Hang(),
    "drip": Drip(),
    "garbage": Garbage(),
    "other shape": OTHER_SHAPE,
    "HTML": HTML,
    "truncated": Truncated(),
    "closed": Closed(),
    "empty": Ok(""),
}
SUBSETS = [subset for size in range(PROPOSERS + 1) for subset in itertools.combinations(range(PROPOSERS), size)]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        for name, fault in FAULTS.items():
            running.behave(f"bad {name}", fault)
        for number in range(PROPOSERS):
            running.behave(f"good {number}", Ok(f"Answer {number}."))
        running.behave("aggregator", Ok("All in all."))
        yield running


def strategy_of(bad: Sequence[int], faults: Sequence[str]) -> dict[str, Any]:
    """Six proposers, of which those in `bad` have faults, one after the other from `faults`."""
    rotation = itertools.cycle(faults)
    layer = [f"bad {next(rotation)}" if number in bad else f"good {number}" for number in range(PROPOSERS)]
    return {"kind": "moa", "layers": [layer], "aggregator": "aggregator", "quorum": QUORUM}


def config_of(server: FaultServer, strategies: dict[str, Any]) -> AgentsConfig:
    names = [*(f"bad {name}" for name in FAULTS), *(f"good {number}" for number in range(PROPOSERS)), "aggregator"]
    return AgentsConfig.model_validate(
        {
            "endpoints": {"e": {"url": server.url, "concurrency": 100}},
            "members": {name: {"endpoint": "e", "model": name, "max_tokens": 20} for name in names},
            "strategies": strategies,
            "deadlines": {"call": CALL_S, "layer": CALL_S, "answer": ANSWER_S},
            "retries": 1,
        }
    )


async def check(engine: Engine, name: str, bad: Sequence[int]) -> float:
    """One answer with those proposers failing; seconds that it took beyond the layer's deadline, if any."""
    began, stands = time.perf_counter(), PROPOSERS - len(bad) >= QUORUM
    try:
        found = await engine.answer(QUESTION, name)
    except AnswerFailed as error:
        late_s = time.perf_counter() - began - CALL_S
        text, failures = str(error), error.trace.failures
    else:
        late_s = time.perf_counter() - began - CALL_S
        text, failures = found.text, found.failures
    if stands:
        assert text == "All in all."
        assert len(failures) == len(bad)
    else:
        # It ends as soon as it is certain, so that proposers that would have answered may have been called off.
        assert re.match(r"In layer 1, [012] of 6 answered and 3 had to: bad ", text) or "called off" in text
        assert len(failures) >= len(bad)
        assert all(failure in text for failure in failures)
    return late_s


class Machine:
    """Notices when the machine itself stands still: other work on it can stop everybody for a second."""

    def __init__(self) -> None:
        self._stops: list[tuple[float, float]] = []

    async def watch(self) -> None:
        while True:
            wakes = time.perf_counter() + 0.01
            await asyncio.sleep(0.01)
            self._stops.append((time.perf_counter(), time.perf_counter() - wakes))

    def stood_still(self, since: float) -> bool:
        return max((late for at, late in self._stops if at >= since), default=0.0) > LATE_S / 2


async def check_all(server: FaultServer, wanted: dict[str, tuple[Sequence[int], dict[str, Any]]]) -> None:
    """Ask all of them, five at a time; none may be late. What the machine itself held up is asked again."""
    turn, machine = asyncio.Semaphore(5), Machine()
    async with Engine(config_of(server, {name: strategy for name, (_, strategy) in wanted.items()})) as engine:
        await engine.answer(QUESTION, next(iter(wanted)))  # connections, and what the client prepares at first use

        async def one(name: str, bad: Sequence[int], attempts: int = 10) -> None:
            began = time.perf_counter()
            try:
                late_s = await check(engine, name, bad)
                assert late_s < LATE_S, name
            except AssertionError:
                await asyncio.sleep(0.02)  # the watch has its turn
                if attempts == 1 or not machine.stood_still(began):
                    raise
                await one(name, bad, attempts - 1)

        async def in_turn(name: str, bad: Sequence[int]) -> None:
            async with turn:
                await one(name, bad)

        watching = asyncio.create_task(machine.watch())
        await asyncio.gather(*(in_turn(name, bad) for name, (bad, _) in wanted.items()))
        watching.cancel()


@pytest.mark.alone
def test_every_subset_of_proposers_may_fail_in_many_ways_at_once(server: FaultServer) -> None:
    names = list(FAULTS)
    wanted: dict[str, tuple[Sequence[int], dict[str, Any]]] = {}
    for place, bad in enumerate(SUBSETS):
        faults = [names[(place + step * 5) % len(names)] for step in range(PROPOSERS)]
        wanted[f"moa {bad}"] = bad, strategy_of(bad, faults)
    assert len(wanted) == 64
    asyncio.run(check_all(server, wanted))


@pytest.mark.alone
def test_each_fault_of_as_many_as_may_fail_and_of_more(server: FaultServer) -> None:
    wanted = {
        f"{fault} {count}": (range(count), strategy_of(range(count), [fault]))
        for fault in FAULTS
        for count in (3, 4, 6)
    }
    asyncio.run(check_all(server, {"good": ((), strategy_of((), ["500"])), **wanted}))


HANGS, FAILS = after(1000), after(0.1, MemberError("bad: no.", reason="status"))
FAKE_FAULTS = {
    "hangs": [HANGS],
    "fails": [FAILS],
    "fails again and again": [after(0.1, MemberError("bad: no.", reason="garbage", retryable=True))],
    "fails and hangs": [after(0.1, MemberError("bad: no.", reason="status", retryable=True, retry_after_s=1.0)), HANGS],
    "comes too late": [after(50.001)],
}


@pytest.mark.parametrize("fault", FAKE_FAULTS)
def test_to_the_millisecond(fault: str) -> None:
    """In time that only passes where somebody waits: each subset under each fault, with 2 s for the aggregator."""

    async def one(bad: Sequence[int]) -> None:
        members = [
            FakeMember(f"m{number}", *(FAKE_FAULTS[fault] if number in bad else [after(3)]))
            for number in range(PROPOSERS)
        ]
        answering = Answering(
            *members, FakeMember("aggregator", after(2)), deadlines={"call": 50, "layer": 90, "answer": 100}
        )
        began = now()
        try:
            calls = [Call(member.name, QUESTION) for member in members]
            layer = await answering.session.layer(calls, stage="layer 1", quorum=QUORUM, stages_left=1)
        except QuorumFailed as error:
            text, failures = str(error), error.failures
            assert PROPOSERS - len(bad) < QUORUM
            assert len(failures) >= len(bad)
            assert all(failure in text for failure in failures)
        else:
            assert PROPOSERS - len(bad) >= QUORUM
            assert [reply is None for reply in layer.replies] == [number in bad for number in range(PROPOSERS)]
            assert len(layer.failures) == len(bad)
            await answering.session.ask("aggregator", QUESTION, OPTIONS, stage="aggregator")
        assert now() - began <= 52 + 1e-6

    async def main() -> None:
        for bad in SUBSETS:
            await one(bad)

    run(main())
