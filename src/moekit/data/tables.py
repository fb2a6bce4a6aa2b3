"""Tables of text: JSON lines, JSON arrays, CSV, TSV, Parquet files and datasets of the Hugging Face hub, row by row."""

import csv
import importlib
import io
import itertools
import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from moekit.core.errors import UsageError
from moekit.core.validation import json_lines_of
from moekit.data.decoding import NOT_UTF_8, NotText, open_utf8

Record = tuple[str, Any]
"""A row: its place in words, and its value, which is an object with the columns' values unless the file is wrong."""

COMPRESSED = (".gz", ".zst", ".zstd", ".bz2", ".xz")
_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t"}


class MissingColumn(UsageError):
    """A table has no column of that name."""


def table_form(path: Path) -> str | None:
    """Tell by its name what table a file is: `.jsonl`, `.json`, `.csv`, `.tsv` or `.parquet`; None where it is none."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    form = suffixes[-1] if suffixes else ""
    form = ".jsonl" if form == ".ndjson" else form
    return form if form in _READERS or form == ".parquet" else None


@contextmanager
def table_rows(path: Path, wanted: Sequence[str], limit: int | None = None) -> Iterator[Iterator[Record] | None]:
    """Open a table, to read its rows; a file of another name than `table_form` knows is taken for JSON lines.

    Args:
        path: the file.
        wanted: the columns that have to be there; the first of them is the text's.
        limit: the most bytes that may be read of it, unpacked; None for any number.

    Yields:
        The rows; None where a `.json` file holds no rows: it is a text like another then.

    Raises:
        MissingColumn: where there is no column of that name; names those that there are.
        UsageError: naming the line or the row, where the file is damaged, or pyarrow is missing.
        NotText: where the file cannot be unpacked or decoded.
    """
    form = table_form(path) or ".jsonl"
    if form == ".parquet":
        with closing(_parquet_rows(path, wanted)) as rows:
            yield rows
        return
    with open_utf8(path, limit) as file:
        yield _READERS[form](file, str(path), wanted)


def hub_rows(source: str, wanted: Sequence[str]) -> Iterator[Record]:
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
    check_columns(source, table.column_names, wanted)
    for number, row in enumerate(table.select_columns(list(dict.fromkeys(wanted))), start=1):
        yield f"{source}, row {number}", row


def check_columns(where: str, present: Iterable[str], wanted: Iterable[str]) -> None:
    """Raise MissingColumn, naming the columns that there are, where one that is wanted is not among them."""
    names = list(present)
    for column in wanted:
        if column not in names:
            listed = ", ".join(repr(name) for name in names) or "none"
            raise MissingColumn(f"{where} has no column {column!r}; name one of the columns there are: {listed}.")


def kind_of(value: object) -> str:
    """Say in words what a value is."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, int | float) else f"a {type(value).__name__}")


def _json_lines(file: BinaryIO, name: str, wanted: Sequence[str]) -> Iterator[Record]:
    """Read the rows of JSON lines; blank lines are left out."""
    return json_lines_of(file, name)


def _json(file: BinaryIO, name: str, wanted: Sequence[str]) -> Iterator[Record] | None:
    """Find the rows of a JSON file: an array, an object of columns or with one array of rows, or JSON lines."""
    content = file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        lines = json_lines_of(io.BytesIO(content), name)
        try:
            first = list(itertools.islice(lines, 2))
        except UsageError:
            return None
        if len(first) < 2 or not isinstance(first[0][1], dict):
            return None
        return itertools.chain(first, lines)
    rows = _rows_in(value, wanted[0])
    return None if rows is None else ((f"{name}, row {number}", row) for number, row in enumerate(rows, start=1))


def _rows_in(value: Any, text: str) -> list[Any] | None:
    """Find the rows in a JSON value; gives None where it holds none."""
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return [{text: cell} if isinstance(cell, str) else cell for cell in value]
        return value if value and isinstance(value[0], dict) else None
    if not isinstance(value, dict):
        return None
    column = value.get(text)
    if isinstance(column, str):
        return [value]
    if isinstance(column, list | dict):
        columns = {name: _listed(cells) for name, cells in value.items() if isinstance(cells, list | dict)}
        same = {name: cells for name, cells in columns.items() if len(cells) == len(columns[text])}
        return [dict(zip(same, cells, strict=True)) for cells in zip(*same.values(), strict=True)]
    arrays = [
        cells
        for cells in value.values()
        if isinstance(cells, list) and cells and isinstance(cells[0], dict) and text in cells[0]
    ]
    return arrays[0] if len(arrays) == 1 else None


def _listed(cells: list[Any] | dict[str, Any]) -> list[Any]:
    return cells if isinstance(cells, list) else list(cells.values())


def _separated(delimiters: str) -> Callable[[BinaryIO, str, Sequence[str]], Iterator[Record]]:
    """Make the reader of rows of values with one of `delimiters` between, whose first row names the columns."""

    def rows(file: BinaryIO, name: str, wanted: Sequence[str]) -> Iterator[Record]:
        content = file.read()
        # The columns come first: in a folder, what else is wrong with a table that has no text is nobody's concern.
        header = content.lstrip().partition(b"\n")[0].decode("utf-8", "replace")
        delimiter = _delimiter(header, delimiters, wanted[0])
        names = next(csv.reader([header], delimiter=delimiter), [])
        check_columns(name, names, wanted)
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotText(NOT_UTF_8) from error
        with _long_values():
            try:
                table = list(_parsed(text, name, delimiter, csv.QUOTE_MINIMAL))
            except UsageError:
                if delimiter != "\t":
                    raise
                # Values between tabs are often written with no quoting at all.
                table = list(_parsed(text, name, delimiter, csv.QUOTE_NONE))
        (_, names), *body = table
        for line, cells in body:
            yield f"{name}, line {line}", dict(zip(names, cells, strict=True))

    return rows


def _parsed(text: str, name: str, delimiter: str, quoting: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank with the line on which it ends; all have as many values as the first."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True)  # type: ignore[arg-type]
    columns = 0
    try:
        for cells in reader:
            if not cells:
                continue
            columns = columns or len(cells)
            if len(cells) != columns:
                raise UsageError(
                    f"{name}, line {reader.line_num}: {len(cells)} values, where the first line has {columns}; "
                    "values with a delimiter in them stand between quotes."
                )
            yield reader.line_num, cells
    except csv.Error as error:
        raise UsageError(f"{name}, line {reader.line_num}: not a row of values: {error}.") from error


def _delimiter(header: str, delimiters: str, text: str) -> str:
    """Choose the delimiter by which the header has the text's column, else by which it has most columns."""

    def fit(delimiter: str) -> tuple[bool, int]:
        names = [name.strip().strip('"') for name in header.split(delimiter)]
        return text in names, len(names)

    return max(delimiters, key=fit)


@contextmanager
def _long_values() -> Iterator[None]:
    """Let values be of any length: the module's limit of 128 kB would refuse a book."""
    before = csv.field_size_limit((1 << 31) - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path, wanted: Sequence[str]) -> Generator[Record]:
    """Yield the rows of a Parquet file, which is read batch by batch."""
    pyarrow = _optional("pyarrow", f"Reading {path}")
    parquet = _optional("pyarrow.parquet", f"Reading {path}")
    try:
        with parquet.ParquetFile(path) as table:
            check_columns(str(path), table.schema_arrow.names, wanted)
            number = 0
            for batch in table.iter_batches(columns=list(dict.fromkeys(wanted))):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise UsageError(f"{path} is not a readable Parquet file ({_first_line(error)}); replace it.") from error


def _optional(module: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs {package}; install it with: pip install 'moekit[data]'.") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


_READERS: Mapping[str, Callable[[BinaryIO, str, Sequence[str]], Iterator[Record] | None]] = {
    ".jsonl": _json_lines,
    ".json": _json,
    **{form: _separated(delimiters) for form, delimiters in _DELIMITERS.items()},
}
