"""`generate` and `chat` as a user runs them, some in a process of its own."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.inference.tiny_models import byte_level, llama, save_tokenizer

from moekit.cli.chat import chat
from moekit.cli.generate import generate
from moekit.core.errors import MoekitError, UsageError
from moekit.inference import GenerationOptions, complete, load_runner
from moekit.kernels.native import available

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPT = "The quick brown 敏捷"
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
KEYS = {
    "text",
    "prompt_tokens",
    "completion_tokens",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "time_to_first_token_s",
    "finish_reason",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("model")
    llama(made)
    save_tokenizer(byte_level(), made)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> str:
    loaded = load_runner(folder)
    (completion,) = complete(loaded.runner, loaded.tokenizer, [PROMPT], GenerationOptions(max_tokens=12))
    return completion.text


def command(verb: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", "from moekit.cli import main; main()", verb, *arguments]


def run(verb: Any, *arguments: str, **options: Any) -> Result:
    """In this process, where the command line's last resort does not stand behind it."""
    return CliRunner().invoke(verb, [str(argument) for argument in arguments], **options)


def test_text_comes_on_standard_output_and_figures_on_the_other(folder: Path, expected: str) -> None:
    done = subprocess.run(
        command("generate", str(folder), "--prompt-file", "-", "--max-tokens", "12"),
        input=(PROMPT + "\n").encode(),
        capture_output=True,
        env=ONE_THREAD,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode() == expected + "\n"
    assert "tokens of prompt at" in done.stderr.decode()
    assert "12 tokens at" in done.stderr.decode()


def test_json(folder: Path, expected: str) -> None:
    done = run(generate, str(folder), "--prompt", PROMPT, "--max-tokens", "12", "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert shown.keys() == KEYS
    assert shown["text"] == expected
    assert (shown["completion_tokens"], shown["finish_reason"]) == (12, "length")
    # Counted from the start of the process, and these tests have been running for a while.
    assert shown["time_to_first_token_s"] > 1
    several = run(generate, str(folder), "--prompt", PROMPT, "--prompt", "dogs", "--max-tokens", "12", "--json")
    completions = json.loads(several.stdout)["completions"]
    assert [one.keys() for one in completions] == [KEYS, KEYS]
    assert completions[0]["text"] == expected


def test_options_reach_the_draw(folder: Path, expected: str) -> None:
    def text(*options: str) -> str:
        done = run(generate, str(folder), "--prompt", PROMPT, "--max-tokens", "12", *options)
        assert done.exit_code == 0, done.output
        return done.stdout.removesuffix("\n")

    assert text() == text("--temperature", "0") == text("--temperature", "2", "--top-k", "1") == expected
    assert text("--temperature", "2", "--top-p", "1e-6") == text("--temperature", "2", "--min-p", "1") == expected
    assert text("--temperature", "3", "--seed", "1") == text("--temperature", "3", "--seed", "1") != expected
    assert text("--stop", expected[4:6]) == expected[: expected.index(expected[4:6])]
    assert text("--logit-bias", "300=1000") != expected
    assert text("--repetition-penalty", "1.5") != expected
    assert text("--context", "12") == expected[: len(text("--context", "12"))] != expected
    both = text("--prompt", "dogs")
    assert both.startswith(f"==> 1 <==\n{expected}\n==> 2 <==\n")


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([], 2, "Give TEXT, --prompt or --prompt-file"),
        (["--prompt", "a", "--prompt-file", "b"], 2, "Give TEXT, --prompt or --prompt-file"),
        (["--prompt", ""], 2, "The prompt is empty"),
        (["--prompt", "long " * 100], 2, "and the context of 96 leaves no room"),
        (["--prompt-file", "nowhere.txt"], 2, "Cannot read nowhere.txt: No such file"),
        (["--prompt", "a", "--top-p", "2"], 2, "top_p must be more than 0"),
        (["--prompt", "a", "--logit-bias", "x"], 2, "--logit-bias 'x' is not like 42=-1.5"),
        (["--prompt", "a", "--logit-bias", "999=1"], 2, "names token 999"),
        (["--prompt", "a", "--stop", ""], 2, "stop string is empty"),
        (["--prompt", "a", "--context", "97"], 2, "--context 97 is more"),
    ],
)
def test_what_cannot_be(folder: Path, arguments: list[str], status: int, said: str) -> None:
    done = run(generate, str(folder), *arguments)
    assert isinstance(done.exception, MoekitError)
    assert done.exception.exit_status == status
    assert said in str(done.exception)
    assert done.stdout == ""


@pytest.mark.skipif(not available(), reason="the native module is not built")
def test_quantised_while_it_is_loaded(folder: Path, tmp_path: Path) -> None:
    loaded = load_runner(folder, quantize="q8_0")
    (completion,) = complete(loaded.runner, loaded.tokenizer, [PROMPT], GenerationOptions(max_tokens=12))
    given = ("--prompt", PROMPT, "--max-tokens", "12", "--quantize", "q8_0")
    done = run(generate, folder, *given)
    assert done.stdout == completion.text + "\n"
    answered = run(chat, folder, "--max-tokens", "5", "--quantize", "q8_0", "--json", input="One\n")
    assert json.loads(answered.stdout).keys() == KEYS
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    refused = run(generate, tmp_path / "model.gguf", *given)
    assert isinstance(refused.exception, UsageError)
    assert "is a GGUF file, whose weights run in the types they have" in str(refused.exception)


def test_no_such_model_and_no_such_text(folder: Path, tmp_path: Path) -> None:
    assert "There is no folder 'nowhere'" in str(run(generate, "nowhere", "--prompt", "a").exception)
    (tmp_path / "prompt").write_bytes(b"a\xff")
    done = run(generate, str(folder), "--prompt-file", str(tmp_path / "prompt"))
    assert "is not UTF-8: invalid start byte at byte 1" in str(done.exception)


def test_chat_answers_line_by_line(folder: Path, tmp_path: Path) -> None:
    lines = "One\n\nTwo\n/reset\nOne\n" + "long " * 100 + "\n/quit\nnever read\n"
    done = run(chat, str(folder), "--max-tokens", "5", "--temperature", "0", "--json", input=lines)
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer.keys() for answer in answers] == [KEYS] * 3
    assert answers[0]["text"] == answers[2]["text"]
    assert answers[0]["prompt_tokens"] == answers[2]["prompt_tokens"] < answers[1]["prompt_tokens"]
    assert "Forgotten." in done.stderr
    assert "leaves no room for an answer. /reset forgets" in done.stderr
    shown = run(chat, str(folder), "--max-tokens", "5", "--temperature", "0", "--system", "Be brief", input="One\n")
    assert shown.stdout.strip()
    assert "tokens of prompt" in shown.stderr


def test_chat_needs_a_template(tmp_path: Path) -> None:
    llama(tmp_path)
    save_tokenizer(byte_level(), tmp_path, template=None)
    done = run(chat, str(tmp_path), input="One\n")
    assert "The model has no chat template; `moekit generate` continues texts with it." in str(done.exception)


def test_ctrl_c_stops_the_answer_and_not_the_program(folder: Path) -> None:
    """In a terminal of its own."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        command("chat", str(folder), "--temperature", "1", "--context", "96"),
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD | {"TERM": "dumb"},
    )
    os.close(terminal)
    assert process.stdout is not None
    os.write(controller, b"One\n")
    first = process.stdout.read(1)
    while first != ">":  # the prompt
        first = process.stdout.read(1)
    process.stdout.read(2)  # a space, and the answer's first character
    process.send_signal(signal.SIGINT)
    os.write(controller, b"/quit\n")
    _, err = process.communicate(timeout=120)
    os.close(controller)
    assert process.returncode == 0, err
    assert "Stopped." in err or "tokens of prompt" in err
    assert "Traceback" not in err


def test_a_model_and_a_text_as_other_programs_take_them(folder: Path, expected: str) -> None:
    model = str(folder)
    for words in (
        (model, PROMPT, "--max-tokens", "12"),
        ("-m", model, "-p", PROMPT, "-n", "12"),
        ("--model", model, PROMPT, "-n", "12"),
        (model, "-p", PROMPT, "-n", "12"),
    ):
        assert run(generate, *words).stdout == expected + "\n"
    both = run(generate, model, PROMPT, "-p", "dogs", "-n", "12")
    assert both.stdout.startswith(f"==> 1 <==\n{expected}\n==> 2 <==\n")
    unlimited = run(generate, model, PROMPT, "-n", "-1", "--context", "40")
    assert unlimited.stdout.startswith(expected)
    assert run(chat, "-m", model, "-n", "5", input="One\n").stdout.strip()
    assert "There is no place for 'Hello'" in run(chat, "-m", model, "Hello").output
    assert "MODEL is missing: a folder" in run(generate, "-p", "a").output
