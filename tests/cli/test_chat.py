"""`moekit chat` beyond its answers: what can be typed, what its options do, and where an answer ends."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.inference.tiny_models import END, byte_level, llama, save_tokenizer

from moekit import quantize
from moekit.cli.chat import chat
from moekit.cli.generate import generate
from moekit.core.errors import UsageError

pytestmark = pytest.mark.usefixtures("one_thread")

SHORT = ("--max-tokens", "3", "--temperature", "0", "--json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("chat")
    llama(made)
    save_tokenizer(byte_level(), made, template="{{ messages[-1].content }}{{ '!' * (excited | default(0)) }}")
    return made


def run(verb: Any, *arguments: object, **options: Any) -> Result:
    """In this process, where the command line's last resort does not stand behind it."""
    return CliRunner().invoke(verb, [str(argument) for argument in arguments], **options)


def prompts(done: Result) -> list[int]:
    """The tokens of each prompt that was answered; here the last message's, without a start."""
    assert done.exit_code == 0, done.output
    return [json.loads(line)["prompt_tokens"] for line in done.stdout.splitlines()]


def tokens(text: str) -> int:
    return len(byte_level().encode(text, add_special_tokens=False).ids)


def test_a_message_of_several_lines_stands_between_quotes(folder: Path) -> None:
    lines = 'one\n"""two\n\nthree"""\n"""\nfour\nfive\n"""\n"""six"""\n"""seven\n/quit\n'
    messages = ["one", "two\n\nthree", "four\nfive", "six", "seven\n/quit"]
    assert prompts(run(chat, folder, *SHORT, input=lines)) == list(map(tokens, messages))


def test_what_is_no_text_costs_its_message_alone(folder: Path) -> None:
    """In a line, in one of several, in UTF-16; a byte-order mark is no text."""
    lines = (
        b"\xef\xbb\xbfone\r\nca\xe9 fe\n\xc3\n" + b'"""a\n\xff\nb"""\n' + b"\xff\xfeo\0n\0e\0\n" + "zwölf\n".encode()
    )
    done = run(chat, folder, *SHORT, input=lines)
    assert prompts(done) == [tokens("one"), tokens("zwölf")]
    assert done.stderr.count("The message is left out; it is not UTF-8: ") == 4
    assert "invalid continuation byte at byte 2." in done.stderr


def test_help_says_what_can_be_typed(folder: Path) -> None:
    done = run(chat, folder, *SHORT, input="/help\n/reset\n /quit \nnever read\n")
    assert done.stdout == ""
    for word in ("/help", "/reset", "/quit", '"""', "Ctrl-C"):
        assert word in done.stderr
    assert prompts(run(chat, folder, *SHORT, input="/etc\n")) == [tokens("/etc")], "piped text is text"


@pytest.mark.parametrize(
    ("given", "added"),
    [("excited=5", 5), ("excited=true", 1), ("excited=False", 0), ("excited=None", None)],
)
def test_variables_of_the_template(folder: Path, given: str, added: int | None) -> None:
    done = run(chat, folder, *SHORT, "--template-variable", given, input="one\n")
    if added is None:
        assert "The chat template fails on this conversation: " in done.stderr
    else:
        assert prompts(done) == [tokens("one" + "!" * added)]


@pytest.mark.parametrize(
    ("given", "said"),
    [("excited", "is not like enable_thinking=false"), ("=5", "is not like"), ("exited=1", "no variable 'exited'")],
)
def test_variables_that_are_none(folder: Path, given: str, said: str) -> None:
    done = run(chat, folder, "--template-variable", given, input="one\n")
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)


def test_a_template_from_a_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ bos_token }}{{ messages[-1].content }} {{ eos_token }}")
    done = run(chat, folder, *SHORT, "--chat-template", tmp_path / "mine.jinja", input="one\n")
    assert prompts(done) == [tokens(f"<s>one {END}")]
    missing = run(chat, folder, "--chat-template", tmp_path / "no.jinja", input="one\n")
    assert "no.jinja: No such file" in str(missing.exception)
    bare = tmp_path / "bare"
    llama(bare)
    save_tokenizer(byte_level(), bare, template=None)
    assert prompts(run(chat, bare, *SHORT, "--chat-template", tmp_path / "mine.jinja", input="one\n"))


def test_a_template_that_refuses_says_so_and_the_conversation_goes_on(folder: Path, tmp_path: Path) -> None:
    source = "{% if 'no' in messages[-1].content %}{{ raise_exception('No!') }}{% endif %}{{ messages[-1].content }}"
    (tmp_path / "mine.jinja").write_text(source)
    done = run(chat, folder, *SHORT, "--chat-template", tmp_path / "mine.jinja", input="one\nno\ntwo\n")
    assert prompts(done) == [tokens("one"), tokens("two")]
    assert "The chat template refuses the conversation: No!. /reset" in done.stderr


def test_the_models_files_say_how_it_is_sampled_where_nobody_else_does(tmp_path: Path) -> None:
    llama(tmp_path)
    save_tokenizer(byte_level(), tmp_path)

    def answer(*options: str) -> str:
        done = run(chat, tmp_path, "--max-tokens", "12", "--seed", "1", "--json", *options, input="One\n")
        assert done.exit_code == 0, done.output
        return str(json.loads(done.stdout)["text"])

    greedy, plain, wild = answer("--temperature", "0"), answer(), answer("--temperature", "5", "--top-k", "50")
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "temperature": 5.0, "top_k": 50}))
    assert answer() == wild != plain
    assert answer("--top-k", "1") == answer("--temperature", "0") == greedy
    file.write_text(json.dumps({"do_sample": True, "top_p": 7, "typical_p": 0.5}))
    told = run(chat, tmp_path, "--max-tokens", "1", input="One\n").stderr
    assert "generation_config.json: top_p must be more than 0 and at most 1, not 7. It is left out." in told
    assert "generation_config.json asks for typical_p, which moekit does not have and leaves out." in told


@pytest.mark.parametrize("verb", ["generate", "chat"])
@pytest.mark.parametrize("as_json", [False, True])
def test_what_cuts_an_answer_off_is_told(folder: Path, verb: str, as_json: bool) -> None:
    def said(*options: str) -> str:
        given = ["--prompt", "hello"] if verb == "generate" else ["--temperature", "0"]
        flags = ["--json"] if as_json else []
        done = run(generate if verb == "generate" else chat, folder, *given, *options, *flags, input="hello\n")
        assert done.exit_code == 0, done.output
        if as_json:
            assert json.loads(done.stdout)["finish_reason"] == ("stop" if "--stop" in options else "length")
        return done.stderr

    assert "The answer is cut off after 4 tokens, as --max-tokens says." in said("--max-tokens", "4")
    for unlimited in ([], ["--max-tokens", "-1"]):
        assert "The answer is cut off: the context of 20 tokens is full." in said("--context", "20", *unlimited)
    assert "cut off" not in said("--context", "90", "--stop", first_character(folder))


def first_character(folder: Path) -> str:
    """What the answer to hello begins with, the same in both verbs, since the template adds nothing."""
    return run(generate, folder, "--prompt", "hello", "--max-tokens", "4").stdout[0]


def test_several_cut_answers_are_told_apart(folder: Path) -> None:
    done = run(generate, folder, "--prompt", "a", "--prompt", "b", "--max-tokens", "2")
    assert "1: The answer is cut off after 2 tokens" in done.stderr
    assert "2: The answer is cut off after 2 tokens" in done.stderr


@pytest.mark.parametrize("given", ["0", "-2", "x"])
def test_numbers_of_tokens_that_are_none(folder: Path, given: str) -> None:
    done = run(generate, folder, "--prompt", "a", "--max-tokens", given)
    assert done.exit_code == 2
    assert given in done.stderr


def test_in_a_terminal(folder: Path, tmp_path: Path) -> None:
    """Bytes that are no text, an unknown command, several lines, Ctrl-C while writing, and Ctrl-D."""
    quantize(folder, tmp_path / "model.gguf", type="f32")
    controller, terminal = pty.openpty()
    arguments = ["chat", str(tmp_path / "model.gguf"), *SHORT]
    process = subprocess.Popen(
        [sys.executable, "-c", "from moekit.cli import main; main()", *arguments],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "TERM": "dumb"},
        start_new_session=True,
    )
    os.close(terminal)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"> "
    os.write(controller, b'ca\xe9 fe\n/rest\n"""one\ntwo"""\n')
    shown = b""
    while shown.count(b"\n") < 1:
        shown += process.stdout.read(1)
    os.write(controller, b"\x04")
    out, err = process.communicate(timeout=120)
    os.close(controller)
    assert process.returncode == 0, err
    assert b"The message is left out; it is not UTF-8" in err
    assert b"There is no /rest: did you mean '/reset'?" in err
    answers = [json.loads(line[line.index(b"{") :]) for line in (shown + out).splitlines() if b"{" in line]
    assert [answer["prompt_tokens"] for answer in answers] == [tokens("one\ntwo")]
