"""docs/generate.md says what the benchmark's JSON says: its tables of speeds, one a kind of machine, are made of it.

`python -m tests.inference.test_cpu_inference_doc` writes it anew after another run.
"""

from typing import Any

import pytest
from tests.doc_tables import DocTable, table

PROMPTS = (128, 512, 2048)


def figures(found: dict[str, Any]) -> str:
    """A row for each model and type."""
    heads = ["model", "share", "decode, × llama.cpp", "prefill, × llama.cpp", "prefill, × transformers", "batch 8"]
    return table(heads, [row(result["shape"], result["type"], result["ratios"]) for result in found["results"]])


def row(shape: str, kind: str, ratios: dict[str, float]) -> list[str]:
    def prefills(peer: str) -> str:
        return " / ".join(
            f"{ratios[key]:.2f}" for key in (f"prefill_{size} / {peer}" for size in PROMPTS) if key in ratios
        )

    single = [f"{ratios[key]:.2f}" for key in ("share of bandwidth", "decode / llama.cpp")]
    batch = f"{ratios['batch / single']:.2f}"
    return [f"{shape} {kind}", *single, prefills("llama.cpp"), prefills("transformers"), batch]


def beside_two(found: dict[str, Any]) -> str:
    """A row for each model and type, where ik_llama.cpp was measured, too."""
    heads = [
        "model",
        "share",
        "decode, × llama.cpp",
        "× ik_llama.cpp",
        "prefill, × llama.cpp",
        "× ik_llama.cpp",
        "batch 8",
    ]

    def cells(result: dict[str, Any]) -> list[str]:
        ratios = result["ratios"]
        of_peers = [
            " / ".join(f"{ratios[f'{key} / {peer}']:.2f}" for key in keys)
            for keys in (["decode"], ["prefill_128", "prefill_512"])
            for peer in ("llama.cpp", "ik_llama.cpp")
        ]
        share, batch = (f"{ratios[key]:.2f}" for key in ("share of bandwidth", "batch / single"))
        return [f"{result['shape']} {result['type']}", share, *of_peers, batch]

    return table(heads, map(cells, found["results"]))


TABLES = [
    DocTable("generate.md", "2026-11-22-cpu-inference.json", figures),
    DocTable("generate.md", "2026-11-30-cpu-inference.json", beside_two, "<!-- figures: Zen 4 -->\n"),
]


@pytest.mark.parametrize("of", TABLES, ids=lambda of: of.results.stem)
def test_the_tables_are_what_was_measured(of: DocTable) -> None:
    of.check()


if __name__ == "__main__":
    for each in TABLES:
        each.write()
