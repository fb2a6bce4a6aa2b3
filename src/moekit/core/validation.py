"""Validation: from data that a user wrote to a configuration, or to one sentence that says what is wrong with it."""

import codecs
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moekit.core.errors import UsageError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


class InvalidData(UsageError):
    """Data that a user wrote are no configuration.

    Attributes:
        path: of the wrong key, `layers[0].router.top_k`; empty where no single one is wrong.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


def read_text(path: Path) -> str:
    """Read a file as text; raise UsageError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"Cannot read {path}: it is not text in UTF-8.") from error


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, with its place in words; the file is read line by line.

    Raises:
        UsageError: where the file cannot be read, or a line of it is not UTF-8.
    """
    try:
        with path.open("rb") as lines:
            yield from lines_of(lines, str(path))
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error


def lines_of(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, str]]:
    """Yield each of the lines of the file `name` that is not blank, with its place in words; see `read_lines`."""
    # Bytes end at line feeds alone: strings of JSON lines may hold what text takes for the end of a line.
    for number, line in enumerate(lines, start=1):
        where = f"{name}, line {number}"
        text = _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
        if text.strip():
            yield where, text


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not text in UTF-8: {error.reason} at byte {error.start}.") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each line, with its place in words; raise UsageError where a line is not JSON."""
    return _json_values(read_lines(path))


def json_lines_of(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each of the lines of the file `name`; see `read_json_lines`."""
    return _json_values(lines_of(lines, name))


def _json_values(lines: Iterable[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    for where, line in lines:
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where}: not valid JSON: {error}.") from error


def read_yaml(path: Path) -> Any:
    """Read a file of YAML; raise UsageError where it cannot be read."""
    try:
        return yaml.safe_load(read_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date that is none is a ValueError
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error


def validate(model: type[Model], data: Any, *, where: str) -> Model:
    """Make a `model` of `data`.

    Args:
        model: the class of the configuration.
        data: keys and values, as a user wrote them.
        where: the place of the data, which begins the error's message.

    Raises:
        InvalidData: with `where`, the path of the wrong key, and the nearest valid key where there is no such key.
    """
    if not isinstance(data, dict):
        raise InvalidData(f"{where}: must be keys and values ({', '.join(model.model_fields)}), not {_shown(data)}.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        path, told = _first_problem(error, model)
        raise InvalidData(": ".join(filter(None, (where, path, told))), path) from error


def problem_of(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Say the first thing that is wrong with data, as in "layers[0].router.top_k: must be more than 0, not -1.".

    Args:
        error: what pydantic found.
        model: the class that was to be made; None where that is not known.
    """
    return ": ".join(filter(None, _first_problem(error, model)))


def _first_problem(error: ValidationError, model: type[BaseModel] | None) -> tuple[str, str]:
    """Find the path of the first thing that is wrong, and what is wrong with it."""
    problems = [_Problem(details, _follow(model, details["loc"])) for details in error.errors(include_url=False)]
    # A misspelt key is an unknown one and a missing one: the unknown one is what the user typed.
    first = next((problem for problem in problems if problem.is_unknown_key), problems[0])
    # Of a value that may be this or that, each is found missing; what is wrong within it says more.
    first = next((problem for problem in problems if problem.place.within(first.place)), first)
    told = _in_words([problem for problem in problems if problem.place.path == first.place.path])
    return first.place.path, told if told.endswith(("?", ".")) else f"{told}."


class _Place(NamedTuple):
    """Where a problem is.

    Attributes:
        path: as `layers[0].router.top_k`.
        parent: the class that holds the last key; None where that is not known.
        choices: what may stand there.
    """

    path: str
    parent: Any
    choices: list[Any]

    def within(self, other: "_Place") -> bool:
        return bool(other.path) and self.path.startswith((f"{other.path}.", f"{other.path}["))

    @property
    def also_read(self) -> Mapping[str, str]:
        """What `Config.also_read` says of the class that holds the last key."""
        return getattr(self.parent, "also_read", {})


class _Problem(NamedTuple):
    details: ErrorDetails
    place: _Place

    @property
    def key(self) -> str:
        """The last key of the path."""
        return str(self.details["loc"][-1]) if self.details["loc"] else ""

    @property
    def is_unknown_key(self) -> bool:
        return self.details["type"] == "extra_forbidden" and self.key not in self.place.also_read


_EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_unicode": "text",
    "path_type": "the path of a file or folder",
    "tuple_type": "a list",
    "list_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "keys and values",
    "mapping_type": "keys and values",
    "model_type": "keys and values",
    "model_attributes_type": "keys and values",
    "none_required": "null",
    "greater_than": "more than {gt}",
    "greater_than_equal": "{ge} or more",
    "less_than": "less than {lt}",
    "less_than_equal": "{le} or less",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "text of {min_length} or more characters",
    "string_too_long": "text of at most {max_length} characters",
    "literal_error": "{expected}",
}
"""What a value must be, by the type of pydantic's error."""


def _in_words(problems: Sequence[_Problem]) -> str:
    """Say what is wrong with a value, of which pydantic found one problem for each thing that it may be."""
    (details, place), key = problems[0], problems[0].key
    context, given = details.get("ctx", {}), details["input"]
    match details["type"]:
        case "extra_forbidden" if key in place.also_read:
            return f"this key is read only {place.also_read[key]}"
        case "extra_forbidden" if place.parent is not None:
            return f"there is no such key; {did_you_mean(key, (*_fields(place.parent), *place.also_read))}"
        case "missing":
            return "this key is missing"
        case "union_tag_not_found":
            return f"the key {_KIND} is missing; valid are {', '.join(sorted(map(_kind_of, place.choices)))}"
        case "union_tag_invalid":
            return _unknown(_KIND, context["tag"], map(_kind_of, place.choices))
        case "literal_error" if len(problems) == 1 and isinstance(given, str):
            return _unknown(key, given, re.findall(r"'([^']*)'", context["expected"]))
        case "too_short" if isinstance(given, Mapping):
            return f"must have {context['min_length']} or more entries, not {len(given)}"
    expected = [_expected(problem.details) for problem in problems if problem.details["type"] in _EXPECTED]
    if not expected:
        return details["msg"].removeprefix("Value error, ")
    return f"must be {' or '.join(dict.fromkeys(expected))}, not {_shown(given)}"


def _expected(details: ErrorDetails) -> str:
    context = details.get("ctx", {}).items()
    whole = {key: int(value) if isinstance(value, float) and value.is_integer() else value for key, value in context}
    return _EXPECTED[details["type"]].format(**whole)


def _unknown(key: str, chosen: str, valid: Iterable[str]) -> str:
    return f"there is no {key} {_shown(chosen)}; {did_you_mean(chosen, valid)}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _follow(model: type[BaseModel] | None, location: tuple[int | str, ...]) -> _Place:
    """Find the place of a problem.

    pydantic puts which member of a union it tried between the keys: that chooses a class and is not part of the path.
    """
    path, choices, parent = "", _members(model), model
    for part in location:
        if len(choices) > 1:
            choices = [choice for choice in choices if _is_tried(choice, str(part))][:1]
            continue
        holder: Any = choices[0] if choices else None
        fields = _fields(holder) if _is_model(holder) else {}
        if isinstance(part, int):
            path += f"[{part}]"
            inside = typing.get_args(holder)[:1]  # of a list
        else:
            path += f".{part}" if path else part
            inside = (fields[part],) if part in fields else typing.get_args(holder)[-1:]  # of what is kept by name
        parent = holder if fields else None
        choices = [member for annotation in inside for member in _members(annotation)]
    return _Place(path, parent, choices)


def _members(annotation: Any) -> list[Any]:
    """List what a value may be, null apart."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [found for member in typing.get_args(annotation) for found in _members(member)]
    return [] if annotation in (None, type(None)) else [annotation]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def _fields(model: type) -> dict[str, Any]:
    """Find the annotations of a model's or a dataclass's fields."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return typing.get_type_hints(model)


_KIND = "kind"
"""The key that chooses among several classes, wherever there are several."""


def _kind_of(choice: Any) -> str:
    if _is_model(choice) and issubclass(choice, BaseModel) and _KIND in choice.model_fields:
        return str(choice.model_fields[_KIND].default)
    return ""


def _is_tried(choice: Any, label: str) -> bool:
    """Tell whether pydantic calls that member of a union so: by its kind, its name, or as `tuple[int, ...]`."""
    name = str(getattr(typing.get_origin(choice) or choice, "__name__", choice))
    return label in (_kind_of(choice), name) or label.partition("[")[0].lower() == name.lower()
