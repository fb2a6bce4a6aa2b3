"""Who is asked: by examples, a classifier, another model's vectors, or likelihood; and who stands in."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from pydantic import ValidationError
from tests.agents.fake_session import Asked, FakeSession, assistant, failed, system, user

from moekit.agents.config.strategy_configs import RouteConfig
from moekit.agents.members.member import MemberError
from moekit.agents.routing.classifier import Classifier
from moekit.agents.session import AnswerRequest
from moekit.agents.strategies.route import Route
from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions, Message, Reply

EXAMPLES = {
    "prose": ("Once upon a time there was a king.", "It was a dark and stormy night.", "The sun rose over the hills."),
    "code": ("def total(values):\n    return sum(values)", "for item in items:\n    print(item)", "import os, sys"),
    "sums": ("12 + 30 = 42", "7 * 8 = 56", "100 - 1 = 99"),
}
QUESTIONS = {
    "prose": "There was once a dark king over the hills.",
    "code": "import sys\nfor value in values:\n    print(value)",
    "sums": "13 + 29 =",
}


class Session(FakeSession):
    """With vectors: what signs stand in a text; and nats for each name."""

    nats: dict[str, float]
    embedded: list[list[str]]

    async def embed(self, name: str, texts: Sequence[str], *, stage: str) -> list[list[float]]:
        self.__dict__.setdefault("embedded", []).append(list(texts))
        await asyncio.sleep(0)
        # As of a language model: mostly the same, whatever the text.
        signs = [(text[0].isupper(), "(" in text or "," in text, "=" in text) for text in texts]
        return [[100.0, *(100 + float(sign) for sign in of_text)] for of_text in signs]

    async def score(self, name: str, messages: Sequence[Message], answer: str, *, stage: str) -> float:
        await super().score(name, messages, answer, stage=stage)
        if name not in self.nats:
            raise MemberError(f"{name} cannot score.", reason="context")
        return self.nats[name] * len(answer.encode())


def route(by: str = "examples", **settings: object) -> Route:
    examples = {} if by == "likelihood" else {"examples": EXAMPLES}
    return Route(RouteConfig.model_validate({"by": by, "members": list(EXAMPLES), **examples, **settings}))


def ask(strategy: Route, session: FakeSession, *messages: Message, heard: list[str] | None = None) -> Reply:
    async def hear(piece: str) -> None:
        assert heard is not None
        heard.append(piece)

    on_text = None if heard is None else hear
    request = AnswerRequest(messages=messages, options=ChatOptions(seed=5), on_text=on_text)
    return asyncio.run(strategy.answer(request, session))  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"embedding": "vectors"}], ids=["n-grams", "vectors"])
@pytest.mark.parametrize("by", ["examples", "classifier"])
@pytest.mark.parametrize("wanted", list(QUESTIONS))
def test_a_question_goes_to_who_answers_such_ones(by: str, wanted: str, settings: dict[str, str]) -> None:
    session = Session()
    messages = (system("Be brief."), user(QUESTIONS["sums"]), assistant("42."), user(QUESTIONS[wanted]))
    reply = ask(route(by, **settings), session, *messages)
    assert [asked.name for asked in session.asked] == [wanted]
    assert session.asked[0].messages == messages
    assert session.asked[0].options == ChatOptions(seed=5)
    assert reply.text == f"answer|{wanted}|0"
    (stage, note), *_ = session.notes
    assert stage == "routing"
    assert note.startswith(f"Goes to {wanted} (by {by}: {wanted} ")


def test_vectors_of_examples_are_made_once_and_in_parts() -> None:
    many = {
        name: tuple(f"{text} {number}" for text in texts for number in range(50)) for name, texts in EXAMPLES.items()
    }
    strategy = route(embedding="vectors", examples=many)
    session = Session()

    async def all_at_once() -> None:
        asked = (strategy.answer(AnswerRequest(messages=(user(QUESTIONS["sums"]),)), session) for _ in range(8))  # type: ignore[arg-type]
        await asyncio.gather(*asked)

    asyncio.run(all_at_once())
    sizes = sorted(map(len, session.embedded))
    assert sizes == [1] * 8 + [50, 100, 100, 100, 100]
    assert [asked.name for asked in session.asked] == ["sums"] * 8


def test_what_is_common_to_all_vectors_does_not_count() -> None:
    # Four examples against one: their cosines with anything are nearly 1 as the vectors come.
    one_each = {"code": EXAMPLES["code"][:1], "sums": EXAMPLES["sums"][:1]}
    strategy = route(embedding="vectors", examples={"prose": (*EXAMPLES["prose"], "Once more."), **one_each})
    session = Session()
    ask(strategy, session, user(QUESTIONS["sums"]))
    assert [asked.name for asked in session.asked] == ["sums"]


def test_vectors_that_could_not_be_made_are_made_at_the_next_question() -> None:
    strategy, session = route(embedding="vectors"), Session()
    embed, calls = session.embed, 0

    async def fails_once(name: str, texts: Sequence[str], *, stage: str) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise failed("vectors")
        return await embed(name, texts, stage=stage)

    session.embed = fails_once  # type: ignore[method-assign]

    async def twice() -> Reply:
        with pytest.raises(MemberError, match="vectors is down"):
            await strategy.answer(AnswerRequest(messages=(user("x"),)), session)  # type: ignore[arg-type]
        return await strategy.answer(AnswerRequest(messages=(user(QUESTIONS["code"]),)), session)  # type: ignore[arg-type]

    assert asyncio.run(twice()).text == "answer|code|0"


def test_vectors_that_were_made_are_kept_when_an_answer_ends_early() -> None:
    many = {
        name: tuple(f"{text} {number}" for text in texts for number in range(50)) for name, texts in EXAMPLES.items()
    }
    strategy, session = route("classifier", embedding="vectors", examples=many), Session()
    embed = session.embed

    async def hangs_at_the_third(name: str, texts: Sequence[str], *, stage: str) -> list[list[float]]:
        if len(session.__dict__.get("embedded", [])) == 2:
            session.embedded.append([])
            await asyncio.Event().wait()
        return await embed(name, texts, stage=stage)

    session.embed = hangs_at_the_third  # type: ignore[method-assign]

    async def twice() -> Reply:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await strategy.answer(AnswerRequest(messages=(user("x"),)), session)  # type: ignore[arg-type]
        return await strategy.answer(AnswerRequest(messages=(user(QUESTIONS["code"]),)), session)  # type: ignore[arg-type]

    assert asyncio.run(twice()).text == "answer|code|0"
    assert list(map(len, session.embedded)) == [100, 100, 0, 100, 100, 50, 1]


def test_a_fit_of_vectors_leaves_the_event_loop_free(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []

    class Noting(Classifier):
        def __init__(self, *given: Any) -> None:
            threads.append(threading.current_thread())
            super().__init__(*given)

    monkeypatch.setattr("moekit.agents.strategies.route.Classifier", Noting)
    ask(route("classifier", embedding="vectors"), Session(), user("x"))
    assert len(threads) == 1
    assert threading.main_thread() not in threads


def test_the_least_surprised_member_answers() -> None:
    session = Session()
    session.nats = {"prose": -1.5, "code": -0.5, "sums": -2.0}
    text = "é" * 3000
    ask(route("likelihood"), session, user(text))
    assert [asked.name for asked in session.asked] == ["code"]
    assert session.asked[0].messages == (user(text),)
    assert session.scored == [((), "é" * 1000)] * 3
    assert session.notes == [("routing", "Goes to code (by likelihood: code -0.5, prose -1.5, sums -2).")]


def test_a_judge_is_surprised_in_a_members_place() -> None:
    session = Session()
    session.nats = {"prose": -1.5, "small": -0.5, "sums": -1.0}
    ask(route("likelihood", judges={"code": "small"}), session, user("x"))
    assert [asked.name for asked in session.asked] == ["code"]


def test_only_a_likelihood_of_its_own_members_has_judges() -> None:
    with pytest.raises(ValidationError, match="by examples needs no judges"):
        route(judges={"code": "small"})
    with pytest.raises(ValidationError, match="judges: 'other' is none of its members"):
        route("likelihood", judges={"other": "small"})


def test_a_member_that_cannot_tell_comes_last_and_all_of_them_are_an_error() -> None:
    session = Session()
    session.nats = {"sums": -9.0}
    ask(route("likelihood"), session, user("x"))
    assert [asked.name for asked in session.asked] == ["sums"]
    session.nats = {}
    with pytest.raises(MemberError, match="prose cannot score"):
        ask(route("likelihood"), session, user("x"))


def test_the_next_best_stands_in_for_one_that_fails() -> None:
    def answer(asked: Asked) -> str:
        if asked.name != "prose":
            raise failed(asked.name)
        return "from prose"

    session, heard = Session(answer), list[str]()
    reply = ask(route(), session, user(QUESTIONS["code"]), heard=heard)
    assert reply.text == "".join(heard) == "from prose"
    names = [asked.name for asked in session.asked]
    assert (names[0], names[-1]) == ("code", "prose")
    assert ("answer", f"{names[1]} stands in for code, which failed.") in session.notes


def test_when_all_fail_the_last_error_is_told() -> None:
    def answer(asked: Asked) -> str:
        raise failed(asked.name)

    session = Session(answer)
    with pytest.raises(MemberError, match="is down"):
        ask(route(), session, user(QUESTIONS["code"]))
    assert sorted(asked.name for asked in session.asked) == sorted(EXAMPLES)


def test_nobody_stands_in_once_a_part_was_passed_on() -> None:
    session, heard = Session(), list[str]()
    ask_whole = session.ask

    async def breaks_off(name: str, *given: object, **named: object) -> Reply:
        await ask_whole(name, *given, **named)  # type: ignore[arg-type]
        raise MemberError(f"{name} broke off.", reason="truncated")

    session.ask = breaks_off  # type: ignore[method-assign, assignment]
    with pytest.raises(MemberError, match="code broke off"):
        ask(route(), session, user(QUESTIONS["code"]), heard=heard)
    assert "".join(heard) == "answer|code|0"
    assert len(session.asked) == 1


def test_without_a_user_all_that_was_said_counts() -> None:
    session = Session()
    ask(route(), session, system(QUESTIONS["sums"]))
    assert session.asked[0].name == "sums"


def test_a_member_without_examples_is_bad_configuration() -> None:
    with pytest.raises(UsageError, match="No example goes to sums"):
        route(examples={name: EXAMPLES[name] for name in ("prose", "code")})
