"""The house: a module's name says what it holds, and a function's docstring begins with what the function does."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "src" / "moekit"

# A kind of model or of layer: its configuration, its module and its families' data.
KINDS = {"attention", "decoder", "encoder", "encoder_decoder", "feed_forward", "norm", "recurrent", "seq2seq", "xlnet"}
# A verb of the command line, and the module that does it.
VERBS = {"doctor"}
# One function: what calls it, and each of its backends.
BACKENDS = {"experts"}


def repeated_names(folder: Path) -> dict[str, list[str]]:
    """Find the names of modules under `folder` that stand in more than one folder, each with those folders."""
    places = defaultdict(list)
    for file in sorted(folder.rglob("*.py")):
        if file.stem != "__init__":
            places[file.stem].append(str(file.parent.relative_to(folder)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_module_name_is_used_for_two_things() -> None:
    repeated = repeated_names(SOURCES)
    assert repeated.keys() - KINDS - VERBS - BACKENDS == set(), repeated


def test_every_name_that_may_repeat_does() -> None:
    assert (KINDS | VERBS | BACKENDS) - repeated_names(SOURCES).keys() == set()


def test_repeated_names_are_found(tmp_path: Path) -> None:
    for name in ("a/base.py", "b/base.py", "b/other.py", "a/__init__.py", "b/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert repeated_names(tmp_path) == {"base": ["a", "b"]}


# A first word that pydocstyle lets pass, and that no instruction begins with.
NO_VERBS = {
    *("A", "All", "An", "As", "Each", "Every", "For", "From", "How", "If", "In", "It", "Not", "Of", "One", "That"),
    *("The", "There", "They", "Those", "To", "What", "When", "Where", "Whether", "Which", "Why", "With", "Without"),
}
# Rooms whose docstrings are not done yet, as in pyproject.toml.
NOT_DONE = {"convert"}


def without_verb(source: str) -> Iterator[str]:
    """Yield the first lines of functions' docstrings that do not begin with a verb; properties are nouns."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (text := ast.get_docstring(node)):
            is_property = any("property" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not is_property and (text.split()[0] in NO_VERBS or not text[0].isupper()):
                yield text.splitlines()[0]


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    files = [file for file in SOURCES.rglob("*.py") if file.relative_to(SOURCES).parts[0] not in NOT_DONE]
    found = {str(file.relative_to(SOURCES)): list(without_verb(file.read_text(encoding="utf-8"))) for file in files}
    assert {file: lines for file, lines in found.items() if lines} == {}


# The reference shows a table of fields, a row each.
SEVERAL_NAMES = re.compile(r"^ +\w+(, \w+)+: ", re.MULTILINE)


def with_several_names(source: str) -> Iterator[str]:
    """Yield the lines of classes' docstrings that stand for several fields at once, below `Attributes:`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and (text := ast.get_docstring(node)):
            _, _, attributes = text.partition("\nAttributes:\n")
            yield from (found.group().strip() for found in SEVERAL_NAMES.finditer(attributes))


def test_every_field_has_a_line_of_its_own() -> None:
    files = [file for file in SOURCES.rglob("*.py") if file.relative_to(SOURCES).parts[0] not in NOT_DONE]
    found = {
        str(file.relative_to(SOURCES)): list(with_several_names(file.read_text(encoding="utf-8"))) for file in files
    }
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_a_line_for_several_fields_is_found() -> None:
    source = """
class Some:
    '''A class.

    Attributes:
        width: of it, in a, b: units.
        first, second: of both.
    '''
"""
    assert list(with_several_names(source)) == ["first, second:"]


def test_a_docstring_without_a_verb_is_found() -> None:
    source = """
def first():
    'What it gives.'
class Some:
    'The class.'
    @property
    def size(self):
        'The size.'
    def second(self):
        'Give the second.'
    async def third(self):
        'y_TD for any shape.'
"""
    assert list(without_verb(source)) == ["What it gives.", "y_TD for any shape."]
