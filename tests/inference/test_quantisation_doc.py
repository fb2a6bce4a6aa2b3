"""docs/quantisation.md says what the benchmark's JSON says: its table is made of it.

`python -m tests.inference.test_quantisation_doc` writes it anew after another run.
"""

from statistics import fmean
from typing import Any

from tests.doc_tables import DocTable, table

from moekit.comparison.estimates import Estimate

MODELS = ("dense", "moe")


def lost(found: dict[str, Any], model: str, kind: str, what: str) -> list[float]:
    """Bits per byte more than in f32, by seed."""
    rows = {(row["model"], row["type"], row["seed"]): row[what] for row in found["rows"]}
    return [rows[model, kind, seed] - rows[model, "f32", seed] for seed in seeds(found)]


def seeds(found: dict[str, Any]) -> list[int]:
    return sorted({row["seed"] for row in found["rows"]})


def kinds(found: dict[str, Any]) -> list[str]:
    return [kind for kind in dict.fromkeys(row["type"] for row in found["rows"]) if kind != "f32"]


def figures(found: dict[str, Any]) -> str:
    """A row for each type: means over the seeds, with their spread for what is computed with."""
    heads = ["type", "bits a weight", "dense", "mixture", "mixture − dense", "dense: networks", "mixture: experts"]
    rows = []
    for kind in kinds(found):
        bits = [fmean(row["bits_per_weight"] for row in found["rows"] if _is(row, model, kind)) for model in MODELS]
        dense, mixture = (lost(found, model, kind, "as_computed") for model in MODELS)
        gaps = [b - a for a, b in zip(dense, mixture, strict=True)]
        networks = [f"{fmean(lost(found, model, kind, 'networks')):+.4f}" for model in MODELS]
        rows.append(
            [kind, " / ".join(f"{size:.2f}" for size in bits), *map(_spread, (dense, mixture, gaps)), *networks]
        )
    return table(heads, rows)


def _is(row: dict[str, Any], model: str, kind: str) -> bool:
    return bool(row["model"] == model and row["type"] == kind)


def _spread(values: list[float]) -> str:
    found = Estimate.of(values)
    assert found is not None
    return f"{found.mean:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


TABLE = DocTable("quantisation.md", "2026-11-22-quantisation.json", figures)


def test_the_table_is_what_was_measured() -> None:
    TABLE.check()


def test_what_was_measured() -> None:
    """Every model in every type and seed, each tensor but norms and routers in the type that was asked for."""
    found = TABLE.found
    assert len(found["rows"]) == len(MODELS) * (1 + len(kinds(found))) * len(seeds(found))
    assert len(seeds(found)) >= 2
    for row in found["rows"]:
        allowed = {"f32", row["type"]} | ({"q6_k"} if row["type"].startswith("q4") else set())
        assert set(row["tensors"]) <= allowed


def test_the_sentences_hold() -> None:
    """What the page says of the order of the types."""
    found = TABLE.found
    for model in MODELS:
        by_kind = {kind: fmean(lost(found, model, kind, "as_computed")) for kind in kinds(found)}
        assert max(by_kind, key=lambda kind: by_kind[kind]) == "q4_0"
        assert by_kind["q4_k"] < by_kind["q4_0"]
        assert max(by_kind["q8_0"], by_kind["q6_k"]) < 0.0005
    dense, mixture = (fmean(lost(found, model, "q4_0", "as_computed")) for model in MODELS)
    assert mixture < 0.4 * dense


if __name__ == "__main__":
    TABLE.write()
