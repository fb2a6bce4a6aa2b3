"""docs/merging.md says what the benchmark's JSON says: its table is made of it.

`python tests/convert/test_merging_doc.py` writes it anew after another run.
"""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOC = ROOT / "docs" / "merging.md"
FOUND = ROOT / "benchmarks" / "results" / "2026-11-22-trench-coat.json"
START, END = "<!-- figures: from the benchmark -->\n", "<!-- end of figures -->\n"


def figures(found: dict[str, Any]) -> str:
    """A row for each model."""
    layers = max(len(row.get("accuracy", ())) for row in found["results"].values())
    heads = ["", "mean", *found["domains"], *(f"layer {index}" for index in range(layers))]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for name, row in found["results"].items():
        bits = [f"{value:.3f}" for value in (row["bits_per_byte"], *row["by_domain"].values())]
        lines.append(_line([name, *bits, *(f"{share:.0%}" for share in row.get("accuracy", ()))]))
    return "\n".join(lines) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def with_figures(text: str) -> str:
    """`text` with what stands between the two marks replaced by the table of the JSON."""
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{figures(json.loads(FOUND.read_text(encoding='utf-8')))}\n{END}{after}"


def test_the_table_is_what_was_measured() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert START in text
    assert text == with_figures(text), "run: python tests/convert/test_merging_doc.py"


def test_the_sentences_hold() -> None:
    """What the page says of the order of the modes."""
    results = json.loads(FOUND.read_text(encoding="utf-8"))["results"]
    bits = {name: row["bits_per_byte"] for name, row in results.items()}
    for backbone in ("base", "average"):
        fitted, inputs, hidden = (bits[f"{mode}, backbone {backbone}"] for mode in ("fitted", "router_input", "hidden"))
        assert fitted < inputs < hidden
    assert bits["fitted, backbone average"] - bits["base trained on"] < 0.01
    assert min(bits, key=lambda name: bits[name]) == "fitted, backbone average, router trained"
    assert min(results["fitted, backbone average"]["accuracy"]) > 0.65


if __name__ == "__main__":
    DOC.write_text(with_figures(DOC.read_text(encoding="utf-8")), encoding="utf-8")
