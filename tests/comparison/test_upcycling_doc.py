"""docs/upcycling.md says what the benchmark's JSON says: its table is made of it.

`python -m tests.comparison.test_upcycling_doc` writes it anew after another run.
"""

from statistics import fmean
from typing import Any

from tests.doc_tables import DocTable, table

from moekit.comparison.estimates import Estimate


def figures(found: dict[str, Any]) -> str:
    """A row for each arm: means over the seeds, and at the end the difference from `dense`, paired by seed."""
    seeds = sorted({row["seed"] for row in found["rows"]})
    of_arm = {arm: {row["seed"]: row for row in found["rows"] if row["arm"] == arm} for arm in _arms(found)}
    shares = [0.0, *found["settings"]["shares"]]
    heads = ["arm", "parameters", "FLOPs a token", "steps", *(f"{share:.0%}" for share in shares), "against dense"]
    lines = []
    for arm, rows in of_arm.items():
        curves = [[point["bits_per_byte"] for point in rows[seed]["points"]] for seed in seeds]
        gaps = [rows[seed]["points"][-1]["bits_per_byte"] - _last(of_arm["dense"][seed]) for seed in seeds]
        one = rows[seeds[0]]
        lines.append(
            [
                arm,
                f"{one['params_total'] / 1e6:.2f} M",
                f"{one['flops_per_token'] / 1e6:.2f} M",
                str(one["points"][-1]["step"]),
                *(f"{fmean(values):.3f}" for values in zip(*curves, strict=True)),
                "" if arm == "dense" else _gap(gaps),
            ]
        )
    return table(heads, lines)


def _arms(found: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(row["arm"] for row in found["rows"]))


def _last(row: dict[str, Any]) -> float:
    return float(row["points"][-1]["bits_per_byte"])


def _gap(values: list[float]) -> str:
    found = Estimate.of(values)
    assert found is not None
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


TABLE = DocTable("upcycling.md", "2026-11-22-upcycling.json", figures)


def test_the_table_is_what_was_measured() -> None:
    TABLE.check()


def test_all_arms_spent_the_same() -> None:
    """As many FLOPs on top as the settings say, to a step; all arms of a seed from the same model where they can."""
    found = TABLE.found
    settings = found["settings"]
    dense = next(row for row in found["rows"] if row["arm"] == "dense")
    budget = round(settings["extra"] * settings["steps"]) * dense["flops_per_token"]
    starts: dict[int, float] = {row["seed"]: row["points"][0]["bits_per_byte"] for row in found["rows"][:1]}
    for row in found["rows"]:
        spent = row["points"][-1]["step"] * row["flops_per_token"]
        assert budget - row["flops_per_token"] < spent <= budget
        if row["arm"] in ("dense", "never stopped", "copy"):
            start = starts.setdefault(row["seed"], row["points"][0]["bits_per_byte"])
            assert abs(row["points"][0]["bits_per_byte"] - start) < 1e-3
    assert len(_arms(found)) == 6
    assert len(found["rows"]) == 6 * len({row["seed"] for row in found["rows"]})


if __name__ == "__main__":
    TABLE.write()
