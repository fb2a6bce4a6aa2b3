"""docs/merging.md says what the benchmark's JSON says: its table is made of it.

`python -m tests.convert.test_merging_doc` writes it anew after another run.
"""

from typing import Any

from tests.doc_tables import DocTable, table


def figures(found: dict[str, Any]) -> str:
    """A row for each model."""
    layers = max(len(row.get("accuracy", ())) for row in found["results"].values())
    heads = ["", "mean", *found["domains"], *(f"layer {index}" for index in range(layers))]
    rows = []
    for name, row in found["results"].items():
        bits = [f"{value:.3f}" for value in (row["bits_per_byte"], *row["by_domain"].values())]
        rows.append([name, *bits, *(f"{share:.0%}" for share in row.get("accuracy", ()))])
    return table(heads, rows)


TABLE = DocTable("merging.md", "2026-11-22-merge-quality.json", figures)


def test_the_table_is_what_was_measured() -> None:
    TABLE.check()


def test_the_sentences_hold() -> None:
    """What the page says of the order of the modes."""
    results = TABLE.found["results"]
    bits = {name: row["bits_per_byte"] for name, row in results.items()}
    for backbone in ("base", "average"):
        fitted, inputs, hidden = (bits[f"{mode}, backbone {backbone}"] for mode in ("fitted", "router_input", "hidden"))
        assert fitted < inputs < hidden
    assert bits["fitted, backbone average"] - bits["base trained on"] < 0.01
    assert min(bits, key=lambda name: bits[name]) == "fitted, backbone average, router trained"
    assert min(results["fitted, backbone average"]["accuracy"]) > 0.65


if __name__ == "__main__":
    TABLE.write()
