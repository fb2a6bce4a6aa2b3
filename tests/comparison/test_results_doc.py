"""docs/results.md says what results.json holds: its tables are those of the schema.

`python -m tests.comparison.test_results_doc` writes them anew after the schema has changed.
"""

from typing import Any

from tests.doc_tables import ROOT, with_text

from moekit.comparison.results_schema import Results

DOC = ROOT / "docs" / "results.md"
START, END = "<!-- fields: from the schema -->\n", "<!-- end of fields -->\n"
ELSEWHERE = {
    "ModelConfig": "the model's configuration: `moekit.config.ModelConfig`",
    "LSTMConfig": "`LSTMConfig`",
    "NGramConfig": "`NGramConfig`",
}


def field_tables() -> str:
    """A table for each record, from the outermost in, as Markdown."""
    schema = Results.model_json_schema()
    records = {"Results": schema} | schema["$defs"]
    order, index = ["Results"], 0
    while index < len(order):
        for field in records[order[index]]["properties"].values():
            order += [name for name in _references(field) if name not in order and name not in ELSEWHERE]
        index += 1
    return "\n".join(_table(name, records[name]) for name in order)


def _table(name: str, record: dict[str, Any]) -> str:
    lines = [f"### {name}", ""]
    if about := record.get("description"):
        lines += [about, ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for field, schema in record["properties"].items():
        lines.append(f"| `{field}` | {_type(schema)} | {schema.get('description', '')} |")
    return "\n".join(lines) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """In words: `list of Run`, `number or null`."""
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_type(one) for one in choices)
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return ELSEWHERE.get(name, f"[{name}](#{name.lower()})")
    if "enum" in schema:
        return " or ".join(f'`"{value}"`' for value in schema["enum"])
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    if schema["type"] == "object":
        return f"{_type(schema['additionalProperties'])} by name"
    return str(schema["type"])


def _references(schema: object) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        return own + [name for key, value in schema.items() if key != "discriminator" for name in _references(value)]
    if isinstance(schema, list):
        return [name for value in schema for name in _references(value)]
    return []


def page() -> str:
    """The page with the tables of the schema between its marks."""
    return with_text(DOC.read_text(encoding="utf-8"), field_tables(), START, END)


def test_tables_are_those_of_the_schema() -> None:
    text = DOC.read_text(encoding="utf-8")
    assert START in text
    assert text == page(), "run: python -m tests.comparison.test_results_doc"


if __name__ == "__main__":
    DOC.write_text(page(), encoding="utf-8")
