"""Tables in their forms: arrays of JSON, CSV and TSV; columns that are not there; folders of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from moekit.core.errors import UsageError
from moekit.data import read_sources, read_text

LONG = "word " * 60_000  # more than the csv module's own limit of 128 kB


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize(
    "value",
    [
        [{"text": "one", "id": 1}, {"text": "two"}],
        ["one", "two"],
        {"version": 1, "data": [{"text": "one"}, {"text": "two"}]},
        {"text": ["one", "two"], "id": [1, 2]},
        {"text": {"0": "one", "1": "two"}, "id": {"0": 1, "1": 2}},
    ],
    ids=["array", "strings", "one array inside", "columns", "columns by index"],
)
@pytest.mark.parametrize("indent", [None, 2])
def test_json_rows(value: Any, indent: int | None, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", json.dumps(value, indent=indent))
    assert [document.text for document in read_sources([source])] == [b"one", b"two"]


def test_json_lines_by_the_name_of_json(tmp_path: Path) -> None:
    source = write(tmp_path / "rows.json", '{"text": "one"}\n\n{"text": "two\u2028\u0085 three"}\n')
    assert [document.text.decode() for document in read_sources([source])] == ["one", "two\u2028\u0085 three"]


@pytest.mark.parametrize("content", ['{"name": "package"}', "[1, 2, 3]", "[]", "{ // a comment\n}", "[[1], [2]]"])
def test_json_without_rows_is_a_text_and_that_is_said(content: str, tmp_path: Path) -> None:
    told: list[str] = []
    source = write(tmp_path / "settings.json", content)
    assert [document.text.decode() for document in read_sources([source], say=told.append)] == [content]
    assert told == [f"In {source}: 1 .json file(s) without rows, read as text like any other."]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,id\n"one, two\nthree",1\n"with ""quotes""",2\n\n'),
        ("a.csv", 'id;text\r\n1;"one, two\nthree"\r\n2;"with ""quotes"""\r\n'),
        ("a.csv", '\ufeffid|text\n1|"one, two\nthree"\n2|with "quotes"\n'),
        ("a.tsv", 'id\ttext\n1\t"one, two\nthree"\n2\t"with ""quotes"""\n'),
    ],
)
def test_separated_values(name: str, content: str, tmp_path: Path) -> None:
    source = write(tmp_path / name, content)
    assert [document.text.decode() for document in read_sources([source])] == ["one, two\nthree", 'with "quotes"']


def test_values_between_tabs_may_hold_lone_quotes(tmp_path: Path) -> None:
    source = write(tmp_path / "a.tsv", 'text\tid\n"so it begins\t1\nand 5" long\t2\n')
    assert [document.text for document in read_sources([source])] == [b'"so it begins', b'and 5" long']


def test_a_value_may_be_long(tmp_path: Path) -> None:
    source = write(tmp_path / "a.csv", f"text,id\n{LONG},1\n")
    assert [document.text.decode() for document in read_sources([source])] == [LONG]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,id\none,1\ntwo,with a comma,2\n", r"line 3: 3 values, where the first line has 2"),
        ('text,id\n"never closed,1\n', r"line 2: not a row of values: unexpected end of data"),
        ("text,id\ncaf\xe9,1\n".encode("latin-1"), r"not in UTF-8.*iconv"),
    ],
)
def test_separated_values_that_would_change_are_refused(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"(?s){message}"):
        read_sources([write(tmp_path / "a.csv", content)])


TABLES = {
    "a.jsonl": '{"body": "one", "id": 1}\n',
    "a.ndjson": '{"body": "one", "id": 1}\n',
    "a.json": '[{"body": "one", "id": 1}]',
    "a.csv": "body,id\none,1\n",
    "a.tsv": "body\tid\none\t1\n",
    "a.jsonl.gz": None,
    "a.parquet": None,
}


def table(path: Path, content: str | None) -> str:
    """A table with the columns `body` and `id`."""
    if path.suffix == ".gz":
        import gzip

        return write(path, gzip.compress(b'{"body": "one", "id": 1}\n'))
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"body": ["one"], "id": [1]}), path)
        return str(path)
    assert content is not None
    return write(path, content)


@pytest.mark.parametrize("name", TABLES)
def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(name: str, tmp_path: Path) -> None:
    source = table(tmp_path / "rows" / name, TABLES[name])
    names = "has no column 'text'; name one of the columns there are: 'body', 'id'"
    assert [document.text for document in read_sources([source], text_column="body")] == [b"one"]
    for where in (source, str(tmp_path / "rows")):
        with pytest.raises(UsageError, match=names):
            read_sources([where])
    with pytest.raises(UsageError, match="no column 'topic'"):
        read_sources([source], text_column="body", domain_column="topic")


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_other_things_stop_no_folder(name: str, tmp_path: Path) -> None:
    """A repository holds figures, settings and fixtures beside its text; that they are left out is told."""
    table(tmp_path / name, TABLES[name])
    write(tmp_path / "ragged.csv", "a,b\n1\n1,2,3\n")
    write(tmp_path / "main.py", "print('text')\n")
    told: list[str] = []
    read = read_text([str(tmp_path)], say=told.append)
    assert [document.text for document in read.documents] == [b"print('text')\n"]
    assert [(one.reason, one.texts) for one in read.left_out] == [("tables without a column 'text'", 2)]
    assert "--text-column" in told[0]
    # Who names a column means these tables.
    with pytest.raises(UsageError, match="has no column 'story'"):
        read_sources([str(tmp_path)], text_column="story")


def test_rows_without_their_marks(tmp_path: Path) -> None:
    rows = [{"text": "\ufeffmarked"}, {"text": "with\0 zeros\0"}]
    source = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert [document.text for document in read_sources([source])] == [b"marked", b"with zeros"]
