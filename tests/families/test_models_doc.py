"""docs/models.md lists the published configurations with the totals that come out of them.

`python tests/families/test_models_doc.py` writes its table anew after a preset has changed.
"""

from pathlib import Path

from moekit.core.formatting import bytes_text, parameters_text
from moekit.families import presets
from moekit.planning import plan_model

DOC = Path(__file__).parents[2] / "docs" / "models.md"
START, END = "<!-- presets: generated -->\n", "<!-- end of presets -->\n"


def table() -> str:
    lines = [
        "| name | parameters | published | active | published | cache a token | source |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, preset in presets().items():
        plan = plan_model(name, preset.config)
        published = [parameters_text(figure) if figure else "" for figure in (preset.parameters, preset.active)]
        active = parameters_text(plan.params_active) if plan.params_active < plan.params_total else ""
        cache = bytes_text(plan.kv_cache_bytes_per_token) if plan.kv_cache_bytes_per_token else ""
        cells = (
            f"`{name}`",
            parameters_text(plan.params_total),
            published[0],
            active,
            published[1],
            cache,
            preset.source,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    before, rest = text.split(START)
    return before + START + table() + END + rest.split(END)[1]


def test_the_table_is_that_of_the_presets() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert text == written(text)


if __name__ == "__main__":
    DOC.write_text(written(DOC.read_text(encoding="utf-8")), encoding="utf-8")
