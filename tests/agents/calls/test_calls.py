"""One call: what is tried again and what is sent twice."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.agents.in_memory import (
    OPTIONS,
    QUESTION,
    USAGE,
    Answering,
    Complete,
    FakeMember,
    after,
    failing,
    now,
    reply,
    run,
)

from moekit.agents.calls.endpoint_limits import Limits
from moekit.agents.config.agents_config import EndpointConfig
from moekit.agents.members.member import MemberError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage


def saying(*pieces: str, then: Exception | None = None, every: float = 1.0) -> Complete:
    """Streams the pieces, and breaks off if told."""

    async def complete(messages: Sequence[Message], options: ChatOptions, on_text: OnText | None) -> Reply:
        for piece in pieces:
            await asyncio.sleep(every)
            assert on_text is not None
            await on_text(piece)
        if then is not None:
            raise then
        return reply("".join(pieces))

    return complete


class Heard:
    def __init__(self) -> None:
        self.pieces: list[str] = []

    async def __call__(self, piece: str) -> None:
        self.pieces.append(piece)


# Retries


def test_an_error_of_the_moment_is_tried_again_and_counted_once() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(usage=Usage()), failing(), after(1))
        answering = Answering(member)
        assert (await answering.session.ask("a", QUESTION, OPTIONS, stage="s")).text == "Light scatters."
        spent = answering.ledger.spent
        assert spent.usage == USAGE
        # One failure cost nothing, of the other nobody knows: the prompt's bytes and ten tokens.
        assert spent.unsettled == Usage(prompt_tokens=len(QUESTION[0].content), completion_tokens=10)
        (call,) = answering.trace.finish().calls
        assert (call.attempts, call.failure, call.usage, call.cached) == (3, None, USAGE, False)

    run(main())


def test_retries_end() -> None:
    async def main() -> None:
        member = FakeMember("a", failing())
        with pytest.raises(MemberError, match=r"^a: told to fail \(3 attempts\)\.$"):
            await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert len(member.began) == 3
        member = FakeMember("a", failing())
        with pytest.raises(MemberError, match=r"^a: told to fail\.$"):
            await Answering(member, retries=0).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert len(member.began) == 1

    run(main())


def test_what_would_fail_again_is_not_tried_again() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(retryable=False), after(1))
        with pytest.raises(MemberError):
            await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert len(member.began) == 1

    run(main())


def test_retry_after_is_waited_for() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(retry_after_s=17.0), after(1))
        await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert member.began[1] - member.ended[0] == pytest.approx(17.0)

    run(main())


def test_a_retry_after_beyond_the_deadline_is_told_at_once() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(retry_after_s=61.0), after(1))
        with pytest.raises(MemberError, match="told to fail") as error:
            await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert error.value.reason == "status"
        assert now() < 1

    run(main())


def test_what_was_passed_on_is_not_taken_back() -> None:
    """A stream that breaks off is an error: the second attempt would say its beginning again."""

    async def main() -> None:
        broken = MemberError("a: broke off.", reason="truncated", retryable=True)
        member = FakeMember("a", saying("Light ", then=broken), saying("Something else."))
        heard = Heard()
        with pytest.raises(MemberError, match="broke off"):
            await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s", on_text=heard)
        assert heard.pieces == ["Light "]
        assert len(member.began) == 1

    run(main())


def test_a_stream_that_fails_before_its_first_piece_is_tried_again() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(), saying("Light ", "scatters."))
        heard = Heard()
        await Answering(member).session.ask("a", QUESTION, OPTIONS, stage="s", on_text=heard)
        assert heard.pieces == ["Light ", "scatters."]

    run(main())


# Hedging


def test_a_slow_call_is_sent_a_second_time_and_the_first_answer_counts() -> None:
    async def main() -> None:
        member = FakeMember("a", after(50), after(1, reply("Second.")))
        answering = Answering(member, hedge_after=5.0)
        assert (await answering.session.ask("a", QUESTION, OPTIONS, stage="s")).text == "Second."
        assert member.began == [0.0, 5.0]
        assert now() == pytest.approx(6.0)
        assert member.ended == [6.0, 6.0]  # the loser was called off
        assert answering.ledger.spent.unsettled.total_tokens > 0
        assert answering.trace.finish().calls[0].attempts == 2

    run(main())


def test_a_local_member_is_not_asked_a_second_time() -> None:
    async def main() -> None:
        member = FakeMember("a", after(50, reply("First.")), after(1, reply("Second.")))
        answering = Answering(member, hedge_after=5.0, local=True)
        assert (await answering.session.ask("a", QUESTION, OPTIONS, stage="s")).text == "First."
        assert member.began == [0.0]
        assert answering.ledger.spent.unsettled == Usage()

    run(main())


def test_a_retry_beyond_the_budget_tells_why_it_was_wanted() -> None:
    async def main() -> None:
        member = FakeMember("a", failing(usage=Usage(prompt_tokens=20, completion_tokens=10)))
        answering = Answering(member, budget={"tokens": 40})
        with pytest.raises(
            MemberError,
            match=r"^a may need up to \d+ tokens, .* has 10 of 40 left; before that: a: told to fail\.$",
        ) as error:
            await answering.session.ask("a", QUESTION, OPTIONS, stage="s")
        assert error.value.reason == "budget"
        assert len(member.began) == 1

    run(main())


def test_a_call_in_time_is_sent_once() -> None:
    async def main() -> None:
        member = FakeMember("a", after(4))
        await Answering(member, hedge_after=5.0).session.ask("a", QUESTION, OPTIONS, stage="s")
        await asyncio.sleep(10)
        assert len(member.began) == 1

    run(main())


def test_only_one_of_two_streams_is_heard() -> None:
    async def main() -> None:
        member = FakeMember("a", saying("One ", "two.", every=6.0), saying("Three ", "four.", every=3.0))
        heard = Heard()
        given = await Answering(member, hedge_after=5.0).session.ask("a", QUESTION, OPTIONS, stage="s", on_text=heard)
        assert heard.pieces == ["One ", "two."]
        assert given.text == "One two."
        assert member.ended == [6.0, 12.0]  # the other one as soon as this one spoke

    run(main())


def test_a_stream_that_speaks_is_not_sent_again() -> None:
    async def main() -> None:
        member = FakeMember("a", saying("One ", "two.", every=4.0))
        await Answering(member, hedge_after=5.0).session.ask("a", QUESTION, OPTIONS, stage="s", on_text=Heard())
        assert len(member.began) == 1

    run(main())


def test_one_of_two_may_fail() -> None:
    async def main() -> None:
        member = FakeMember("a", after(8, reply("First.")), failing(retryable=False))
        given = await Answering(member, hedge_after=5.0).session.ask("a", QUESTION, OPTIONS, stage="s")
        assert given.text == "First."
        member = FakeMember(
            "a", after(8, MemberError("x", reason="status")), after(9, MemberError("y", reason="status"))
        )
        with pytest.raises(MemberError, match="y"):
            await Answering(member, hedge_after=5.0).session.ask("a", QUESTION, OPTIONS, stage="s")

    run(main())


def test_waiting_for_limits_is_not_slowness() -> None:
    async def main() -> None:
        limits = Limits("e", EndpointConfig(url="http://127.0.0.1:9", concurrency=1))
        member = FakeMember("a", after(4))
        answering = Answering(member, limits=limits, hedge_after=5.0)
        await asyncio.gather(*(answering.session.ask("a", QUESTION, OPTIONS, stage="s") for _ in range(4)))
        assert member.began == [0.0, 4.0, 8.0, 12.0]

    run(main())
