"""What an evaluation is made of: questions, what counts of an answer, costs, intervals."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.agents.fake_session import assistant, user

from moekit.agents import AgentsConfig
from moekit.agents.evaluate.costs import Costs, samples_for
from moekit.agents.evaluate.intervals import estimate
from moekit.agents.evaluate.matching import Match, extract, is_right, majority
from moekit.agents.evaluate.questions import read_questions
from moekit.agents.outcome.trace import CallEvent, Trace
from moekit.config import DenseConfig, ModelConfig
from moekit.core.errors import UsageError
from moekit.core.messages import Usage
from moekit.counting import inference_flops_per_token
from moekit.models import Decoder


@pytest.mark.parametrize(
    ("text", "match", "found"),
    [
        ("The Eiffel-Tower, in  PARIS!", "exact", "eiffel tower in paris"),
        ("The", "exact", "the"),
        (" … ", "exact", None),
        ("ﬁn", "exact", "fin"),
        ("So 3 + 4 = 7.", "number", "7"),
        ("It costs $1,250.50 in all", "number", "2501/2"),
        ("-0.50", "number", "-1/2"),
        ("x=-3", "number", "-3"),
        ("between 5-7", "number", "7"),
        ("a list 1,2,3", "number", "3"),
        ("10 / 4", "number", "5/2"),
        ("1.5e3 m", "number", "1500"),
        ("50%", "number", "50"),
        ("1/0", "number", None),
        ("9" * 5000, "number", None),
        ("none", "number", None),
        ("B", "choice", "B"),
        (" (c). ", "choice", "C"),
        ("**Answer:** B, since A is wrong.", "choice", "B"),
        ("The answer is (D). A and B are too small.", "choice", "D"),
        ("The answer is A because it is", "choice", "A"),
        ("A dog bites. I think it's option C\nbecause A dog does", "choice", "C"),
        ("B) Paris", "choice", "B"),
        ("Not A, but C.", "choice", "C"),
        ("A good one", "choice", None),
        ("", "choice", None),
    ],
)
def test_what_counts_of_an_answer(text: str, match: Match, found: str | None) -> None:
    assert extract(text, match) == found


def test_right_is_the_same_in_another_form_and_nothing_is_never_right() -> None:
    assert is_right("That makes 1,000.0 euros", "1000", "number")
    assert not is_right("That makes 1,000.1 euros", "1000", "number")
    assert not is_right("no number", "none either", "number")


def test_a_majority_counts_what_samples_say_and_of_equals_takes_the_first() -> None:
    assert majority(["it is 3", "4", "four: 4.0", "5"], "number") == "4"
    assert majority(["7", "8", "8", "7"], "number") == "7"
    assert majority(["none", "?"], "number") is None


def test_intervals_are_as_wide_as_theory_says() -> None:
    random = np.random.default_rng(1)
    values = random.normal(3, 2, size=400)
    found = estimate(values.tolist())
    error = values.std() / math.sqrt(len(values))
    assert found.mean == pytest.approx(values.mean())
    # A quantile of 10,000 draws has a standard error of about 2.7 % of the error itself.
    assert (found.mean - found.low) / error == pytest.approx(1.96, abs=0.12)
    assert (found.high - found.mean) / error == pytest.approx(1.96, abs=0.12)
    assert estimate(values.tolist()) == found


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    random = np.random.default_rng(2)
    covered = 0
    for _ in range(60):
        found = estimate((random.random(60) < 0.7).astype(float).tolist())
        covered += found.low <= 0.7 <= found.high
    assert 52 <= covered <= 60


def test_equal_values_have_no_spread() -> None:
    found = estimate([0.25, 0.25])
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows),
        encoding="utf-8",
    )
    return path


def test_questions_come_as_text_or_as_conversations(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "2."},
        {"role": "user", "content": "3?"},
    ]
    path = lines(
        tmp_path / "q.jsonl",
        {"question": "one\u2028line?", "answer": "1", "id": 7},
        "  ",
        {"messages": turns, "answer": 3},
    )
    one, two = read_questions(path, "number")
    assert (one.asked, one.answer) == ((user("one\u2028line?"),), "1")
    assert (two.asked, two.answer) == ((user("2?"), assistant("2."), user("3?")), "3")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ('{"question": "x", ', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        (["x"], "must be keys and values (question, messages, answer)"),
        ({"answer": "1"}, 'it needs either "question" or "messages"'),
        ({"question": "x", "messages": [{"role": "user", "content": "y"}], "answer": "1"}, "it needs either"),
        ({"question": " ", "answer": "1"}, "the question is empty"),
        ({"question": 3, "answer": "1"}, "question: must be text"),
        ({"messages": [{"role": "tool", "content": "x"}], "answer": "1"}, "messages[0].role: there is no role 'tool'"),
        ({"messages": [{"role": "assistant", "content": "x"}], "answer": "1"}, "must be the user's"),
        ({"question": "x"}, 'there is no "answer" to compare with'),
        ({"question": "x", "answer": "many"}, "the answer 'many' holds nothing that --match number compares"),
    ],
)
def test_problems_name_the_line(tmp_path: Path, row: Any, problem: str) -> None:
    path = lines(tmp_path / "q.jsonl", {"question": "x", "answer": "1"}, "", row)
    with pytest.raises(UsageError) as caught:
        read_questions(path, "number")
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert problem in str(caught.value)
    assert str(caught.value).endswith(".")


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Cannot read"):
        read_questions(tmp_path / "none.jsonl", None)
    with pytest.raises(UsageError, match="holds no question"):
        read_questions(lines(tmp_path / "q.jsonl", " "), None)
    assert read_questions(lines(tmp_path / "q.jsonl", {"question": "x"}), None)[0].answer is None


def trace(*calls: tuple[str, int, int]) -> Trace:
    events = [
        CallEvent(
            stage="s",
            name=name,
            prompt=0,
            began=0,
            ended=1,
            text="x",
            usage=Usage(prompt_tokens=read, completion_tokens=written),
            cached=True,
        )
        for name, read, written in calls
    ]
    return Trace(name="t", seconds=1, prompts=(), events=(*events, events[0].model_copy(update={"failure": "broken"})))


def config(members: dict[str, Any], parts: Sequence[str] = ()) -> AgentsConfig:
    return AgentsConfig.model_validate(
        {
            "endpoints": {"there": {"url": "http://127.0.0.1:1"}},
            "members": members,
            "strategies": {"mix": {"kind": "ensemble", "members": parts}} if parts else {},
            "default": next(iter(members)),
        }
    )


def endpoint(price: tuple[float, float] | None) -> dict[str, Any]:
    told = {} if price is None else {"price": {"input": price[0], "output": price[1]}}
    return {"endpoint": "there", "model": "m", **told}


def test_costs_are_money_where_all_have_prices_else_tokens() -> None:
    priced = config({"a": endpoint((1, 4)), "b": endpoint((2, 8))})
    calls = trace(("a", 1000, 100), ("b", 500, 50))
    costs = Costs(priced, ["a", "b"])
    assert (costs.unit, costs.of(calls)) == ("money", pytest.approx((1000 + 400 + 1000 + 400) / 1e6))
    some = Costs(config({"a": endpoint((1, 4)), "b": endpoint(None)}), ["a", "b"])
    assert (some.unit, some.of(calls)) == ("tokens", 1650)
    free = Costs(config({"a": endpoint((1, 4)), "b": endpoint((0, 0))}), ["a", "b"])
    assert (free.unit, free.of(calls)) == ("tokens", 1650)
    assert Costs(config({"a": endpoint((0, 4)), "b": endpoint((2, 0))}), ["a", "b"]).unit == "money"


def test_costs_of_local_models_are_flops(tmp_path: Path, make_config: Any) -> None:
    models: dict[str, ModelConfig] = {"a": make_config(), "b": make_config((DenseConfig(width=16),))}
    for name, model in models.items():
        Decoder(model).save(tmp_path / name)
    local = {name: {"path": str(tmp_path / name), "max_tokens": 4} for name in models}
    costs = Costs(config(local, ["a", "b"]), ["a", "b"])
    one, two = (inference_flops_per_token(model, 12) for model in models.values())
    assert one != two
    assert costs.unit == "FLOPs"
    assert costs.of(trace(("a", 10, 2))) == 12 * one
    assert costs.of(trace(("b", 3, 9), ("mix", 5, 7))) == 12 * two + 12 * (one + two)


def test_a_budget_buys_as_many_samples_as_fit_and_at_least_one() -> None:
    assert samples_for(10.0, lambda count: 3.0 * count) == 3
    assert samples_for(0.3, lambda count: 0.1 * count) == 3
    assert samples_for(1.0, lambda count: 3.0 * count) == 1
    assert samples_for(10.0, lambda count: 2.0 * count + 1.5 * (count + 1)) == 2
    assert samples_for(1e9, lambda count: 1e-9 * count) == 64
