"""Members that cannot even be asked, because they cannot count or have no room: each is its own failure."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.agents.fault_server import Fail, FaultServer, Ok
from tests.agents.in_memory import OPTIONS, QUESTION, Answering, FakeMember, config_of, run

from moekit.agents import AgentsConfig, Engine
from moekit.agents.config.strategy_configs import MoaConfig, RankConfig, SelfMoaConfig, SingleConfig
from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest, Session, Strategy
from moekit.agents.strategies import build_strategy
from moekit.config import Config
from moekit.core.messages import ChatOptions, Message
from moekit.serve import ConversationRefused, PromptTooLong

LONG = ChatOptions(max_tokens=50)


class Broken(FakeMember):
    """Its template fails."""

    context = 100

    def bound_tokens(self, messages: Sequence[Message]) -> int:
        raise MemberError(f"{self.name}: The chat template fails.", reason="garbage")


class Small(FakeMember):
    context = 50


STRATEGIES: list[Config] = [
    MoaConfig(layers=(("b", "a"), ("a", "b")), aggregator="a"),
    RankConfig(members=("b", "a", "a"), judge="a"),
    MoaConfig(layers=(("s", "a"),), aggregator="a"),
]


@pytest.mark.parametrize("config", STRATEGIES, ids=["moa", "rank", "nested"])
@pytest.mark.parametrize(
    ("bad", "options", "told"),
    [
        (Broken, OPTIONS, "b: The chat template fails."),
        (Small, LONG, "b: an answer of up to 50 tokens leaves no room for a prompt in its context of 50."),
    ],
)
def test_who_cannot_be_asked_is_one_failure_of_its_layer(
    bad: type[FakeMember], options: ChatOptions, told: str, config: Config
) -> None:
    async def main() -> None:
        inner: Config = SelfMoaConfig(member="b", samples=2)
        strategies: dict[str, Strategy] = {"s": build_strategy("s", inner), "t": build_strategy("t", config)}
        answering = Answering(FakeMember("a"), bad("b"))
        given = config_of("ab", strategies={"s": {"kind": "self-moa", "member": "b", "samples": 2}})
        session = Session(given, answering.calls, strategies, 100.0)
        reply = await strategies["t"].answer(AnswerRequest(messages=QUESTION, options=options), session)
        assert reply.text == "Light scatters."
        trace = answering.trace.finish()
        assert told in trace.failures
        assert {call.attempts for call in trace.calls if call.name == "b"} == {0}
        assert answering.ledger.spent.unsettled.total_tokens == 0

    run(main())


def test_a_strategy_is_cut_for_those_of_its_members_that_can_count() -> None:
    async def main() -> None:
        good = Small("a")
        answering = Answering(good, Broken("b"))
        strategies = {"s": {"kind": "moa", "layers": [["a", "b"]], "aggregator": "a"}}
        session = Session(config_of("ab", strategies=strategies), answering.calls, {}, 100.0)
        assert session.estimated_tokens("s", QUESTION) == len(QUESTION[0].content)
        assert session.room("s", ChatOptions(max_tokens=60)) == 40, "b's; a says so itself when it is asked"
        with pytest.raises(MemberError, match="template fails"):
            session.estimated_tokens("b", QUESTION)

    run(main())


def test_a_request_without_room_for_a_prompt_is_refused_unsent() -> None:
    async def main() -> None:
        small = Small("a")
        single = build_strategy("s", SingleConfig(member="a"))
        for most in (50, 51):
            request = AnswerRequest(messages=QUESTION, options=ChatOptions(max_tokens=most))
            with pytest.raises(MemberError, match="leaves no room for a prompt") as found:
                await single.answer(request, Answering(small).session)
            assert (found.value.reason, found.value.retryable) == ("context", False)
        assert small.began == []

    run(main())


def test_a_member_asked_by_its_name_is_sent_what_fits() -> None:
    history = [Message(role=role, content="x" * 300) for _ in range(4) for role in ("user", "assistant")]  # type: ignore[arg-type]

    async def main(server: FaultServer) -> None:
        given = {
            "endpoints": {"e": {"url": server.url}},
            "members": {"a": {"endpoint": "e", "model": "a", "context": 600, "max_tokens": 50}},
            "strategies": {
                "s": {"kind": "self-moa", "member": "a", "samples": 2},
                "all": {"kind": "moa", "layers": [["s", "a", "a"]], "aggregator": "a"},
            },
            "default": "a",
        }
        async with Engine(AgentsConfig.model_validate(given)) as engine:
            answer = await engine.answer([*history, *QUESTION])
            sent = server.requests[0].messages
            assert 1 < len(sent) < 9
            assert sent[-1]["content"] == QUESTION[0].content
            (note,) = [event.text for event in answer.trace.events if event.kind == "note"]
            assert note.startswith("a: The oldest ")
            with pytest.raises(PromptTooLong, match="a: an answer of up to 600 tokens leaves no room"):
                await engine.models["a"].chat(QUESTION, ChatOptions(max_tokens=600))
            with pytest.raises(PromptTooLong, match=r"^In layer 1, 0 of 3 .* s: In .*samples, 0 of 2 .* no room"):
                await engine.models["all"].chat(QUESTION, ChatOptions(max_tokens=600))
            assert len(server.requests) == 1
            server.behave("a", Fail(400))
            with pytest.raises(ConversationRefused, match="told to fail"):
                await engine.models["all"].chat(QUESTION, ChatOptions(max_tokens=599))

    with FaultServer() as server:
        server.behave("a", Ok("Paris."))
        asyncio.run(main(server))
