"""A strategy against its members at equal cost, over real HTTP: who is asked how often, and what comes out."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.agents.fault_server import Fail, FaultServer, Ok

from moekit.agents import AgentsConfig
from moekit.agents.evaluate import AgentsEvaluation, Question, evaluate
from moekit.core.errors import MoekitError, UsageError
from moekit.core.progress import Advanced, Finished, ProgressEvent, Started

NAMES = ("cheap", "dear", "writer", "judge")
PRICES = {"cheap": 1.0, "dear": 3.0, "writer": 1.0, "judge": 1.0}
QUESTIONS = tuple(Question(question=f"What is {number} + {number}?", answer=str(2 * number)) for number in range(4))


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


def right(question: str) -> int:
    return 2 * int(question.split()[2])


@pytest.fixture(autouse=True)
def _well(server: FaultServer) -> None:
    """The writer is always right, dear never; of cheap's samples the second, the fifth and so on are wrong."""
    server.forget()
    asked: dict[str, int] = {}

    def cheap(body: dict[str, Any]) -> str:
        question = body["messages"][-1]["content"]
        asked[question] = asked.get(question, 0) + 1
        return f"It is {right(question) + (asked[question] % 3 == 2)}"

    server.behave("cheap", Ok(cheap))
    server.behave("dear", Ok("It is -1"))
    server.behave("writer", Ok(lambda body: f"It is {right(body['messages'][-1]['content'])}"))
    server.behave("judge", Ok(by_quality))


def by_quality(body: dict[str, Any]) -> str:
    """The answer with the greater last number wins."""
    answers = [part.split("\n")[2] for part in body["messages"][-1]["content"].split("Answer ")[1:]]
    first, second = (int(answer.removeprefix("It is ")) for answer in answers)
    return "C" if first == second else "A" if first > second else "B"


def config(server: FaultServer, *, cache: Path | None = None, prices: bool = True, **more: Any) -> AgentsConfig:
    members = {
        name: {"endpoint": "there", "model": name}
        | ({"price": {"input": PRICES[name], "output": 4 * PRICES[name]}} if prices else {})
        for name in NAMES
    }
    return AgentsConfig.model_validate(
        {
            "endpoints": {"there": {"url": server.url}},
            "members": members,
            "strategies": {
                "answer": {"kind": "moa", "layers": [["cheap", "dear"]], "aggregator": "writer", "prompt": "Merge:"},
                "ranked": {"kind": "rank", "members": ["cheap", "dear"], "judge": "judge"},
            },
            "default": "answer",
            "retries": 0,
            "deadlines": {"call": 5, "answer": 10},
            "cache": None if cache is None else {"folder": str(cache)},
        }
        | more
    )


def run(settings: AgentsConfig, questions: Sequence[Question] = QUESTIONS, **options: Any) -> AgentsEvaluation:
    return asyncio.run(evaluate(settings, questions, **({"match": "number"} | options)))


def replaying(settings: AgentsConfig) -> AgentsConfig:
    assert settings.cache is not None
    return settings.model_copy(update={"cache": settings.cache.model_copy(update={"mode": "only"})})


def spent(server: FaultServer, model: str) -> float:
    """Money by the server's books."""
    tokens = sum(request.prompt_tokens + 4 * request.completion_tokens for request in server.of(model))
    return tokens * PRICES[model] / 1e6


def test_accuracy_at_equal_cost(server: FaultServer) -> None:
    events: list[ProgressEvent] = []
    found = run(config(server), progress=events.append)
    assert (found.strategy, found.measure, found.unit, found.questions) == ("answer", "accuracy", "money", 4)
    assert found.accuracy is not None
    assert (found.accuracy.mean, found.accuracy.low) == (1.0, 1.0)
    by_name = {member.name: member for member in found.members}
    assert list(by_name) == ["cheap", "dear", "writer"]
    # The strategy asks each once, so what else a member was asked are its samples.
    samples = {name: len(server.of(name)) - 4 for name in by_name}
    assert samples == {name: 4 * member.samples for name, member in by_name.items()}
    for name, member in by_name.items():
        # The server's books, less the strategy's own call, which cost as much where the prompt is the same.
        if name != "writer":
            assert member.cost == pytest.approx(spent(server, name) * samples[name] / len(server.of(name)) / 4)
        assert member.cost <= found.cost
        assert member.cost + member.cost / member.samples > found.cost or member.samples == 64
    assert [member.samples for member in found.members] == [5, 1, 5]
    assert by_name["dear"].accuracy.mean == 0
    assert by_name["dear"].difference.mean == 1
    # Of its five samples after the strategy's own the first and the fourth are wrong, and the majority is right.
    assert by_name["cheap"].accuracy.mean == 1
    assert by_name["cheap"].difference.mean == 0
    assert found.reasons == ()
    headings, rows = found.table()
    assert headings == ("", "samples", "money a question", "accuracy", "strategy's gain", "no answer")
    assert rows[2] == (
        "dear",
        "1",
        f"{by_name['dear'].cost:.3g}",
        "0.0 % (0.0 to 0.0)",
        "+100.0 % (+100.0 to +100.0)",
        "0",
    )
    assert events[:2] == [
        Started(task="answer", total=4, unit="questions"),
        Advanced(task="answer", done=1, total=4),
    ]
    totals = {event.task: event.total for event in events if isinstance(event, Started)}
    assert {event.task: event.done for event in events if isinstance(event, Advanced)} == totals
    assert [event.task for event in events if isinstance(event, Finished)] == list(totals)


def test_the_strategys_cost_is_what_the_server_counted(server: FaultServer) -> None:
    found = run(config(server, default="writer"))
    assert found.members == ()
    assert found.cost == pytest.approx(spent(server, "writer") / 4)
    found = run(config(server, prices=False), name="writer")
    assert found.unit == "tokens"
    assert found.cost == sum(request.prompt_tokens + request.completion_tokens for request in server.of("writer")) / 8


def test_win_rate_at_equal_cost(server: FaultServer) -> None:
    strategy = {"kind": "moa", "layers": [["cheap", "dear"]], "aggregator": "writer", "prompt": "Merge. " * 200}
    found = run(config(server, strategies={"answer": strategy}), judge="judge")
    by_name = {member.name: member for member in found.members}
    assert (found.measure, found.judge, found.match, found.accuracy) == ("win rate", "judge", None, None)
    assert by_name["dear"].win_rate.mean == 1
    assert by_name["writer"].win_rate.mean == 0.5
    # cheap's samples and its own aggregation of them.
    count = by_name["cheap"].samples
    assert count > 1
    joined = [one for one in server.of("cheap") if one.messages[0]["role"] == "system"]
    assert len(joined) == 4
    assert all(f"\n{count}. It is" in one.messages[0]["content"] for one in joined)
    assert all(f"\n{count + 1}. " not in one.messages[0]["content"] for one in joined)
    assert 0.5 * found.cost < by_name["cheap"].cost <= found.cost
    headings, rows = found.table()
    assert headings == ("", "samples", "money a question", "strategy wins", "undecided", "no answer")
    assert [row[0] for row in rows] == ["answer (strategy)", "cheap", "dear", "writer"]
    assert rows[2][3:] == ("100.0 % (100.0 to 100.0)", "0", "0")
    # Three members, four questions, both orders.
    assert len(server.of("judge")) == 24


def test_position_cannot_win(server: FaultServer) -> None:
    server.behave("judge", Ok("A"))
    found = run(config(server), QUESTIONS[:2], judge="judge")
    assert {member.win_rate.mean for member in found.members} == {0.5}
    server.behave("judge", Ok("Both A and B."))
    found = run(config(server), QUESTIONS[:2], judge="judge")
    assert {(member.win_rate.mean, member.undecided) for member in found.members} == {(0.5, 4)}


def test_who_only_judges_is_no_contestant(server: FaultServer) -> None:
    assert [member.name for member in run(config(server), QUESTIONS[:1], name="ranked").members] == ["cheap", "dear"]


def test_failures_are_counted_as_wrong_and_told(server: FaultServer) -> None:
    server.behave("writer", *[Fail(400, message="no")] * 1, Ok("It is -5"))
    found = run(config(server), name="writer", questions=QUESTIONS)
    assert found.failures == 1
    assert len(found.reasons) == 1
    assert "400" in found.reasons[0]
    assert found.table()[1] == [("writer (strategy)", "", f"{found.cost:.3g}", "0.0 % (0.0 to 0.0)", "", "1")]


def test_who_has_no_answer_loses(server: FaultServer) -> None:
    server.behave("writer", *[Fail(400, message="no")] * 2, Ok("It is 0"))
    found = run(config(server), judge="judge")
    assert found.failures == 2
    # Where the strategy answers 0 it wins over dear's -1, else it loses.
    assert next(member for member in found.members if member.name == "dear").win_rate.mean == 0.5


def test_an_evaluation_without_any_answer_is_an_error(server: FaultServer) -> None:
    server.behave("dear", Fail(400, message="no"))
    with pytest.raises(MoekitError, match=r"dear: no answer came: .*400"):
        run(config(server))


def test_what_costs_nothing_that_is_known_cannot_be_compared(server: FaultServer) -> None:
    for name in NAMES:
        server.behave(name, Ok("It is 1", usage=None))
    with pytest.raises(MoekitError, match="told no usage"):
        run(config(server))


def test_a_free_member_makes_it_tokens_for_all(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRICES, "dear", 0.0)
    found = run(config(server), QUESTIONS[:2])
    assert found.unit == "tokens"
    assert [member.name for member in found.members] == ["cheap", "dear", "writer"]
    assert all(0 < member.cost <= found.cost for member in found.members)
    assert found.table()[0][2] == "tokens a question"


def test_told_usage_that_costs_nothing_is_told_all_the_same(server: FaultServer) -> None:
    """Reading is free, and the server counts nothing written: as many samples as there are at most."""
    server.behave("cheap", Ok("It is 0", usage={"prompt_tokens": 5, "completion_tokens": 0}))
    members = {"cheap": {"endpoint": "there", "model": "cheap", "price": {"input": 0, "output": 1}}}
    strategies = {"answer": {"kind": "moa", "layers": [["cheap"]], "aggregator": "cheap"}}
    found = run(config(server, members=members, strategies=strategies), QUESTIONS[:1])
    assert (found.unit, found.cost, found.members[0].samples) == ("money", 0, 64)


def test_a_judge_whose_temperature_is_the_servers_keeps_it(server: FaultServer) -> None:
    members = {name: {"endpoint": "there", "model": name, "temperature": None} for name in NAMES}
    run(config(server, members=members), QUESTIONS[:1], judge="judge")
    assert {request.body.get("temperature") for request in server.of("judge")} == {None}
    server.forget()
    run(config(server), QUESTIONS[:1], judge="judge")
    assert {request.body.get("temperature") for request in server.of("judge")} == {0}


def test_few_questions_are_under_way_at_a_time(server: FaultServer) -> None:
    server.behave("writer", Ok("It is 0", delay=0.2))
    found = run(config(server), QUESTIONS * 3, name="writer")
    assert 1 < server.most_at_once() <= 8
    assert found.accuracy is not None
    assert found.accuracy.mean == 0.25


def test_unknown_names_are_told(server: FaultServer) -> None:
    for wrong in ({"name": "anser"}, {"judge": "jugde"}):
        with pytest.raises(UsageError, match=r"did you mean '(answer|judge)'"):
            run(config(server), **wrong)


def test_with_a_cache_it_goes_on_where_it_was(server: FaultServer, tmp_path: Path) -> None:
    settings = config(server, cache=tmp_path)
    first = run(settings, QUESTIONS[:1])
    # The strategy's own call is the first sample; the others are calls of their own.
    assert [len(server.of(member.name)) for member in first.members[:2]] == [5, 1]
    asked = len(server.requests)
    again = run(settings, QUESTIONS[:1])
    assert again == first
    assert len(server.requests) == asked
    more = run(settings, QUESTIONS[:2])
    assert {request.question for request in server.requests[asked:]} == {QUESTIONS[1].question}
    assert more.questions == 2
    assert AgentsEvaluation.model_validate_json(more.model_dump_json()) == more


def test_a_replay_must_be_complete(server: FaultServer, tmp_path: Path) -> None:
    run(config(server, cache=tmp_path), QUESTIONS[:1])
    replay = replaying(config(server, cache=tmp_path))
    asked = len(server.requests)
    assert run(replay, QUESTIONS[:1]).questions == 1
    with pytest.raises(MoekitError, match="was not asked this before"):
        run(replay, QUESTIONS[:2])
    assert len(server.requests) == asked
