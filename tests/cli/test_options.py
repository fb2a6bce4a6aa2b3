"""Every verb and option: help that is whole, and mistakes that are told in a sentence of at most two lines."""

import re
from collections.abc import Iterator

import click
import pytest
from tests.cli.in_process import run_moekit

from moekit.cli import moekit as command_line
from moekit.cli.option_types import BlockTypeName
from moekit.cli.other_tools import ARGUMENTS, OPTIONS, REMARKS, VERBS
from moekit.cli.standard_streams import TextArgument

JARGON = re.compile(
    r"valid (tuple|float|int|boolean|string|number|range)|\brange|x[<>]=|Input should|Invalid value|INTEGER|FLOAT|"
    r"TypeError|[Uu]nexpected|click|pydantic|Traceback"
)
WRONG = ("some words", "-7", "1.5", "nan", "1e999", "9" * 30, "")


def verbs(group: click.Group = command_line, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Yield every verb that does something, with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from verbs(command, *path, name)
        else:
            yield (*path, name), command


ALL = dict(verbs())


def needed(command: click.Command) -> list[str]:
    """Give values to the arguments and options without which the verb does nothing."""
    words = []
    for parameter in command.params:
        if parameter.required:
            words += ["there"] if isinstance(parameter, click.Argument) else [parameter.opts[-1], "there"]
    return words


def options_with_values(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and not option.is_flag]


def check_told(stderr: str) -> None:
    assert not JARGON.search(stderr), stderr
    assert stderr.startswith("Error: ")
    assert len(stderr.splitlines()) <= 2, stderr


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_a_value_that_cannot_be_is_told_with_the_option(path: tuple[str, ...]) -> None:
    command = ALL[path]
    for option in options_with_values(command):
        if isinstance(option.type, click.types.StringParamType | click.Path | TextArgument):
            continue  # the verb looks at these
        refused = 0
        for value in WRONG:
            try:
                command.make_context("verb", [*needed(command), option.opts[-1], value])
            except click.BadParameter:
                ended = run_moekit(*path, *needed(command), option.opts[-1], value)
                assert ended.status == 2
                assert f"{max(option.opts, key=len)}: " in ended.stderr
                check_told(ended.stderr)
                refused += 1
        assert refused >= 3, option.name


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_what_is_missing_or_too_much_is_told(path: tuple[str, ...]) -> None:
    command = ALL[path]
    cases = {
        (*needed(command), "--nonsense"): "There is no option --nonsense: ",
        (*needed(command), "--jsn"): "There is no option --jsn: did you mean '--json'?",
        (*needed(command), "--json=yes"): "--json takes no value.",
        (*needed(command), "one", "two", "three"): "There is no place for ",
    }
    for option in options_with_values(command):
        cases[*needed(command), option.opts[-1]] = f"{option.opts[-1]} needs a value."
    for words, said in cases.items():
        if not (said.startswith("There is no option --jsn") and path == ("agents", "serve")):
            ended = run_moekit(*path, *words)
            assert ended.status == 2
            assert said in ended.stderr or path == ("agents", "serve"), ended.stderr
            check_told(ended.stderr)
    required = [parameter for parameter in command.params if parameter.required]
    if required:
        ended = run_moekit(*path)
        assert " is missing." in ended.stderr
        check_told(ended.stderr)


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_has_no_jargon(path: tuple[str, ...]) -> None:
    shown = run_moekit(*path, "--help")
    assert shown.status == 0
    assert "Examples:" in shown.stdout
    assert not JARGON.search(shown.stdout), shown.stdout


@pytest.mark.parametrize("group", [(), ("agents",)])
def test_verbs_are_listed_whole_at_any_width(group: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    listed: click.Command = command_line
    for name in group:
        assert isinstance(listed, click.Group)
        listed = listed.commands[name]
    assert isinstance(listed, click.Group)
    for width in range(40, 201):
        monkeypatch.setenv("COLUMNS", str(width))
        shown = run_moekit(*group, "--help").stdout
        words = " ".join(shown.split("Verbs:")[1].split())
        assert "…" not in shown
        assert "..." not in shown.replace("[ARGS]...", "")
        assert max(map(len, shown.split("Verbs:")[1].split("Examples:")[0].splitlines())) <= width
        for command in listed.commands.values():
            sentence = command.get_short_help_str(10_000)
            # A line may end within a word that has a hyphen.
            assert sentence.replace(" ", "") in words.replace(" ", "")


def commands_in(text: str) -> list[str]:
    return re.findall(r"`moekit ([^`]*)`", text)


@pytest.mark.parametrize("name", VERBS)
def test_other_programs_verbs_lead_to_ours(name: str) -> None:
    assert name not in command_line.commands
    ended = run_moekit(name.upper(), "there")
    assert ended.status == 2
    assert VERBS[name] in ended.stderr
    check_told(ended.stderr)
    for words in map(str.split, commands_in(VERBS[name])):
        command: click.Command = command_line
        while words and isinstance(command, click.Group) and words[0] in command.commands:
            command, words = command.commands[words[0]], words[1:]
        known = [option for parameter in command.params for option in parameter.opts] + ["--help"]
        assert command is not command_line or words[0] in (*known, "VERB")
        assert all(word in known for word in words if word.startswith("-"))


def test_other_programs_options_lead_to_ours() -> None:
    ours = {option for command in ALL.values() for parameter in command.params for option in parameter.opts}
    arguments = {parameter.name for command in ALL.values() for parameter in command.params}
    for name, targets in OPTIONS.items():
        assert set(targets) <= ours
        for path, command in ALL.items():
            there = {option for parameter in command.params for option in parameter.opts}
            if name not in there and (found := next((one for one in targets if one in there), None)):
                ended = run_moekit(*path, *needed(command), name, "1")
                assert f"Error: There is no option {name}; moekit calls it {found}." in ended.stderr
                check_told(ended.stderr)
    assert {argument for named in ARGUMENTS.values() for argument in named} <= arguments
    for name in REMARKS:
        ended = run_moekit("plan", "there", name)
        assert f"Error: {name} {REMARKS[name]}." in ended.stderr or name == "-h"
    told = run_moekit("quantize", "--model", "there").stderr
    assert "There is no option --model; MODEL is given without one." in told
    assert "moekit calls it --top-k" in run_moekit("split", "there", "--out", "there", "--top_k", "2").stderr


@pytest.mark.parametrize(
    ("text", "name"),
    [("Q4_K", "q4_k"), ("q8-0", "q8_0"), ("BF16", "bf16"), ("fp16", "f16"), ("float32", "f32"), ("int8", "q8_0")],
)
def test_types_are_read_as_they_are_spelt(text: str, name: str) -> None:
    assert BlockTypeName().convert(text, None, None) == name


def test_a_type_that_is_not_there_is_told_with_the_nearest() -> None:
    with pytest.raises(click.BadParameter, match=r"there is no 'q4_9'; did you mean 'q4_[0k]'\?"):
        BlockTypeName().convert("Q4_9", None, None)
