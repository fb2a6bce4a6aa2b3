"""Pairs of a source and a target, as translation has them, read from a table."""

import codecs
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from moekit.core.errors import UsageError
from moekit.data.decoding import HALF_PAIR, NotText
from moekit.data.left_out import Say, ignore
from moekit.data.tables import check_columns, kind_of, table_rows

Pair = tuple[Sequence[int], Sequence[int]]
COLUMNS = ("source", "target")

_HELD_OUT_EVERY = 10
_BYTE_ORDER_MARK = codecs.BOM_UTF8.decode()


def read_pairs(
    file: Path, encode: Callable[[str], list[int]], longest: int, say: Say = ignore
) -> tuple[list[Pair], list[Pair]]:
    """Read training and held-out pairs from a table with the columns `source` and `target`.

    Every tenth row is held out, except where the same pair stood before: it goes to the side of the first one.

    Args:
        file: JSON lines, or what else `moekit.data.tables` reads by its ending, compressed or not.
        encode: gives the ids of a text.
        longest: the most tokens of either side; longer pairs are left out.
        say: told how many pairs were left out, and why.

    Raises:
        UsageError: naming the row that is wrong, and where there are too few pairs.
    """
    sides: tuple[list[Pair], list[Pair]] = [], []
    side_of: dict[tuple[str, str], int] = {}
    left_out: Counter[str] = Counter()
    try:
        with table_rows(file, COLUMNS) as rows:
            if rows is None:
                raise UsageError(f"{file} holds no rows; give JSON lines with the texts `source` and `target`.")
            for number, (where, row) in enumerate(rows, start=1):
                texts = _texts(where, row)
                if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
                    left_out[HALF_PAIR.text] += 1
                    continue
                source, target = map(encode, texts)
                if not source or not target:
                    left_out["with an empty side"] += 1
                elif max(len(source), len(target)) > longest:
                    left_out[f"longer than {longest:,} tokens"] += 1
                else:
                    side = side_of.setdefault(texts, int(number % _HELD_OUT_EVERY == 0))
                    sides[side].append((source, target))
    except NotText as error:
        way_on = f"; {error.reason.way_on}" if error.reason.way_on else ""
        raise UsageError(f"Cannot read {file}: it is {error.reason.text}{way_on}.") from error
    except OSError as error:
        raise UsageError(f"Cannot read {file}: {error.strerror}.") from error
    for reason, count in sorted(left_out.items()):
        say(f"Left out of {file}: {count:,} pairs {reason}.")
    train, held_out = sides
    if not train or not held_out:
        raise UsageError(f"{file} holds {len(train)} pairs to train with and {len(held_out)} to hold out: give more.")
    return train, held_out


def _texts(where: str, row: object) -> tuple[str, str]:
    """Take both texts out of a row, without what is no text: a byte order mark before it, a byte 0 in it."""
    if not isinstance(row, dict):
        raise UsageError(f"{where}: expected an object with the texts `source` and `target`, got {kind_of(row)}.")
    check_columns(where, row, COLUMNS)
    for column in COLUMNS:
        if not isinstance(row[column], str):
            raise UsageError(f"{where}: expected a text in {column!r}, got {kind_of(row[column])}.")
    source, target = (row[column].removeprefix(_BYTE_ORDER_MARK).replace("\0", "") for column in COLUMNS)
    return source, target
