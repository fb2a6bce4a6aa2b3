"""`moekit agents` as a user meets it, with members behind a server of the tests' own."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from click.testing import CliRunner, Result
from tests.agents.fault_server import Behaviour, Fail, FaultServer, Ok, Truncated

from moekit.agents import AnswerFailed, read_agents
from moekit.cli.agents import agents
from moekit.core.errors import UsageError

ANSWER = "Paris, of course."
KEY = "sk-of-the-tests"
DOCS = Path(__file__).parents[2] / "docs" / "agents.md"


@pytest.fixture(scope="module")
def server() -> Iterator[FaultServer]:
    with FaultServer() as running:
        yield running


@pytest.fixture(autouse=True)
def _well(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.forget()
    server.behave("one", Ok("Lyon?"))
    server.behave("two", Ok("Paris!"))
    server.behave("writer", Ok(ANSWER))
    monkeypatch.setenv("TESTS_KEY", KEY)


@pytest.fixture
def settings(server: FaultServer) -> dict[str, Any]:
    return {
        "endpoints": {"there": {"url": server.url, "key_variable": "TESTS_KEY"}},
        "members": {
            name: {"endpoint": "there", "model": name, "price": {"input": 1.0, "output": 2.0}}
            for name in ("one", "two", "writer")
        },
        "strategies": {
            "all": {"kind": "moa", "layers": [["one", "two"]], "aggregator": "writer", "quorum": 2},
            "answer": {"kind": "moa", "layers": [["one", "two"]], "aggregator": "writer"},
        },
        "deadlines": {"call": 5, "layer": 5, "answer": 5},
        "retries": 0,
        "cache": {"folder": "cache"},
    }


@pytest.fixture
def config(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return written(settings)


def written(settings: dict[str, Any]) -> Path:
    path = Path("agents.yaml")
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return path


def run(*arguments: str | Path, **options: Any) -> Result:
    return CliRunner().invoke(agents, [str(argument) for argument in arguments], **options)


def command(*arguments: str | Path) -> list[str]:
    code = "import sys\nfrom moekit.cli import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    return [sys.executable, "-c", code, "agents", *map(str, arguments)]


def test_ask_answers_on_standard_output_and_tells_the_rest_on_the_other(config: Path, server: FaultServer) -> None:
    """In a process of its own, which needs no torch."""
    server.behave("one", Fail(500))
    asking = command("ask", config, "-", "--system", "Be brief.", "--trace", "t.json")
    done = subprocess.run(
        asking, input="Capital of France?\n", capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ANSWER + "\n"
    failed, figures = done.stderr.splitlines()
    assert failed.startswith("Failed: ")
    assert "one" in failed
    read, wrote = server.usage()
    assert figures.startswith(f"3 calls · {read} tokens read, {wrote} written · cost {(read + 2 * wrote) / 1e6:.4g} · ")
    assert [message["content"] for message in server.of("two")[0].messages] == ["Be brief.", "Capital of France?\n"]
    assert {call["name"] for call in json.loads(Path("t.json").read_text())["events"]} == {"one", "two", "writer"}
    assert all(request.headers["authorization"] == f"Bearer {KEY}" for request in server.requests)


def blocks(language: str) -> list[str]:
    """What docs/agents.md has in this language."""
    return re.findall(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_documented_configuration_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (text,) = blocks("yaml")
    (tmp_path / "agents.yaml").write_text(text, encoding="utf-8")
    config = read_agents(tmp_path / "agents.yaml")
    assert (config.default_name, len(config.strategies), len(config.members)) == ("answer", 4, 3)


def test_json_and_replay(config: Path, server: FaultServer) -> None:
    first = run("ask", config, "Capital of France?", "--json")
    assert first.exit_code == 0, first.output
    shown = json.loads(first.stdout)
    assert shown["answer"] == ANSWER
    assert shown["finish_reason"] == "stop"
    read, wrote = server.usage()
    assert shown["usage"] == {"prompt_tokens": read, "completion_tokens": wrote}
    assert shown["cost"] == pytest.approx((read + 2 * wrote) / 1e6)
    assert shown["unsettled"] == {"prompt_tokens": 0, "completion_tokens": 0}
    assert shown["failures"] == []
    (documented,) = blocks("json")
    assert shown.keys() == json.loads(documented).keys()

    server.forget()
    again = run("ask", config, "Capital of France?", "--replay")
    assert again.stdout == ANSWER + "\n"
    assert again.stderr.startswith("3 calls, 3 from the cache · 0 tokens read, 0 written · ")
    other = run("ask", config, "Capital of Spain?", "--replay")
    assert isinstance(other.exception, AnswerFailed)
    assert server.requests == []


def test_a_strategy_or_member_by_name_and_the_readable_trace(config: Path, server: FaultServer) -> None:
    server.behave("two", Ok("<script>alert(1)</script>"))
    done = run("ask", config, "Capital of France?", "--strategy", "two", "--trace", "t.html")
    assert done.stdout == "<script>alert(1)</script>\n"
    assert [request.model for request in server.requests] == ["two"]
    page = Path("t.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>" not in page
    assert KEY not in page


def test_what_failed_is_told_where_there_is_no_answer(config: Path, server: FaultServer) -> None:
    server.behave("one", Fail(503))
    done = run("ask", config, "Capital of France?", "--strategy", "all", "--trace", "t.json")
    assert isinstance(done.exception, AnswerFailed)
    assert done.exception.exit_status == 1
    assert "503" in str(done.exception)
    assert done.stdout == ""
    assert "Failed: " in done.stderr
    assert "2 calls · " in done.stderr
    assert any(event["failure"] for event in json.loads(Path("t.json").read_text())["events"])


def test_an_answer_that_breaks_off_ends_with_an_error(config: Path, server: FaultServer) -> None:
    server.behave("writer", Truncated())
    done = run("ask", config, "Capital of France?")
    assert isinstance(done.exception, AnswerFailed)
    assert done.stdout in ("one\n", "one two\n", "one two three\n")


@dataclass(frozen=True)
class Ends(Behaviour):
    """An answer that ends for a reason."""

    reason: str

    async def answer(self, request: Any, connection: Any) -> None:
        choice = {"index": 0, "message": {"content": "It ends in the mid"}, "finish_reason": self.reason}
        await connection.whole(200, json.dumps({"choices": [choice]}).encode(), "application/json")


@pytest.mark.parametrize(
    ("reason", "named", "said"),
    [
        ("length", "length", "writer: the answer was cut off, where its context is full or its server has a limit."),
        ("content_filter", "content_filter", "writer: a content filter of its server cut the answer off."),
    ],
)
def test_an_answer_that_was_cut_off_says_so(
    config: Path, server: FaultServer, reason: str, named: str, said: str
) -> None:
    server.behave("writer", Ends(reason))
    done = run("ask", config, "Capital of France?", "--trace", "t.html")
    assert done.stdout == "It ends in the mid\n"
    assert f"Incomplete: {said}\n" in done.stderr
    assert said in Path("t.html").read_text(encoding="utf-8")
    shown = json.loads(run("ask", config, "Capital of France?", "--json").stdout)
    assert (shown["finish_reason"], shown["incomplete"]) == (named, [said])


LATIN = b"caf\xe9?"


@pytest.mark.parametrize(
    ("arguments", "given", "said"),
    [
        ([LATIN], None, "QUESTION is not UTF-8: unexpected end of data at byte 3."),
        (["Q", "--system", LATIN], None, "--system is not UTF-8"),
        (["-"], LATIN, "The question is not UTF-8: invalid continuation byte at byte 3."),
        (["-"], b"", "The question is empty."),
    ],
)
def test_bytes_that_are_no_text_are_told(
    arguments: list[str | bytes], given: bytes | None, said: str, config: Path, server: FaultServer
) -> None:
    done = subprocess.run(
        [*command("ask", config), *arguments], input=given or b"", capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert said.split(":")[0] in done.stderr.decode()
    assert done.stderr.count(b"\n") == 1
    assert server.requests == []


def test_a_question_may_begin_with_a_byte_order_mark(config: Path, server: FaultServer) -> None:
    done = run("ask", config, "-", "--strategy", "one", input=b"\xef\xbb\xbfCapital?")
    assert done.exit_code == 0
    assert server.requests[0].question == "Capital?"


def test_standard_input_that_is_closed_is_told(config: Path) -> None:
    asking = " ".join(map(shlex.quote, command("ask", config, "-")))
    done = subprocess.run(f"{asking} <&-", shell=True, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Unexpected" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "nowhere.yaml", "Q"], "Cannot read nowhere.yaml"),
        (["ask", "agents.yaml", " "], "The question is empty."),
        (["ask", "agents.yaml", "Q", "--strategy", "anser"], "no strategy or member 'anser': did you mean 'answer'?"),
        (["ask", "agents.yaml", "Q", "--trace", "t.txt"], "--trace t.txt: the name must end in .json or .html."),
        (["serve", "nowhere.yaml"], "Cannot read nowhere.yaml"),
        (["serve", "agents.yaml", "--host", "no.such.host.invalid"], "Cannot listen on no.such.host.invalid"),
        (["evaluate", "agents.yaml", "--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["evaluate", "agents.yaml", "--data", "bad.jsonl"], "bad.jsonl"),
        (["evaluate", "agents.yaml", "--data", "bad.jsonl", "--judge", "on"], "'on': did you mean 'one'?"),
        (["evaluate", "agents.yaml", "--data", "x", "--judge", "one", "--match", "exact"], "exclude each other"),
    ],
)
def test_what_cannot_be(config: Path, server: FaultServer, arguments: list[str], said: str) -> None:
    Path("bad.jsonl").write_text('{"question": "Q"\n')
    done = run(*arguments)
    assert isinstance(done.exception, UsageError), done.output
    assert said in str(done.exception)
    assert done.stdout == ""
    assert server.requests == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("default", "anser", "did you mean 'answer'?"),
        ("endpoints", {"there": {"url": "http://127.0.0.1:9/v1", "key_variable": "NO_SUCH_KEY"}}, "NO_SUCH_KEY"),
        ("endpoints", {"there": {"url": "http://127.0.0.1:9/v1"}}, "127.0.0.1:9"),
        (
            "strategies",
            {"a": {"kind": "single", "member": "b"}, "b": {"kind": "single", "member": "a"}},
            "asks itself",
        ),
    ],
)
def test_bad_configuration_is_one_sentence_and_status_2(
    settings: dict[str, Any], config: Path, key: str, value: Any, said: str
) -> None:
    done = run("ask", written(settings | {key: value}), "Capital of France?")
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
    assert KEY not in str(done.exception)


def test_serve(config: Path, server: FaultServer) -> None:
    """In a process of its own, until a scheduler's stop."""
    process = subprocess.Popen(
        command("serve", config, "--port", "0"), stderr=subprocess.PIPE, text=True, env=os.environ | {"TERM": "dumb"}
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        assert line.startswith("Serving all, answer, one, two, writer on http://127.0.0.1:")
        url = line.split(" on ")[1].split(";")[0]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            answer = client.chat.completions.create(model="answer", messages=[{"role": "user", "content": "Well?"}])
        assert answer.choices[0].message.content == ANSWER
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert err.strip() == ""


def test_evaluate(config: Path, server: FaultServer) -> None:
    lines = [{"question": f"Question {number}?", "answer": "paris of course"} for number in range(4)]
    Path("data.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    server.behave("two", Ok("Paris, of course!"))
    shown = json.loads(run("evaluate", config, "--data", "data.jsonl", "--json").stdout)
    assert (shown["strategy"], shown["measure"], shown["match"], shown["unit"]) == (
        "answer",
        "accuracy",
        "exact",
        "money",
    )
    assert shown["accuracy"]["mean"] == 1.0
    assert {member["name"]: member["accuracy"]["mean"] for member in shown["members"]} == {
        "one": 0.0,
        "two": 1.0,
        "writer": 1.0,
    }
    server.forget()
    table = run("evaluate", config, "--data", "data.jsonl")
    assert server.requests == []  # all of it was in the cache
    assert "100.0 %" in table.stdout
    assert "answer (strategy)" in table.stdout
    server.behave("one", Ok("[[B]]"))
    judged = run("evaluate", config, "--data", "data.jsonl", "--judge", "one", "--json")
    assert json.loads(judged.stdout)["measure"] == "win rate"


@pytest.mark.alone
def test_help_answers_fast() -> None:
    durations = []
    for verb in ("ask", "serve", "evaluate"):
        begin = time.perf_counter()
        shown = subprocess.run(command(verb, "--help"), capture_output=True, text=True, check=True)
        durations.append(time.perf_counter() - begin)
        assert "Examples:" in shown.stdout
    assert min(durations) < 0.5
