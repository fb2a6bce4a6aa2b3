"""Figures in docs that are made of what a benchmark's JSON says, between two marks."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
START, END = "<!-- figures: from the benchmark -->\n", "<!-- end of figures -->\n"


def with_text(page: str, text: str, start: str = START, end: str = END) -> str:
    """`page` with what stands between its two marks replaced."""
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{text}\n{end}{after}"


class DocTable:
    """The figures of docs/`doc` behind the mark `start`, which `figures` makes of benchmarks/results/`results`."""

    def __init__(self, doc: str, results: str, figures: Callable[[dict[str, Any]], str], start: str = START) -> None:
        self.doc, self.results = ROOT / "docs" / doc, ROOT / "benchmarks" / "results" / results
        self._figures, self._start = figures, start

    @property
    def found(self) -> dict[str, Any]:
        """What was measured."""
        return json.loads(self.results.read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def check(self) -> None:
        """Assert that the page says it."""
        page = self.doc.read_text(encoding="utf-8")
        assert self._start in page
        assert page == with_text(page, self._figures(self.found), self._start), (
            f"docs/{self.doc.name} is not what was measured; its test, run as a module, writes it anew"
        )

    def write(self) -> None:
        """Say it anew."""
        page = self.doc.read_text(encoding="utf-8")
        self.doc.write_text(with_text(page, self._figures(self.found), self._start), encoding="utf-8")


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """In Markdown."""
    heads = list(heads)
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
