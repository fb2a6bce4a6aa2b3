"""Sources: rows of JSON lines, Parquet files and hub datasets."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moekit.core.errors import UsageError
from moekit.data.documents import read_sources


def jsonl(path: Path, *rows: object) -> str:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"\n".join(lines))
    return str(path)


def test_jsonl_rows_and_domains(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "rows.jsonl",
        {"body": "one\nof two lines", "topic": "../x"},
        b"",
        {"body": "zwei ä", "topic": 7, "more": [1]},
    )
    found = read_sources([source], text_column="body", domain_column="topic")
    assert [(document.domain, document.text.decode()) for document in found] == [
        ("../x", "one\nof two lines"),
        ("7", "zwei ä"),
    ]
    assert {document.domain for document in read_sources([source], text_column="body")} == {"rows.jsonl"}


def test_jsonl_in_a_folder_takes_the_folder_as_domain(tmp_path: Path) -> None:
    (tmp_path / "qa").mkdir()
    jsonl(tmp_path / "qa" / "rows.jsonl", {"text": "a"}, {"text": "b"})
    found = read_sources([str(tmp_path)])
    assert [document.domain for document in found] == ["qa", "qa"]
    assert len({document.name for document in found}) == 2


def test_rows_without_text_are_skipped_and_counted(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "rows.jsonl",
        {"text": "good"},
        {"text": None},
        {"text": "  "},
        {"text": "a\0b"},
        b'{"text": "\\ud800 half a pair"}',
    )
    told: list[str] = []
    assert [document.text for document in read_sources([source], say=told.append)] == [b"good", b"ab"]
    assert told == [
        f"Skipped in {source}: 2 empty.",
        f"Left out of {source}: 1 text, 15 B, with half of a surrogate pair, which is no character, such as "
        "rows.jsonl:4.",
        f"In {source}: 1 row(s) held a byte 0, which was taken out.",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b'{"text": "cut', "line 2: not valid JSON: Unterminated string"),
        (b'{"text": "\xff"}', "line 2: not text in UTF-8: invalid start byte at byte 10."),
        (b"[" * 100_000, "line 2: not valid JSON: "),
        (b'["text"]', 'line 2, is a list, not a JSON object; make it one such as {"text"'),
        (b'"text"', "line 2, is a string"),
        ({"txt": "a", "id": 1}, "line 2 has no column 'text'; name one of the columns there are: 'txt', 'id'"),
        ({}, "line 2 has no column 'text'; name one of the columns there are: none"),
        ({"text": 5}, "line 2, holds a number in column 'text'"),
        ({"text": {}}, "line 2, holds an object in column 'text'"),
    ],
)
def test_jsonl_rows_that_are_unusable(row: object, message: str, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", {"text": "good"}, row)
    with pytest.raises(UsageError) as error:
        read_sources([source])
    assert str(error.value).startswith(f"{source}, {message}")


@pytest.mark.parametrize("domain", [None, "", 1.5, ["a"]])
def test_a_domain_that_is_no_name(domain: Any, tmp_path: Path) -> None:
    source = jsonl(tmp_path / "rows.jsonl", {"text": "good", "topic": domain})
    with pytest.raises(UsageError, match="in column 'topic'; the domain must be"):
        read_sources([source], domain_column="topic")


def test_parquet(tmp_path: Path) -> None:
    table = pa.table({"text": ["one", None, "three"], "topic": ["a", "a", "b"], "id": [1, 2, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = str(tmp_path / "t.parquet")
    found = read_sources([source], domain_column="topic")
    assert [(document.domain, document.text) for document in found] == [("a", b"one"), ("b", b"three")]
    with pytest.raises(UsageError, match="has no column 'body'; name one of the columns there are: 'text', 'topic'"):
        read_sources([source], text_column="body")
    with pytest.raises(UsageError, match="row 1, holds a number in column 'id'"):
        read_sources([source], text_column="id")


def test_a_damaged_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 no more than that")
    with pytest.raises(UsageError, match=r"t.parquet is not a readable Parquet file \("):
        read_sources([str(tmp_path / "t.parquet")])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """A hub that holds one dataset; the calls it gets."""
    datasets = pytest.importorskip("datasets")
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        calls.append((*arguments, options))
        if arguments[0] != "owner/stories":
            raise datasets.exceptions.DatasetNotFoundError("Dataset does not exist on the Hub.\nSecond line.")
        return datasets.Dataset.from_dict({"story": ["one", "two"], "kind": ["a", "b"], "pages": [1, 2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_datasets(hub: list[tuple[Any, ...]]) -> None:
    found = read_sources(["owner/stories"], text_column="story", domain_column="kind")
    assert [(document.domain, document.text) for document in found] == [("a", b"one"), ("b", b"two")]
    assert read_sources(["owner/stories:small:test"], text_column="story")[0].domain == "owner/stories:small:test"
    read_sources(["owner/stories::test"], text_column="story")
    # nothing but these: above all, no permission to run the dataset's code
    assert hub == [
        ("owner/stories", None, {"split": "train"}),
        ("owner/stories", "small", {"split": "test"}),
        ("owner/stories", None, {"split": "test"}),
    ]
    with pytest.raises(UsageError, match="columns there are: 'story', 'kind', 'pages'"):
        read_sources(["owner/stories"])


def test_a_hub_dataset_that_is_not_there(hub: list[tuple[Any, ...]]) -> None:
    with pytest.raises(UsageError, match=r"owner/other is no file .* \(Dataset does not exist on the Hub\); check"):
        read_sources(["owner/other"])


def test_a_misspelt_path_is_not_asked_of_the_hub(
    hub: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "owner").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="There is no file or folder 'owner/stories'"):
        read_sources(["owner/stories"])
    assert hub == []


def test_missing_packages_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError, match=r"needs pyarrow; install it with: pip install 'moekit\[data\]'"):
        read_sources([str(tmp_path / "t.parquet")])
    with pytest.raises(UsageError, match="needs datasets; install it with"):
        read_sources(["owner/stories"])


def test_a_dataset_that_wants_to_run_code(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def load_dataset(*_: Any, **__: Any) -> SimpleNamespace:
        raise RuntimeError("Dataset scripts are no longer supported, but found stories.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UsageError, match="Dataset scripts are no longer supported"):
        read_sources(["owner/stories"])
