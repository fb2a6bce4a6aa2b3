"""When a call ends: for silence, or because its time is up; and what becomes of what was said until then."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.agents.in_memory import OPTIONS, QUESTION, Answering, Complete, FakeMember, failing, now, reply, run

from moekit.agents.calls.answer_cache import Cache
from moekit.agents.calls.member_calls import MemberCalls
from moekit.agents.config.agents_config import CacheConfig
from moekit.agents.config.strategy_configs import MoaConfig, RankConfig, SelfMoaConfig, SingleConfig
from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest
from moekit.agents.strategies import build_strategy
from moekit.config import Config
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

DEADLINES = {"call": 60, "layer": 300, "answer": 600}


def writing(words: int, every: float, first: float = 0.0, piece: str = "word ") -> Complete:
    """Says a word now and then; an empty piece is a sign of life."""

    async def complete(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
        await asyncio.sleep(first)
        for _ in range(words):
            await asyncio.sleep(every)
            if on_text is not None:
                await on_text(piece)
        return reply(piece * words or "Yes.")

    return complete


def stalling(words: int, every: float) -> Complete:
    """Begins an answer and says no more."""

    async def complete(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
        await writing(words, every)(messages, options, on_text)
        await asyncio.sleep(10_000)
        return reply()

    return complete


def test_who_keeps_writing_is_waited_for() -> None:
    async def main() -> None:
        answering = Answering(FakeMember("a", writing(50, 10, first=45)), deadlines=DEADLINES)
        found = await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert (found.text, found.incomplete, now()) == ("word " * 50, None, 545)

    run(main())


STRATEGIES: list[Config] = [
    SingleConfig(member="a"),
    SelfMoaConfig(member="a", samples=2),
    MoaConfig(layers=(("a", "b"),), aggregator="a", quorum=2),
    RankConfig(members=("a", "b"), judge="a", quorum=2),
]


@pytest.mark.parametrize("config", STRATEGIES, ids=lambda config: config.kind)
def test_drafts_and_judges_too(config: Config) -> None:
    """75 words, a second each: longer than silence may be, and nobody hears the drafts."""

    async def main() -> None:
        members = [FakeMember(name, writing(75, 1.0)) for name in "ab"]
        answering = Answering(*members, deadlines=DEADLINES)
        found = await build_strategy("s", config).answer(AnswerRequest(messages=QUESTION), answering.session)
        assert found.text == "word " * 75
        assert answering.trace.finish().failures == ()

    run(main())


def test_signs_of_life_are_no_silence_and_no_text() -> None:
    async def main() -> None:
        heard: list[str] = []

        async def hear(piece: str) -> None:
            heard.append(piece)

        member = FakeMember("a", writing(20, 20, piece=""))
        found = await Answering(member, deadlines=DEADLINES).session.ask(
            "a", QUESTION, OPTIONS, stage="s", on_text=hear
        )
        assert (found.text, heard, now()) == ("Yes.", [], 400)

    run(main())


def test_who_falls_silent_has_failed() -> None:
    async def main() -> None:
        answering = Answering(FakeMember("a", stalling(3, 5)), deadlines=DEADLINES)
        with pytest.raises(MemberError, match=r"^a fell silent in the middle of its answer, for 60 s\.$") as found:
            await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert (found.value.reason, now()) == ("timeout", 75)

    run(main())


def test_who_still_writes_when_time_is_up_is_cut_off_and_counts() -> None:
    async def main() -> None:
        answering = Answering(FakeMember("a", writing(1000, 7)), deadlines=DEADLINES)
        found = await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert (found.text, found.finish_reason, now()) == ("word " * 85, "length", 600)
        assert found.incomplete == "a: the answer was cut off after 600 s, when its time was up."
        (call,) = answering.trace.finish().calls
        assert (call.text, call.incomplete, call.failure) == (found.text, found.incomplete, None)
        # What it cost nobody knows.
        assert answering.ledger.spent.unsettled == Usage(prompt_tokens=len(QUESTION[0].content), completion_tokens=10)

    run(main())


def test_a_layer_goes_on_with_what_was_written_until_its_end() -> None:
    async def main() -> None:
        members = FakeMember("a", writing(1000, 7), writing(2, 1)), FakeMember("b", stalling(0, 0))
        answering = Answering(*members, deadlines=DEADLINES)
        moa = build_strategy("s", MoaConfig(layers=(("a", "b"),), aggregator="a"))
        found = await moa.answer(AnswerRequest(messages=QUESTION), answering.session)
        assert (found.text, found.incomplete, now()) == ("word word ", None, 302)
        trace = answering.trace.finish()
        assert trace.failures == ("b did not answer within 60 s.",)
        assert trace.incomplete == ("a: the answer was cut off after 300 s, when its time was up.",)

    run(main())


def test_what_a_deadline_cut_off_is_not_kept(tmp_path: Path) -> None:
    async def main() -> None:
        cache = Cache(CacheConfig(folder=tmp_path))
        answering = Answering(FakeMember("a", writing(100, 0.01), writing(2, 0.001)), deadlines={"answer": 0.1})
        calls = answering.calls
        kept = MemberCalls(calls._config, calls.seats, cache, answering.ledger, answering.trace)
        answering.session._calls = kept
        first = await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert first.incomplete is not None
        await cache.close()
        assert list(tmp_path.rglob("*.json")) == []

    asyncio.run(main())


def test_another_attempt_begins_anew_where_nobody_has_heard_the_first() -> None:
    async def main() -> None:
        broken = MemberError("a: broke.", reason="truncated", retryable=True)

        async def breaking(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
            await writing(3, 1.0, piece="half ")(messages, options, on_text)
            raise broken

        answering = Answering(FakeMember("a", breaking, writing(1000, 7)), deadlines=DEADLINES)
        found = await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert set(found.text.split()) == {"word"}

    run(main())


def test_waits_and_retries_are_silence() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(retry_after_s=50.0), writing(3, 20))
        with pytest.raises(MemberError, match=r"^a did not answer within 60 s; before that: a: told to fail"):
            await Answering(member, deadlines=DEADLINES).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert now() == 60

    run(main())


def test_a_sign_of_life_is_no_floor_to_speak_from() -> None:
    async def main() -> None:
        async def thinking(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
            await writing(50, 1, piece="")(messages, options, on_text)
            return await writing(1, 1, piece="First.")(messages, options, on_text)

        member = FakeMember("a", thinking, writing(1, 4, piece="Second."))
        answering = Answering(member, hedge_after=5.0, deadlines=DEADLINES)
        assert (await answering.session.ask("a", QUESTION, OPTIONS, stage="s")).text == "Second."
        assert now() == 9

    run(main())


def test_a_slow_first_piece_is_sent_twice_also_where_nobody_hears_it() -> None:
    async def main() -> None:
        member = FakeMember("a", writing(3, 1, first=50), writing(3, 20))
        answering = Answering(member, hedge_after=5.0, deadlines=DEADLINES)
        found = await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert found.text == "word word word "
        assert member.began == [0.0, 5.0]
        assert now() == 65  # the second spoke first, at 25 s, and has the floor

    run(main())
