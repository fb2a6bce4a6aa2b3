"""The short form of a report, for a pull request: some forty lines of GitHub's Markdown."""

from dataclasses import astuple

from moekit.comparison.analysis.summary_table import SUMMARY_HEADINGS, summary_table
from moekit.comparison.analysis.verdict import judge
from moekit.comparison.report.escaping import markdown_block, markdown_code, markdown_text
from moekit.comparison.results_schema import Results
from moekit.core import formatting

_WARNINGS = 6
"""How many things that weaken the evidence are told one by one."""


def render_markdown(results: Results) -> str:
    """Write verdict, table, what weakens the evidence, machine and command."""
    verdict = judge(results)
    lines = [f"### {markdown_text(verdict.answer)}", "", markdown_text(_capital(verdict.because)), ""]
    lines += [*_table(results), ""]
    weak = [check.text for check in verdict.checks if not check.good]
    good = len(verdict.checks) - len(weak)
    lines += [f"- ⚠ {markdown_text(text)}" for text in weak[:_WARNINGS]]
    if len(weak) > _WARNINGS:
        lines.append(f"- ⚠ {len(weak) - _WARNINGS} more in the report")
    lines.append(f"- {good} of {len(verdict.checks)} checks of the evidence hold.")
    lines += ["", *_measured(results), "", markdown_block(results.command)]
    return "\n".join(lines) + "\n"


def _table(results: Results) -> list[str]:
    """Write a row a contestant."""
    headings = astuple(SUMMARY_HEADINGS)
    rows = [headings, ("---", *["--:"] * (len(headings) - 1))]
    for name, *figures in map(astuple, summary_table(results)):
        rows.append((markdown_code(name, cell=True), *(markdown_text(figure, cell=True) for figure in figures)))
    return [f"| {' | '.join(row)} |" for row in rows]


def _measured(results: Results) -> list[str]:
    """Say in one paragraph what was trained, on what, and when."""
    settings, machine, corpus = results.settings, results.machine, results.corpus
    seeds = len(settings.seeds)
    facts = [
        f"Size {settings.size}",
        f"{formatting.count_text(settings.tokens)} training tokens a run",
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}",
        f"learning rate {settings.learning_rate:g}",
        f"{settings.held_out_tokens:,} held-out tokens",
        f"corpus {corpus.name} ({corpus.sha256[:12]})",
        f"{machine.cpu}, {machine.cores} cores, {machine.precision}",
        f"moekit {results.moekit}, torch {machine.torch}",
        results.created[:10],
    ]
    ratios = f"Ratios are to the baseline `{results.baseline}`"
    brackets = "." if seeds == 1 else ", paired by seed; what the brackets hold is said in docs/results.md."
    return [markdown_text(f"{', '.join(facts)}. {ratios}{brackets}")]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
