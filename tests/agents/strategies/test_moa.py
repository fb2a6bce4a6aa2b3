"""Mixture of agents as published: who is asked what, in which order, with which answers before."""

import asyncio
from collections.abc import Sequence

import pytest
from tests.agents.fake_session import CONVERSATIONS, Asked, FakeSession, failed, named

from moekit.agents.config.strategy_configs import MoaConfig, SelfMoaConfig
from moekit.agents.session import AnswerRequest, QuorumFailed
from moekit.agents.strategies import build_strategy
from moekit.agents.strategies.member_prompts import SYNTHESIZE
from moekit.core.messages import ChatOptions, Message

LAYERS = (("a", "b", "c"), ("c", "b"), ("a", "c"))


def run(
    config: MoaConfig, session: FakeSession, messages: Sequence[Message], options: ChatOptions | None = None
) -> str:
    strategy = build_strategy("moa", config)
    request = AnswerRequest(messages=messages, options=options or ChatOptions())
    return asyncio.run(strategy.answer(request, session)).text


def published(layers: Sequence[Sequence[str]], messages: Sequence[Message]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Who gets which roles and contents, in order: the algorithm once more, as loops over plain data."""
    requests: list[tuple[str, list[tuple[str, str]]]] = []
    answers: list[str] = []
    for depth, names in enumerate([*layers, ["judge"]]):
        stage = f"layer {depth + 1}" if depth < len(layers) else "aggregator"
        turns = [(message.role, message.content) for message in messages]
        if depth > 0:
            lines = [SYNTHESIZE]
            for index in range(len(answers)):
                lines.append(str(index + 1) + ". " + answers[index])
            added = "\n".join(lines)
            if turns[0][0] == "system":
                turns[0] = ("system", turns[0][1] + "\n\n" + added)
            else:
                turns.insert(0, ("system", added))
        answers = []
        for name in names:
            requests.append((name, turns))
            answers.append(f"{stage}|{name}|0")
    return requests


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_requests_are_those_of_the_published_algorithm(depth: int, messages: tuple[Message, ...]) -> None:
    session = FakeSession()
    text = run(MoaConfig(layers=LAYERS[:depth], aggregator="judge"), session, messages)
    sent = [(one.name, [(turn.role, turn.content) for turn in one.messages]) for one in session.asked]
    assert sent == published(LAYERS[:depth], messages)
    assert text == "aggregator|judge|0"
    assert [left for _, _, left in session.layers] == list(range(depth, 0, -1))


def test_who_failed_is_left_out_and_the_rest_numbered_without_a_gap() -> None:
    def answer(asked: Asked) -> str:
        if asked.name == "b":
            raise failed("b")
        return f"\n  {named(asked)} \n"

    session = FakeSession(answer)
    run(MoaConfig(layers=LAYERS[:1], aggregator="judge"), session, CONVERSATIONS["one question"])
    assert session.asked[-1].system == f"{SYNTHESIZE}\n1. layer 1|a|0\n2. layer 1|c|0"


def test_too_few_answers_stop_before_the_aggregator() -> None:
    def answer(asked: Asked) -> str:
        raise failed(asked.name)

    session = FakeSession(answer)
    with pytest.raises(QuorumFailed, match=r"a is down\. b is down\. c is down\."):
        run(MoaConfig(layers=LAYERS, aggregator="judge", quorum=2), session, CONVERSATIONS["one question"])
    assert [asked.stage for asked in session.asked] == ["layer 1"] * 3
    assert session.layers == [("layer 1", 2, 3)]


def test_a_member_that_stands_twice_in_a_layer_gives_two_samples() -> None:
    session = FakeSession()
    config = MoaConfig(layers=(("a", "b", "a"),), aggregator="a")
    run(config, session, CONVERSATIONS["one question"])
    assert [(asked.name, asked.sample) for asked in session.asked] == [("a", 0), ("b", 0), ("a", 1), ("a", 0)]


def test_options_are_the_users_but_stop_sequences_end_only_the_answer() -> None:
    session = FakeSession()
    options = ChatOptions(temperature=0.1, max_tokens=9, stop=("\n\n",))
    run(MoaConfig(layers=LAYERS[:2], aggregator="judge"), session, CONVERSATIONS["one question"], options)
    *drafts, final = session.asked
    assert {asked.options for asked in drafts} == {ChatOptions(temperature=0.1, max_tokens=9)}
    assert final.options == options


def test_a_prompt_of_the_users_own_replaces_ours() -> None:
    session = FakeSession()
    run(MoaConfig(layers=(("a",),), aggregator="b", prompt="Merge {these}:"), session, CONVERSATIONS["one question"])
    assert session.asked[-1].system == "Merge {these}:\n1. layer 1|a|0"


def test_only_the_aggregator_is_heard() -> None:
    heard: list[str] = []

    async def hear(piece: str) -> None:
        heard.append(piece)

    strategy = build_strategy("moa", MoaConfig(layers=LAYERS, aggregator="judge"))
    request = AnswerRequest(messages=CONVERSATIONS["one question"], on_text=hear)
    asyncio.run(strategy.answer(request, FakeSession()))
    assert "".join(heard) == "aggregator|judge|0"


def test_a_strategy_can_propose() -> None:
    inner = build_strategy("inner", SelfMoaConfig(member="a", samples=2))
    session = FakeSession(strategies={"inner": inner})
    run(MoaConfig(layers=(("inner", "b"),), aggregator="judge"), session, CONVERSATIONS["one question"])
    assert [asked.stage for asked in session.asked] == [
        "layer 1: inner: samples",
        "layer 1: inner: samples",
        "layer 1: inner: aggregator",
        "layer 1",
        "aggregator",
    ]
    assert session.asked[-1].system == f"{SYNTHESIZE}\n1. layer 1: inner: aggregator|a|0\n2. layer 1|b|0"
