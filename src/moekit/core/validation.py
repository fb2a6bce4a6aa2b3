"""Validation: from data that a user wrote to a configuration, or to one sentence that says what is wrong with it."""

import codecs
import json
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from moekit.core.errors import UsageError, did_you_mean

Model = TypeVar("Model", bound=BaseModel)


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
        # Bytes end at line feeds alone: strings of JSON lines may hold what text takes for the end of a line.
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{path}, line {number}"
                text = _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
                if text.strip():
                    yield where, text
    except OSError as error:
        raise UsageError(f"Cannot read {path}: {error.strerror}.") from error


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not text in UTF-8: {error.reason} at byte {error.start}.") from error


def read_json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the JSON value of each line, with its place in words; raise UsageError where a line is not JSON."""
    for where, line in read_lines(path):
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
        UsageError: with `where`, the path of the wrong key, and the nearest valid key where there is no such key.
    """
    if not isinstance(data, dict):
        raise UsageError(f"{where}: expected keys and values ({', '.join(model.model_fields)}), got {data!r}.")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = error.errors(include_url=False)
    # A misspelt key is an unknown one and a missing one: the unknown one is what the user typed.
    first = min(problems, key=lambda problem: problem["type"] != "extra_forbidden")
    path, parent = _follow(model, first["loc"])
    if first["type"] == "extra_forbidden":
        problem = f"there is no such key; {did_you_mean(str(first['loc'][-1]), _fields(parent))}"
    elif first["type"] == "union_tag_invalid":
        chosen, by = first["ctx"]["tag"], first["ctx"]["discriminator"].strip("'")
        tags = [tag.strip(" '") for tag in first["ctx"]["expected_tags"].split(",")]
        problem = f"there is no {by} {chosen!r}; {did_you_mean(chosen, tags)}"
    else:
        problem = first["msg"].removeprefix("Value error, ").rstrip(".") + "."
    raise UsageError(": ".join(part for part in (where, path, problem) if part))


def _follow(model: type, location: tuple[int | str, ...]) -> tuple[str, type]:
    """Find the path in words, `layers[0].router.top_k`, and the model that holds its last key.

    pydantic puts the members of unions between the keys: they choose a model and are not part of the path.
    """
    path, choices, parent = "", [model], model
    for part in location:
        tagged = [choice for choice in choices if _tag(choice) == part]
        if isinstance(part, int):
            path += f"[{part}]"
        elif tagged and len(choices) > 1:
            choices = tagged
        elif choices:
            path += f".{part}" if path else part
            parent = choices[0]
            fields = _fields(parent)
            choices = _models_in(fields[part]) if part in fields else choices
    return path, parent


def _models_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _models_in(argument)]


def _fields(model: type) -> dict[str, Any]:
    """Find the annotations of a model's or a dataclass's fields."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return typing.get_type_hints(model)


def _tag(model: type) -> Any:
    return model.model_fields["kind"].default if "kind" in _fields(model) and issubclass(model, BaseModel) else None
