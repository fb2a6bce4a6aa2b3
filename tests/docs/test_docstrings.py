"""Every public function says what it takes, gives and raises, and its example runs and gives what it shows."""

import contextlib
import doctest
import inspect
import io
import re
from pathlib import Path
from typing import Any

import pytest
from tests.docs.furnished_folder import furnish, thin_out_the_corpus

import moekit

CHECKER = doctest.OutputChecker()


def examples_of(docstring: str) -> list[doctest.Example]:
    """Read the examples of a docstring."""
    return doctest.DocTestParser().get_examples(docstring)


def run_examples(docstring: str) -> None:
    """Run the examples in one namespace, and compare the output where one is shown."""
    names: dict[str, Any] = {}
    for example in examples_of(docstring):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example.source, "<example>", "single"), names)
        if example.want:
            got = printed.getvalue()
            assert CHECKER.check_output(example.want, got, doctest.ELLIPSIS), f"{example.source}{got}{example.want}"


@pytest.mark.parametrize("name", moekit.__all__)
def test_a_function_says_what_it_takes_gives_and_raises(name: str) -> None:
    function = getattr(moekit, name)
    docstring = inspect.getdoc(function) or ""
    sections = re.split(r"^(Args|Returns|Raises|Examples):$", docstring, flags=re.MULTILINE)
    assert sections[1::2] == ["Args", "Returns", "Raises", "Examples"], docstring
    described = re.findall(r"^    (\w+): ", sections[2], flags=re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert examples_of(docstring)
    unannotated = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.annotation is inspect.Parameter.empty
    ]
    assert unannotated == []


@pytest.mark.slow
@pytest.mark.parametrize("name", moekit.__all__)
def test_the_example_of_a_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    thin_out_the_corpus(monkeypatch)
    furnish(tmp_path)
    run_examples(inspect.getdoc(getattr(moekit, name)) or "")


def test_an_example_that_shows_something_else_is_found() -> None:
    run_examples(">>> print(1 + 1)\n2\n")
    with pytest.raises(AssertionError):
        run_examples(">>> print(1 + 1)\n3\n")
