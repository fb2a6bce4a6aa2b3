"""The report of one comparison: an HTML file that needs neither a network nor a second file, and a short form of it.

report_page: what stands on the page. report_markdown: the short form. page_frame: what every page has. page_tables and
key_differences: its tables. learning_curve_chart, leverage_charts and detail_charts: its figures. chart_parts: what
charts are made of. escaping: how text and data that nobody vouches for get there without becoming part of the code.
"""

from pathlib import Path

from moekit.comparison.report.report_markdown import render_markdown
from moekit.comparison.report.report_page import render
from moekit.comparison.results_schema import Results
from moekit.core import files

__all__ = ["render", "render_markdown", "write_markdown", "write_report"]


def write_report(results: Results, path: Path) -> None:
    """Write the report of `results` to `path`, all of it or nothing; about 5 MB, most of it plotly.js."""
    files.write_text(path, render(results))


def write_markdown(results: Results, path: Path) -> None:
    """Write the short form of the report of `results` to `path`, all of it or nothing."""
    files.write_text(path, render_markdown(results))
