"""One answer under way: deadlines, layers, options."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.agents.in_memory import (
    OPTIONS,
    QUESTION,
    Answering,
    Asking,
    FakeMember,
    after,
    calls_of,
    config_of,
    failing,
    now,
    reply,
    run,
)

from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.config.agents_config import EndpointConfig
from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest, Call, Layer, QuorumFailed, Session
from moekit.agents.strategies.rank import judge_request
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, Reply, Usage

# Deadlines


def test_a_call_ends_at_its_deadline_with_its_retries() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(), after(1000))
        with pytest.raises(
            MemberError, match=r"^a did not answer within 60 s; before that: a: told to fail \(2 attempts\)\.$"
        ) as error:
            await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert error.value.reason == "timeout"
        assert now() == 60.0

    run(main())


def test_limits_that_leave_no_room_are_named() -> None:
    async def main() -> None:
        limits = Limits("e", EndpointConfig(url="http://127.0.0.1:9", requests_per_minute=1))
        answering = Answering(FakeMember("a"), limits=limits, deadlines={"call": 30})
        await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        with pytest.raises(MemberError, match=r"^a: the limits of its endpoint left no room within 30 s\.$") as error:
            await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert error.value.reason == "limit"
        assert answering.ledger.spent.unsettled == Usage()  # it was never sent

    run(main())


def test_hanging_members_leave_the_next_stage_its_share() -> None:
    """Of 100 s, a layer that one stage follows gets 50, though its own deadline would be 90."""

    async def main() -> None:
        strategy = Asking("ab", quorum=1, then="c")
        members = FakeMember("a", after(1000)), FakeMember("b"), FakeMember("c", after(49))
        answering = Answering(
            *members, strategies={"s": strategy}, deadlines={"call": 200, "layer": 90, "answer": 100}, default="a"
        )
        await answering.session.ask("s", QUESTION, OPTIONS, stage="x")
        assert now() == 99.0
        assert answering.trace.finish().failures == ("a did not answer within 50 s.",)
        assert [call.stage for call in answering.trace.finish().calls] == ["x: s: layer", "x: s: layer", "x: s: last"]

    run(main())


# Layers


def test_answers_come_in_the_order_of_the_calls() -> None:
    async def main() -> None:
        members = [FakeMember(name, after(5 - place, reply(name))) for place, name in enumerate("abcd")]
        members[2] = FakeMember("c", failing(retryable=False))
        layer = await Answering(*members).session.layer(calls_of("abcd"), stage="layer 1", quorum=3)
        assert [None if one is None else one.text for one in layer.replies] == ["a", "b", None, "d"]
        assert layer.texts == ("a", "b", "d")
        assert layer.failures == ("a: told to fail.",)
        assert now() == 5.0  # side by side

    run(main())


def test_too_few_answers_are_one_error_with_all_reasons_as_soon_as_it_is_certain() -> None:
    async def main() -> None:
        slow = FakeMember("c", after(40))
        members = (
            FakeMember("a", failing(retryable=False)),
            FakeMember("b", after(3, MemberError("b: no.", reason="empty"))),
        )
        answering = Answering(*members, slow)
        with pytest.raises(QuorumFailed) as error:
            await answering.session.layer(calls_of("abc"), stage="layer 1", quorum=2)
        assert now() == 3.0
        assert str(error.value) == (
            "In layer 1, 0 of 3 answered and 2 had to: a: told to fail. b: no. c was called off before it had answered."
        )
        assert len(error.value.failures) == 3
        assert slow.ended == [3.0]
        assert set(answering.trace.finish().failures) == set(error.value.failures)

    run(main())


def test_a_strategy_that_ignores_its_deadline_is_left_behind() -> None:
    class Stubborn:
        async def answer(self, request: AnswerRequest, session: Session) -> Reply:
            while now() < 500:
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    continue
            return reply()

    async def main() -> Layer:
        answering = Answering(FakeMember("a"), strategies={"s": Stubborn()}, deadlines={"layer": 10})
        layer = await answering.session.layer([Call("a", QUESTION), Call("s", QUESTION)], stage="l", quorum=1)
        assert now() == pytest.approx(10.1)
        return layer

    assert run(main()).failures == ("s was called off before it had answered.",)


def test_a_nested_strategy_fails_as_a_member_does() -> None:
    async def main() -> None:
        bad = FakeMember("b", failing(retryable=False))
        strategies = {"s": Asking("bb", quorum=1, then="a")}
        layer = await Answering(FakeMember("a"), bad, strategies=strategies).session.layer(
            [Call("a", QUESTION), Call("s", QUESTION)], stage="out", quorum=1
        )
        assert layer.texts == ("Light scatters.",)
        (failure,) = layer.failures
        assert failure.startswith("s: In out: s: layer, 0 of 2 answered and 1 had to: a: told to fail.")

    run(main())


def test_a_mistake_of_ours_is_no_failure_of_a_member() -> None:
    async def main() -> None:
        await Answering(FakeMember("a", after(0, ZeroDivisionError()))).session.layer(
            calls_of("a"), stage="l", quorum=0
        )

    with pytest.raises(ZeroDivisionError):
        run(main())


def test_whoever_goes_away_calls_off_everything() -> None:
    async def main() -> None:
        members = [FakeMember(name, after(50)) for name in "ab"]
        answering = Answering(*members)
        task = asyncio.create_task(answering.session.layer(calls_of("ab"), stage="l", quorum=1))
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [member.ended for member in members] == [[2.0], [2.0]]
        assert answering.ledger.spent.unsettled.total_tokens > 0
        assert answering.trace.finish().failures == tuple(
            f"{name} was called off before it had answered." for name in "ab"
        )

    run(main())


# Options


def test_options_are_the_callers_and_else_the_members() -> None:
    async def main() -> None:
        member = FakeMember("a", max_tokens=33)
        session = Answering(member).session
        await session.ask("a", QUESTION, OPTIONS, stage="s")
        await session.ask("a", QUESTION, ChatOptions(temperature=0.0, max_tokens=5, stop=("#",)), stage="s")
        assert member.options == [
            ChatOptions(temperature=0.7, max_tokens=33),
            ChatOptions(temperature=0.0, max_tokens=5, stop=("#",)),
        ]

    run(main())


def test_one_seed_makes_different_samples_and_each_again() -> None:
    async def main() -> list[int | None]:
        member = FakeMember("a")
        session = Answering(member, strategies={"s": Asking("a", quorum=1, then="a")}).session
        for sample in (0, 1, 2, 1):
            await session.ask("a", QUESTION, ChatOptions(seed=7), stage="s", sample=sample)
        return [options.seed for options in member.options]

    first, second, third, again = run(main())
    assert first == 7
    assert len({first, second, third}) == 3
    assert again == second
    assert run(main()) == [first, second, third, again]


class Sampling:
    """A strategy that asks for one sample of another name."""

    def __init__(self, name: str, sample: int) -> None:
        self.name, self.sample = name, sample

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        return await session.ask(self.name, request.messages, request.options, stage=request.stage, sample=self.sample)


def test_samples_of_strategies_in_strategies_are_never_the_same() -> None:
    """The second sample of the inner one is another answer than the second sample of the outer one."""

    async def main() -> None:
        member = FakeMember("a")
        strategies = {"inner": Sampling("a", 0), "middle": Sampling("inner", 1), "outer": Sampling("middle", 1)}
        session = Answering(member, strategies=strategies).session
        for name, sample in (("a", 1), ("inner", 1), ("middle", 0), ("middle", 1), ("outer", 0), ("outer", 1)):
            await session.ask(name, QUESTION, ChatOptions(seed=7), stage="s", sample=sample)
        assert len({options.seed for options in member.options}) == 6

    run(main())


def test_no_strategy_chooses_a_temperature_that_is_the_servers() -> None:
    async def main() -> None:
        own = FakeMember("b")
        own.defaults = replace(own.defaults, temperature=None)
        strategies = {
            "s": {"kind": "single", "member": "a"},
            "t": {"kind": "moa", "layers": [["a"]], "aggregator": "b"},
        }
        config = config_of("ab", strategies=strategies)
        session = Session(config, Answering(FakeMember("a"), own).calls, {}, 1.0)
        assert [session.sets_temperature(name) for name in "abst"] == [True, False, True, False]
        request = AnswerRequest(messages=QUESTION)
        assert judge_request(request, session, "a").options.temperature == 0
        assert judge_request(request, session, "t").options.temperature is None

    run(main())


class Scoring(FakeMember):
    """Whose tokens are fewer than its bytes."""

    async def score(self, messages: Sequence[Message], answer: str) -> tuple[float, Usage]:
        return -3.5, Usage(prompt_tokens=4)


def test_what_is_scored_costs_the_tokens_that_it_has() -> None:
    async def main() -> None:
        answering = Answering(Scoring("a"))
        assert await answering.session.score("a", QUESTION, "Because it scatters.", stage="s") == -3.5
        assert answering.ledger.spent.usage == Usage(prompt_tokens=4)
        assert answering.ledger.spent.unsettled == Usage()

    run(main())


def test_room_is_what_the_answer_leaves() -> None:
    async def main() -> None:
        small = FakeMember("a")
        small.context = 50
        session = Answering(small, FakeMember("b")).session
        assert session.room("a", OPTIONS) == 40
        assert session.room("a", ChatOptions(max_tokens=20)) == 30
        assert session.room("b", OPTIONS) is None
        assert session.estimated_tokens("a", QUESTION) == len(QUESTION[0].content)

    run(main())


def test_a_strategy_has_the_room_of_the_smallest_member_that_it_may_ask() -> None:
    async def main() -> None:
        small = FakeMember("a")
        small.context = 50
        inner = {"kind": "self-moa", "member": "a", "aggregator": "b"}
        strategies = {"s": {"kind": "moa", "layers": [["b", "t"]], "aggregator": "b"}, "t": inner}
        config = config_of("ab", strategies=strategies)
        assert config.members_of("s") == {"a", "b"}
        answering = Answering(small, FakeMember("b"))
        session = Session(config, answering.calls, {}, 100.0)
        assert session.room("s", OPTIONS) == 40
        assert session.estimated_tokens("s", QUESTION) == len(QUESTION[0].content)

    run(main())


def test_what_only_some_members_can_is_refused_by_others() -> None:
    async def main() -> None:
        session = Answering(FakeMember("a")).session
        with pytest.raises(MoekitError, match="a cannot say how probable an answer is"):
            await session.score("a", QUESTION, "Because.", stage="s")
        with pytest.raises(MoekitError, match="a makes no vectors"):
            await session.embed("a", ["x"], stage="s")

    run(main())
