"""Single and self-MoA: which samples reach which aggregation."""

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fake_session import CONVERSATIONS, Asked, FakeSession, failed, named, user

from moekit.agents.config.strategy_configs import RouteConfig, SelfMoaConfig, SingleConfig, StrategyConfig
from moekit.agents.session import AnswerRequest
from moekit.agents.strategies import build_strategy
from moekit.agents.strategies.member_prompts import SYNTHESIZE
from moekit.agents.strategies.self_moa import windows
from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message

QUESTION = CONVERSATIONS["one question"]


def run(config: StrategyConfig, session: FakeSession, messages: Sequence[Message] = QUESTION) -> str:
    request = AnswerRequest(messages=messages, options=ChatOptions(stop=("#",)), stage="in: ")
    return asyncio.run(build_strategy("s", config).answer(request, session)).text


def test_what_keeps_a_strategy_from_being_made_names_it() -> None:
    config = RouteConfig(by="examples", members=("a", "b"), examples={"a": ("x",)})
    with pytest.raises(UsageError, match=r"^strategies\.cheap: No example goes to b"):
        build_strategy("cheap", config)


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_single_asks_as_it_was_asked(messages: tuple[Message, ...]) -> None:
    session = FakeSession()
    assert run(SingleConfig(member="a"), session, messages) == "in: answer|a|0"
    assert [(one.messages, one.options) for one in session.asked] == [(messages, ChatOptions(stop=("#",)))]


def test_parallel_puts_all_samples_into_one_aggregation() -> None:
    session = FakeSession()
    text = run(SelfMoaConfig(member="a", samples=3, aggregator="b"), session)
    assert text == "in: aggregator|b|0"
    assert [(one.name, one.sample) for one in session.asked] == [("a", 0), ("a", 1), ("a", 2), ("b", 0)]
    assert {one.messages for one in session.asked[:3]} == {QUESTION}
    assert session.asked[3].messages == (
        Message(role="system", content=f"{SYNTHESIZE}\n1. in: samples|a|0\n2. in: samples|a|1\n3. in: samples|a|2"),
        *QUESTION,
    )
    assert session.layers == [("in: samples", 1, 1)]


def test_the_member_aggregates_where_nobody_else_is_named() -> None:
    session = FakeSession()
    run(SelfMoaConfig(member="a", samples=2), session)
    assert [one.name for one in session.asked] == ["a", "a", "a"]


def test_sequential_slides_a_window_over_the_samples_and_keeps_the_best() -> None:
    session = FakeSession()
    config = SelfMoaConfig(member="a", samples=6, aggregator="b", form="sequential", window=3, prompt="P")
    assert run(config, session) == "in: aggregator|b|0"
    assert [(one.stage, one.system) for one in session.asked[6:]] == [
        ("in: aggregation 1", "P\n1. in: samples|a|0\n2. in: samples|a|1\n3. in: samples|a|2"),
        ("in: aggregation 2", "P\n1. in: aggregation 1|b|0\n2. in: samples|a|3\n3. in: samples|a|4"),
        ("in: aggregator", "P\n1. in: aggregation 2|b|0\n2. in: samples|a|5"),
    ]
    assert session.layers == [("in: samples", 1, 3)]
    assert [one.options.stop for one in session.asked] == [()] * 8 + [("#",)]


def test_failed_samples_are_left_out() -> None:
    def answer(asked: Asked) -> str:
        if asked.sample in (1, 2):
            raise failed("a")
        return named(asked)

    session = FakeSession(answer)
    run(SelfMoaConfig(member="a", samples=4, form="sequential", window=2, prompt="P"), session)
    assert [one.system for one in session.asked[4:]] == ["P\n1. in: samples|a|0\n2. in: samples|a|3"]


@given(samples=st.integers(1, 60), size=st.integers(2, 20))
def test_windows_take_every_sample_once_and_leave_a_place_for_the_best(samples: int, size: int) -> None:
    taken = [list(range(samples))[window] for window in windows(samples, size)]
    assert [sample for window in taken for sample in window] == list(range(samples))
    assert all(len(window) + (place > 0) <= size for place, window in enumerate(taken))
    assert all(len(window) + (place > 0) == size for place, window in enumerate(taken[:-1]))


def test_what_is_too_long_is_cut_and_told() -> None:
    session = FakeSession(lambda asked: "x" * 3000, rooms={"a": 500, "b": 2000})
    messages = (user("old " * 100), Message(role="assistant", content="answer " * 50), user("new?"))
    run(SelfMoaConfig(member="a", samples=2, aggregator="b", prompt="P"), session, messages)
    assert [len(one.messages) for one in session.asked] == [1, 1, 4]
    assert sum(len(turn.content) for turn in session.asked[2].messages) in range(1990, 2001)
    # 2,000 less 754 of the conversation and 9 of "P\n1. " and "\n2. ", for each of the two.
    assert session.notes == [
        ("in: samples", "a: The oldest 2 of 3 messages were left out to fit the context."),
        ("in: aggregator", "b: Answers cut to 618 characters to fit the context: 1 (of 3,000), 2 (of 3,000)."),
    ]
