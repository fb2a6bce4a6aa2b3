"""Making requests fit: what is never touched, what goes first, and that no more is cut than must be."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.fake_session import assistant, system, user

from moekit.agents.strategies.member_prompts import with_references
from moekit.agents.strategies.trimming import fit, shortened
from moekit.core.messages import Message

INSTRUCTION = "Merge:"


def compose(messages: Sequence[Message], references: Sequence[str]) -> tuple[Message, ...]:
    return with_references(messages, references, INSTRUCTION)


def count(messages: Sequence[Message]) -> int:
    return sum(len(message.content) for message in messages)


texts = st.text(st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=600)
turns = st.lists(st.tuples(texts, texts), max_size=4)


@given(
    past=turns,
    question=texts,
    own=st.none() | texts,
    references=st.lists(st.text("xyz", min_size=0, max_size=2000), max_size=4),
    room=st.integers(0, 6000),
)
def test_it_fits_whenever_the_question_does_and_the_question_is_whole(
    past: list[tuple[str, str]], question: str, own: str | None, references: list[str], room: int
) -> None:
    opening = [] if own is None else [system(own)]
    messages = [*opening, *(turn for one, two in past for turn in (user(one), assistant(two))), user(question)]
    found = fit(messages, references, compose, count, room)
    assert found.messages[-1] == user(question)
    if own is not None:
        assert found.messages[0].role == "system"
        assert found.messages[0].content.startswith(own)
    kept = [message for message in found.messages if message.role != "system"]
    assert kept == messages[len(messages) - len(kept) :]
    assert kept[0].role == "user"
    if count([*opening, user(question)]) <= room:
        assert count(found.messages) <= room
    whole = compose(messages, references)
    assert (found.messages == whole) == (not found.cuts)
    if count(whole) <= room:
        assert found.messages == whole


def test_the_longest_references_are_shortened_first() -> None:
    references = ["a" * 500, "b" * 5000, "c" * 1500]
    found = fit([user("q")], references, compose, count, 3000)
    numbered = found.messages[0].content.removeprefix(INSTRUCTION).split("\n")[1:]
    assert numbered[0] == f"1. {references[0]}"
    cut = (3000 - len("q") - len(INSTRUCTION) - 3 * len("\n1. ") - 500) // 2
    assert numbered[1:] == ["2. " + "b" * (cut - 4) + " […]", "3. " + "c" * (cut - 4) + " […]"]
    assert found.cuts == (f"Answers cut to {cut:,} characters to fit the context: 2 (of 5,000), 3 (of 1,500).",)


def test_old_turns_stay_as_long_as_references_can_give_way() -> None:
    messages = [user("old" * 100), assistant("said" * 50), user("newer"), assistant("said"), user("q")]
    references = ["r" * 1000, "s" * 1000]
    whole = count(compose(messages, references))
    some = fit(messages, references, compose, count, whole - 1000)
    assert [message.role for message in some.messages] == ["system", *(message.role for message in messages)]
    # Where they would keep fewer than 400 characters each, the oldest turn goes, and they get its room.
    fewer = fit(messages, references, compose, count, whole - 1300)
    assert fewer.messages[1:] == tuple(messages[2:])
    assert count(fewer.messages) in (whole - 1300, whole - 1301)
    assert fewer.cuts[1] == "The oldest 2 of 5 messages were left out to fit the context."


def test_where_nothing_else_is_left_the_references_go() -> None:
    question = user("q" * 100)
    found = fit([user("old"), assistant("said"), question], ["r" * 50, "s" * 50], compose, count, 105)
    assert found.messages == (question,)
    assert found.cuts[0] == "All 2 answers to build on were left out to fit the context."
    too_long = fit([user("old"), assistant("said"), question], ["r"], compose, count, 99)
    assert too_long.messages == (question,)


def test_what_follows_the_question_and_every_system_message_stays() -> None:
    messages = [
        system("one"),
        assistant("greeting"),
        user("old"),
        system("two"),
        assistant("said"),
        user("q"),
        assistant("The answer is"),
    ]
    found = fit(messages, [], compose, count, 0)
    assert found.messages == (messages[0], messages[3], *messages[5:])
    assert found.cuts == ("The oldest 3 of 7 messages were left out to fit the context.",)


def test_a_greeting_goes_before_the_turns_after_it() -> None:
    messages = [assistant("greeting"), user("old"), assistant("said"), user("q")]
    found = fit(messages, [], compose, count, count(messages) - 1)
    assert found.messages == tuple(messages[1:])


@pytest.mark.parametrize("least", [0, 1])
def test_references_that_must_stay_do(least: int) -> None:
    seen: list[int] = []

    def record(messages: Sequence[Message], references: Sequence[str]) -> tuple[Message, ...]:
        seen.append(len(references))
        return compose(messages, references)

    fit([user("q" * 50)], ["", "r" * 30], record, count, 10, least=least)
    assert min(seen) == 2 * least


def test_a_long_conversation_is_measured_few_times() -> None:
    calls = 0

    def counting(messages: Sequence[Message]) -> int:
        nonlocal calls
        calls += 1
        return count(messages)

    messages = [message for _ in range(1000) for message in (user("x" * 50), assistant("y" * 50))] + [user("q")]
    fit(messages, ["r" * 1_000_000] * 6, compose, counting, 20_000)
    assert calls < 50


def test_shortened_texts_say_so_and_are_no_longer_than_asked() -> None:
    assert shortened(["abcdefghi", "abcdefgh", "abc"], 8) == ("abcd […]", "abcdefgh", "abc")
    assert shortened(["abc"], 0) == ()
