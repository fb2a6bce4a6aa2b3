"""Rows of tables as text with a domain."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from moekit.core.errors import UsageError
from moekit.data.tables import Record, check_columns, kind_of


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
        text: the text in UTF-8, as it stands in the table; empty where the column is null.
        domain: None where no domain column was asked for.
    """

    text: bytes
    domain: str | None


def text_rows(records: Iterable[Record], columns: Columns) -> Iterator[Row]:
    """Take the text and the domain out of each record.

    Raises:
        MissingColumn: where the first row, and so the table, lacks a column.
        UsageError: naming the row, where another lacks one, or it holds something else than text.
    """
    for number, (where, value) in enumerate(records):
        if not isinstance(value, dict):
            raise UsageError(
                f'{where}, is {kind_of(value)}, not a JSON object; make it one such as {{"{columns.text}": "…"}}.'
            )
        try:
            check_columns(where, value, columns.names)
        except UsageError as error:
            raise error if number == 0 else UsageError(str(error)) from error
        yield _row(f"{where},", value, columns)


def _row(where: str, row: Mapping[str, Any], columns: Columns) -> Row:
    text = row[columns.text]
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise UsageError(f"{where} holds {kind_of(text)} in column {columns.text!r}; name a column that holds text.")
    domain = None if columns.domain is None else row[columns.domain]
    if columns.domain is not None and (not isinstance(domain, str | int) or domain == ""):
        raise UsageError(
            f"{where} holds {kind_of(domain)} in column {columns.domain!r}; the domain must be a name or a number."
        )
    # JSON may hold half of a surrogate pair; encoded as it stands it is not UTF-8, and is left out with that reason.
    encoded = text.encode("utf-8", "surrogatepass")
    return Row(encoded, None if domain is None else str(domain).encode("utf-8", "replace").decode())
