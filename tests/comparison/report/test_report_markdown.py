"""The short form: a table where GitHub shows one, some forty lines, and text that stays text."""

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from tests.comparison.report.test_report import HOSTILE, hostile
from tests.comparison.sample_results import DENSE, contestant, everyone, failed_run, model, results, sample

from moekit.comparison.report import render_markdown, write_markdown
from moekit.comparison.report.escaping import markdown_block, markdown_code, markdown_text
from moekit.comparison.results_schema import Results


def parsed(text: str) -> list[Token]:
    """Read Markdown as GitHub does, tables and tags included."""
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text)


def shown(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def table_of(text: str) -> list[list[str]]:
    """The cells of the only table, as a reader sees them."""
    tokens = parsed(text)
    assert [token.type for token in tokens].count("table_open") == 1
    rows: list[list[str]] = []
    for index, token in enumerate(tokens):
        if token.type == "tr_open":
            rows.append([])
        if token.type in ("td_open", "th_open"):
            rows[-1].append(shown(tokens[index + 1]))
    return rows


@pytest.mark.parametrize("comparison", [sample(), everyone(), hostile()], ids=["five", "everyone", "hostile"])
def test_it_holds_one_table_with_a_row_a_contestant(comparison: Results) -> None:
    rows = table_of(render_markdown(comparison))
    assert [" ".join(one.name.split()) for one in comparison.contestants] == [row[0] for row in rows[1:]]
    assert {len(row) for row in rows} == {10}
    assert rows[0][:4] == ["Contestant", "Bits per byte", "Less baseline's", "FLOPs to baseline's level"]


def test_it_is_short_and_says_what_a_reviewer_asks() -> None:
    comparison = everyone()
    text = render_markdown(comparison)
    assert len(text.splitlines()) <= 40
    for fact in ("Mixture of experts for each FLOP", comparison.machine.cpu, comparison.command, "1 of 3 runs failed"):
        assert fact in text
    fences = [token.content for token in parsed(text) if token.type == "fence"]
    assert fences == [comparison.command + "\n"]


def test_many_warnings_are_counted() -> None:
    names = [f"model-{index}" for index in range(12)]
    made = results(
        [contestant(name, model([DENSE]), [failed_run(0)], total=1, active=1) for name in names], seeds=[0],
        baseline="model-0",
    )  # fmt: skip
    text = render_markdown(made)
    assert len([line for line in text.splitlines() if line.startswith("- ⚠")]) == 7
    assert re.search(r"^- ⚠ \d+ more in the report$", text, re.M)


def test_hostile_text_stays_text() -> None:
    """No tag, link or picture comes out, whatever a name, a message or a command holds."""
    kinds = {child.type for token in parsed(render_markdown(hostile())) for child in [token, *(token.children or [])]}
    assert not {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open"} & kinds


WORDS = (*HOSTILE, "a|b", "@everyone #12 http://x.org www.x.org a@b.c", "[x](y) ![z](w) *a* _b_ ~~c~~ $d$ \\", "``a`")


@pytest.mark.parametrize("text", WORDS)
def test_escaping(text: str) -> None:
    """What is read back is what was written, in a sentence, a cell, a code span and a block."""
    line = " ".join(text.split())
    [_, inline, _] = parsed(markdown_text(text))
    assert shown(inline).replace("\u200b", "") == line.replace("`", "") or line.count("`") % 2
    assert not re.search(r"@\w|#\d|://|www\.", "".join(c.content for c in inline.children or [] if c.type == "text"))
    cell = f"| {markdown_code(text, cell=True)} | {markdown_text(text, cell=True)} |"
    assert [row[0] for row in table_of(f"| a | b |\n|---|---|\n{cell}\n")] == ["a", line]
    assert shown(parsed(markdown_code(text))[1]) == line
    assert [token.content for token in parsed(markdown_block(text))] == [text + "\n"]


def test_file_appears_whole(tmp_path: Path) -> None:
    write_markdown(sample(), tmp_path / "deep" / "report.md")
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["report.md"]
    assert (tmp_path / "deep" / "report.md").read_text(encoding="utf-8") == render_markdown(sample())


@pytest.mark.parametrize("comparison", [sample((0,)), results([], seeds=[0])], ids=["one seed", "nobody"])
def test_short_form_of_little(comparison: Results) -> None:
    assert len(table_of(render_markdown(comparison))) == 1 + len(comparison.contestants)
