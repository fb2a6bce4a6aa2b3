"""Rows of tables as text: JSON lines, Parquet files and datasets of the Hugging Face hub."""

import importlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from moekit.core.errors import UsageError
from moekit.core.validation import read_json_lines


@dataclass(frozen=True)
class Columns:
    """The column that holds the text, and the one, if any, that holds the domain."""

    text: str
    domain: str | None

    @property
    def names(self) -> list[str]:
        """The names of both columns, each once."""
        return [self.text] if self.domain in (None, self.text) else [self.text, str(self.domain)]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        text: the text in UTF-8; empty where the column is null.
        domain: None where no domain column was asked for.
    """

    text: bytes
    domain: str | None


def jsonl_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a file of JSON lines; blank lines are left out.

    Raises:
        UsageError: naming the line, where it is not a JSON object or lacks a column.
    """
    for place, row in read_json_lines(path):
        where = f"{place},"
        if not isinstance(row, dict):
            raise UsageError(
                f'{where} is {_kind(row)}, not a JSON object; make it one such as {{"{columns.text}": "…"}}.'
            )
        yield _row(where, row, columns)


def parquet_rows(path: Path, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a Parquet file, which is read batch by batch.

    Raises:
        UsageError: where pyarrow is missing, the file is damaged, or lacks a column.
    """
    pyarrow = _optional("pyarrow", f"Reading {path}")
    parquet = _optional("pyarrow.parquet", f"Reading {path}")
    try:
        with parquet.ParquetFile(path) as table:
            _check_columns(str(path), table.schema_arrow.names, columns)
            number = 0
            for batch in table.iter_batches(columns=columns.names):
                for row in batch.to_pylist():
                    number += 1
                    yield _row(f"{path}, row {number},", row, columns)
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is not a readable Parquet file ({_first_line(error)}); replace it.") from error


def hub_rows(source: str, columns: Columns) -> Iterator[Row]:
    """Yield the rows of a hub dataset `owner/name[:config[:split]]`, downloaded whole; run no code of the dataset.

    Raises:
        UsageError: where `datasets` is missing, the dataset cannot be loaded, or lacks a column.
    """
    datasets = _optional("datasets", f"{source} is no file or folder here; reading it from the Hugging Face hub")
    name, config, split = (*source.split(":"), "", "")[:3]
    try:
        table = datasets.load_dataset(name, config or None, split=split or "train")
    except (datasets.exceptions.DatasetsError, ValueError, OSError, RuntimeError) as error:
        raise UsageError(
            f"{source} is no file or folder here and could not be loaded from the Hugging Face hub "
            f"({_first_line(error)}); check the name, given as owner/name[:config[:split]], and the network."
        ) from error
    _check_columns(source, table.column_names, columns)
    for number, row in enumerate(table.select_columns(columns.names), start=1):
        yield _row(f"{source}, row {number},", row, columns)


def _row(where: str, row: Mapping[str, Any], columns: Columns) -> Row:
    _check_columns(where.rstrip(","), row, columns)
    text = row[columns.text]
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UsageError(f"{where} holds {_kind(text)} in column {columns.text!r}; name a column that holds text.")
    domain = None if columns.domain is None else row[columns.domain]
    if columns.domain is not None and (not isinstance(domain, str | int) or domain == ""):
        raise UsageError(
            f"{where} holds {_kind(domain)} in column {columns.domain!r}; the domain must be a name or a number."
        )
    # JSON may hold half of a surrogate pair; encoded as it stands it is not UTF-8, and is skipped as binary
    encoded = text.encode("utf-8", "surrogatepass")
    return Row(encoded, None if domain is None else str(domain).encode("utf-8", "replace").decode())


def _check_columns(where: str, present: Iterable[str], columns: Columns) -> None:
    names = list(present)
    for wanted in columns.names:
        if wanted not in names:
            listed = ", ".join(repr(name) for name in names) or "none"
            raise UsageError(f"{where} has no column {wanted!r}; name one of the columns there are: {listed}.")


def _optional(module: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs {package}; install it with: pip install 'moekit[data]'.") from error


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
