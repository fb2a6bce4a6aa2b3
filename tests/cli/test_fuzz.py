"""Whatever is typed, whatever stands in the environment and comes on standard input: no failure is a surprise.

MOEKIT_FUZZ=10000 tries as many command lines; without it, a part of them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.cli.in_process import run_moekit
from tests.cli.test_options import ALL
from tests.docs.furnished_folder import furnish

from moekit.cli import agents as agents_verbs
from moekit.cli import compare as compare_verb
from moekit.cli.option_types import Number, OneOf, WholeNumber
from moekit.cli.other_tools import OPTIONS, REMARKS, VERBS
from moekit.core.errors import MoekitError

TRIES = int(os.environ.get("MOEKIT_FUZZ", "150"))
NAMES = (
    *("my-model", "llama", "mine.yaml", "experts.yaml", "agents.yaml", "notes.txt", "essays", "results.json"),
    *("my-model/config.json", "empty", "bytes", "broken.yaml", "list.yaml", "loop", "magic.gguf", "folder", "dense"),
)
TEXTS = (
    *("", " ", "-", "--", ".", "..", "a", "nowhere", "nowhere.gguf", "nowhere.yaml", "some/one", "a/b/c", "~", "*"),
    *("敏捷 🦊", "e\u0301", "\udcff\udcfe", "a\nb", "[bold]x[/]", "%s {0}", "x" * 5000, "true", "null", "{}", "[1"),
    *(
        "0",
        "1",
        "2",
        "-1",
        "3",
        "0.5",
        "-0.5",
        "1e400",
        "nan",
        "inf",
        "9" * 30,
        "0x10",
        "1_000",
        "٣",
        "8m",
        "500k",
        "5=1",
    ),
    *("every", "alternate", "0,2-1", "q8_0", "Q4_K_M", "F16", "copy", "noise", "drop", "random", "clustered", "number"),
)
INPUTS = (
    b"",
    b"One\n",
    b"\xff\xfe\n",
    "敏捷\n".encode(),
    "héllo\n".encode("latin-1"),
    b"/help\n/reset\n",
    b"\x00\n",
    b"a" * 9000,
)
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "COLUMNS": ("1", "40", "10000", "wide", "-5"),
    "OMP_NUM_THREADS": ("1", "0", "-1", "2,1", "many", ""),
    "MOEKIT_INSTRUCTION_SET": ("portable", "best", "", "敏"),
    "HF_HUB_OFFLINE": ("1", "yes"),
    "HF_ENDPOINT": ("http://127.0.0.1:9", "nonsense"),
    "LC_ALL": ("C", "en_US.ISO-8859-1", "xx_XX"),
    "TERM": ("dumb", "xterm-256color", ""),
    "NO_COLOR": ("1",),
    "TMPDIR": ("nowhere",),
    "http_proxy": ("http://127.0.0.1:9", "not a proxy", "socks5://x"),
    "SSL_CERT_FILE": ("nowhere.pem", "bytes"),
}
CONFIGURATIONS = {"train": "mine.yaml", "merge": "experts.yaml", "agents": "agents.yaml"}
MEANT = {
    "model": (*["my-model", "llama"] * 3, "dense", "magic.gguf"),
    "dense": (*["my-model", "llama"] * 3, "dense"),
    "named": ("my-model", "llama"),
    "text": ("Once", "敏捷 🦊", "Hello"),
    "prompts": ("Once", "敏捷 🦊"),
    "prompt_file": ("notes.txt", "-", "empty", "bytes"),
    "config": ("broken.yaml", "list.yaml", "mine.yaml"),
    "question": ("Why?", "-"),
    "data": ("notes.txt", "essays", "empty", "bytes", "questions.jsonl"),
    "train_data": ("notes.txt", "empty"),
    "held_out": ("notes.txt",),
    "out": ("new", "new/deeper", "new.gguf", "other", "other.gguf", "notes.txt", "folder"),
    "trace_file": ("trace.html", "trace.json", "trace.txt"),
    "layers": ("every", "alternate", "0", "0-1"),
    "logit_bias": ("5=1", "65=-1.5"),
    "variables": ("enable_thinking=false", "a=[1"),
    "template_file": ("my-model/chat_template.jinja", "notes.txt"),
    "strategy": ("here", "nobody"),
    "size": ("xs", "l"),
    "budget": ("8m", "1s"),
    "tokens": ("500k", "1"),
    "contestants": ("dense,moe", "mine.yaml"),
}
# What belongs to a verb that would else work for minutes.
SHORT = {"evaluate": ("--data", "notes.txt"), "merge": ("--train-steps", "2")}


@dataclass(frozen=True)
class Call:
    words: tuple[str, ...]
    stdin: bytes = b""
    environment: tuple[tuple[str, str], ...] = ()
    encoding: str = "utf-8"


def values_of(parameter: click.Parameter, path: tuple[str, ...]) -> st.SearchStrategy[str]:
    """Draw what an argument or option is meant to get, and now and then something else."""
    letters = st.characters(exclude_characters="\0", exclude_categories=("Cs",))
    anything = st.sampled_from([*NAMES, *TEXTS]) | st.text(letters, max_size=8)
    match parameter.type:
        case OneOf():
            meant = st.sampled_from(list(parameter.type.choices))
        case WholeNumber() | Number():
            meant = st.sampled_from(["1", "2", "3", "8"])
        case _:
            meant = st.sampled_from(MEANT.get(str(parameter.name), NAMES))
    if parameter.name == "config":
        meant |= st.just(CONFIGURATIONS[path[0]])
    if parameter.name == "out":
        meant |= st.integers(0, 10**6).map("new-{}".format) | st.integers(0, 10**6).map("new-{}.gguf".format)
    return st.one_of(*[meant] * 7, anything)


def option_words(path: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """Draw an option of the verb with a value, or without; now and then one of another program."""
    options = [option for option in ALL[path].params if isinstance(option, click.Option)]

    def words(option: click.Option) -> st.SearchStrategy[tuple[str, ...]]:
        names = st.sampled_from([*option.opts, *option.secondary_opts])
        if option.is_flag:
            return st.tuples(names)
        pair = st.tuples(names, values_of(option, path))
        return st.one_of(pair, pair, pair, pair.map(lambda two: (f"{two[0]}={two[1]}",)))

    ours = st.sampled_from(options).flatmap(words)
    foreign = st.tuples(st.sampled_from([*OPTIONS, *REMARKS, *options[0].opts]))
    return st.one_of(*[ours] * 9, foreign)


@st.composite
def calls(draw: st.DrawFn) -> Call:
    """Draw a command line, most often one that a person could mean."""
    path = draw(st.sampled_from(list(ALL)))
    words: list[str] = list(path) if draw(st.integers(0, 29)) else [draw(st.sampled_from([*VERBS, *TEXTS]))]
    for parameter in ALL[path].params:
        if isinstance(parameter, click.Argument):
            words += [draw(values_of(parameter, path))] if draw(st.integers(0, 19)) else []
        elif parameter.required and draw(st.integers(0, 19)):
            words += [parameter.opts[-1], draw(values_of(parameter, path))]
    for more in draw(st.lists(option_words(path), max_size=3)):
        words += more
    words += [draw(st.sampled_from(TEXTS))] if not draw(st.integers(0, 29)) else []
    words += SHORT.get(path[-1], ()) if len(path) == 1 else ()
    environment = draw(st.lists(st.sampled_from(list(ENVIRONMENT)), max_size=2, unique=True))
    return Call(
        words=tuple(words),
        stdin=draw(st.sampled_from(INPUTS)),
        environment=tuple((name, draw(st.sampled_from(ENVIRONMENT[name]))) for name in environment),
        encoding=draw(st.sampled_from(["utf-8", "utf-8", "ascii", "latin-1", "cp1252"])),
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, texts and files, and with what is none of them."""
    folder = tmp_path_factory.mktemp("place")
    furnish(folder)
    (folder / "empty").touch()
    (folder / "bytes").write_bytes(bytes(range(256)) * 8)
    (folder / "broken.yaml").write_text("model: {kind: [\n", encoding="utf-8")
    (folder / "list.yaml").write_text("- 1\n- {a: b}\n", encoding="utf-8")
    (folder / "loop").symlink_to("loop")
    (folder / "magic.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 40)
    (folder / "questions.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n', encoding="utf-8")
    (folder / "folder").mkdir()
    (folder / "dense").mkdir()
    (folder / "dense" / "config.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def _quick(place: Path) -> Iterator[None]:
    """Work in that folder, without what takes minutes or has no end: comparisons, servers, measurements."""

    async def serve(*_: Any) -> None:
        pass

    def stop(*_: Any, **__: Any) -> None:
        raise MoekitError("Stopped here.")

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HOME", str(place))
        patch.setattr(sys.modules[compare_verb.callback.__module__], "_work", stop)
        patch.setattr("moekit.cli.ladder_command._work", stop)
        patch.setattr(sys.modules[agents_verbs.commands["serve"].callback.__module__], "_serve", serve)
        patch.setattr("moekit.doctor.diagnose", stop)
        yield


def check(status: int, stderr: str, call: Call) -> None:
    assert "Unexpected error" not in stderr, (call, stderr)
    assert "Traceback" not in stderr or "--debug" in " ".join(call.words), (call, stderr)
    assert status in (0, 1, 2, 130), (call, status)
    assert status == 0 or stderr or "--json" in call.words, call


@pytest.mark.slow
@pytest.mark.usefixtures("_quick", "one_thread")
def test_nothing_that_is_typed_is_a_surprise() -> None:
    @settings(
        max_examples=TRIES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(calls())
    def try_it(call: Call) -> None:
        words = [word for word in call.words if word != "--debug"]
        ended = run_moekit(*words, stdin=call.stdin, environment=dict(call.environment), encoding=call.encoding)
        check(ended.status, ended.stderr, replace(call, words=tuple(words)))

    try_it()


REAL = (
    Call(("generate", "my-model", "\udcff", "-n", "2"), environment=(("LC_ALL", "C"),)),
    Call(
        ("generate", "my-model", "--prompt-file", "-", "-n", "2"), stdin=b"\xff\xfe", environment=(("PYTHONUTF8", "0"),)
    ),
    Call(("chat", "my-model", "-n", "2"), stdin=b"h\xe9\n/quit\n", environment=(("PYTHONIOENCODING", "latin-1"),)),
    Call(("evaluate", "敏捷"), environment=(("PYTHONIOENCODING", "ascii"),)),
    Call(("plan", "--list"), environment=(("COLUMNS", "1"), ("TERM", ""))),
    Call(("quantize", "loop", "--out", "loop")),
    Call(("train", "/proc/self/mem")),
    Call(("agents", "ask", "agents.yaml", "-"), stdin=b"\0"),
)


@pytest.mark.slow
@pytest.mark.parametrize("call", REAL, ids=lambda call: call.words[0])
def test_nothing_in_a_process_of_its_own_is_a_surprise(place: Path, call: Call) -> None:
    command = [sys.executable, "-c", "from moekit.cli import main; main()", *call.words]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | dict(call.environment)
    ended = subprocess.run(
        [os.fsencode(word) for word in command],
        input=call.stdin,
        capture_output=True,
        cwd=place,
        env=environment,
        timeout=120,
        check=False,
    )
    check(ended.returncode, ended.stderr.decode("utf-8", "replace"), call)
