"""Every form in which servers send an answer: it is read, and paid for once; what is none is told, and why."""

import asyncio
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.agents.answer_forms import ANSWER, CHUNKS, FAILURES, FORMS, PIECES, Form, chunk, stream
from tests.agents.fault_server import Behaviour, Connection, FaultServer, Recorded
from tests.agents.in_memory import QUESTION

from moekit.agents import AgentsConfig, Answer, AnswerFailed, Engine
from moekit.agents.members.arriving_answer import ArrivingAnswer
from moekit.agents.members.body_reader import BodyReader
from moekit.agents.members.redaction import Redactor
from moekit.core.messages import Reply, Usage

RETRIES = 2
# A strategy, and how many requests it makes where all go well.
STRATEGIES = {"a": 1, "routed": 1, "samples": 3, "all": 4, "ranked": 4}


class Sends(Behaviour):
    """A body as it stands, in chunks of so many bytes."""

    def __init__(self, form: Form, size: int = 10_000) -> None:
        self.form, self.size = form, size

    async def answer(self, request: Recorded, connection: Connection) -> None:
        await connection.head(200, self.form.content_type, *self.form.headers.items(), length=None)
        for start in range(0, len(self.form.body), self.size):
            await connection.chunk(self.form.body[start : start + self.size])
        await connection.chunk(b"")


class Asked:
    """A server, and an engine whose members all are there, in one loop: neither is made anew for each form."""

    def __init__(self, server: FaultServer, runner: asyncio.Runner, engine: Engine) -> None:
        self.server, self._runner, self._engine = server, runner, engine

    def ask(self, form: Form, name: str = "a", *, heard: list[str] | None = None, size: int = 10_000) -> Answer:
        self.server.forget()
        self.server.behave("m", Sends(form, size))

        async def hear(piece: str) -> None:
            assert heard is not None
            heard.append(piece)

        return self._runner.run(self._engine.answer(QUESTION, name, on_text=None if heard is None else hear))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moekit.agents.calls.retried_call._FIRST_WAIT_S", 0.001)


@pytest.fixture(scope="module")
def asked() -> Iterator[Asked]:
    with FaultServer() as server, asyncio.Runner() as runner:
        given: dict[str, Any] = {
            "endpoints": {"e": {"url": server.url}},
            "members": {name: {"endpoint": "e", "model": "m"} for name in ("a", "b")},
            "strategies": {
                "routed": {"kind": "route", "by": "examples", "members": ["a"], "examples": {"a": ["x"]}},
                "samples": {"kind": "self-moa", "member": "a", "samples": 2},
                "all": {"kind": "moa", "layers": [["a", "b", "b"]], "aggregator": "a", "quorum": 3},
                "ranked": {"kind": "rank", "members": ["a", "b"], "judge": "a", "quorum": 2},
            },
            "retries": RETRIES,
        }
        engine = Engine(AgentsConfig.model_validate(given))
        runner.run(engine.__aenter__())
        yield Asked(server, runner, engine)
        runner.run(engine.__aexit__(None, None, None))


@pytest.mark.parametrize("name", FORMS)
def test_an_answer_in_any_form_is_read_and_paid_for_once(name: str, asked: Asked) -> None:
    for strategy, requests in STRATEGIES.items():
        heard: list[str] = []
        found = asked.ask(FORMS[name], strategy, heard=heard)
        assert (found.text, "".join(heard)) == (ANSWER, ANSWER), strategy
        assert len(asked.server.requests) == requests, strategy
        assert (found.failures, found.finish_reason) == ((), "stop"), strategy
        if name.startswith("usage"):
            assert found.usage == Usage(prompt_tokens=3 * requests, completion_tokens=5 * requests)
    assert asked.ask(FORMS[name]).text == ANSWER  # where nobody hears it


@pytest.mark.parametrize("name", FORMS)
def test_no_chunk_is_too_small(name: str, asked: Asked) -> None:
    assert asked.ask(FORMS[name], size=3).text == ANSWER


def test_an_answer_that_may_not_be_whole_says_so(asked: Asked) -> None:
    for name, form in FORMS.items():
        told = asked.ask(form).incomplete
        assert bool(told) == (name == "neither [DONE] nor finish_reason"), name
    unended = stream(*(chunk({"content": piece}, "null") for piece in PIECES), done="")
    assert "its stream ended without saying that it was over" in asked.ask(unended).incomplete[0]
    damaged = stream(CHUNKS[0], 'data: {"choices": [\n\n', CHUNKS[1])
    assert asked.ask(damaged).incomplete == ("a: a piece of the answer came damaged and is missing.",)


@pytest.mark.parametrize("name", FAILURES)
def test_what_is_no_answer_is_told_and_asked_again_only_where_that_may_help(name: str, asked: Asked) -> None:
    form, why, may_pass = FAILURES[name]
    began = form.body.startswith(b"data: ") and b"Gr" in form.body
    for heard in (None, []):
        with pytest.raises(AnswerFailed) as failed:
            asked.ask(form, heard=heard)
        assert why in str(failed.value)
        assert "\n" not in str(failed.value)
        again = may_pass and not (began and heard is not None)
        assert len(asked.server.requests) == (1 + RETRIES if again else 1)


# The reader alone


def values(chunks: list[bytes]) -> list[Any]:
    reader = BodyReader()
    return [value for each in chunks for value in reader.feed(each)] + list(reader.end())


def cut(body: bytes, places: list[int]) -> list[bytes]:
    return [body[start:end] for start, end in pairwise([0, *sorted(places), len(body)])]


def said(chunks: list[bytes]) -> Reply | str:
    """What is made of a body in these chunks: an answer, or an error's sentence."""

    async def read() -> Reply:
        async def come() -> Any:
            for each in chunks:
                yield each

        answer = ArrivingAnswer("a", Redactor(None), None)
        await answer.read(come())
        return await answer.finish(None)

    try:
        return asyncio.run(read())
    except Exception as error:  # noqa: BLE001 - whatever it is, it must be the same for all cuts
        return f"{type(error).__name__}: {error}"


PLAIN = {name: form for name, form in FORMS.items() if "Content-Encoding" not in form.headers}
BODIES = [form.body for form in PLAIN.values()] + [form.body for form, *_ in FAILURES.values()]


@pytest.mark.parametrize("body", BODIES)
def test_bytes_may_come_one_by_one(body: bytes) -> None:
    assert said([body[place : place + 1] for place in range(len(body))]) == said([body])


@given(st.data())
def test_any_cut_of_any_body_gives_the_same(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(BODIES))
    places = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    assert said(cut(body, places)) == said([body])


@given(st.lists(st.sampled_from([*FORMS["as documented"].body.split(b" "), b"\r", b"\n", b"data:", b"{", b"}", b":"])))
def test_any_bytes_in_any_cut_give_the_same_values(words: list[bytes]) -> None:
    body = b"".join(words)
    assert values(words) == values([body]) == values([body[place : place + 1] for place in range(len(body))])


@given(st.binary(max_size=300))
def test_no_bytes_break_it(body: bytes) -> None:
    found = said([body])
    assert isinstance(found, Reply) or found.startswith("MemberError: a")
