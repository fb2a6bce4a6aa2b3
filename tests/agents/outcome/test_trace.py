"""The trace as data and as a page."""

import html.parser
import json

import pytest
from pydantic import ValidationError
from tests.agents.fake_session import CONVERSATIONS, system, user

from moekit.agents.outcome.trace import CallEvent, Trace, TraceRecorder
from moekit.agents.outcome.trace_page import trace_page
from moekit.core.messages import Usage

HOSTILE = "</pre><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7 * 7 }}{% raw %}&lt;\u202e\x00"


def trace(name: str = "answer", text: str = "Because of the air.") -> Trace:
    times = iter([10.0, 10.5, 12.0])
    recorder = TraceRecorder(name, clock=lambda: next(times))
    messages = CONVERSATIONS["one question"]
    first = CallEvent(
        stage="layer 1",
        name=name,
        prompt=recorder.prompt(messages),
        began=0.1,
        ended=0.4,
        text=text,
        finish_reason="stop",
        usage=Usage(prompt_tokens=7, completion_tokens=5),
        money=0.25,
    )
    recorder.add(first)
    recorder.note("layer 1", text)
    failed = first.model_copy(
        update={"sample": 1, "text": None, "failure": f"{name} said: {text}", "usage": Usage(), "attempts": 3}
    )
    recorder.add(failed)
    recorder.add(first.model_copy(update={"stage": "aggregator", "prompt": recorder.prompt((system(text), *messages))}))
    recorder.add(first.model_copy(update={"cached": True, "money": 0.0, "prompt": recorder.prompt(list(messages))}))
    return recorder.finish()


def test_it_holds_what_happened_with_times_from_the_start_and_each_prompt_once() -> None:
    found = trace()
    assert (found.name, found.seconds) == ("answer", 2.0)
    assert [event.kind for event in found.events] == ["call", "note", "call", "call", "call"]
    assert found.events[1].at == 0.5
    assert [call.prompt for call in found.calls] == [0, 0, 1, 0]
    assert found.prompts == (
        (user("Why is the sky blue?"),),
        (system("Because of the air."), user("Why is the sky blue?")),
    )
    assert found.failures == ("answer said: Because of the air.",)


def test_it_comes_back_from_json_as_it_was() -> None:
    found = trace(text=HOSTILE)
    text = found.model_dump_json()
    assert Trace.model_validate_json(text) == found
    assert json.loads(text)["events"][0]["usage"] == {"prompt_tokens": 7, "completion_tokens": 5}
    with pytest.raises(ValidationError):
        Trace.model_validate_json(text.replace('"cached"', '"key"', 1))


class Page(html.parser.HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.pre: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        if tag == "pre":
            self.pre.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.pre:
            self.pre[-1] += data


def test_the_page_says_who_said_what_when_and_for_how_much() -> None:
    text = Page(trace_page(trace())).text
    assert "2.0 s, 4 calls, 1 of them from the cache, 14 tokens read and 10 written, cost 0.75, 1 failed." in text
    assert "0.10 to 0.40 s, 7 + 5 tokens, cost 0.25" in text
    assert "sample 2 0.10 to 0.40 s, cost 0.25, 3 attempts" in text
    assert "At 0.50 s: Because of the air." in text


def test_nothing_that_a_member_says_becomes_part_of_the_page() -> None:
    plain, hostile = (Page(trace_page(trace(name, text))) for name, text in [("a", "b"), (HOSTILE, HOSTILE)])
    assert hostile.tags == plain.tags
    assert hostile.attributes == plain.attributes
    assert "script" not in hostile.tags
    assert hostile.pre[0].startswith(HOSTILE)


def test_an_empty_trace_has_a_page() -> None:
    page = trace_page(Trace(name="a", seconds=0.0, prompts=(), events=()))
    assert "0.0 s, 0 calls" in page
