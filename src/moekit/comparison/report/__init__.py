"""The report of one comparison: a single HTML file that needs neither a network nor a second file.

report_page: what stands on it. page_frame: what every page has. page_tables and key_differences: its tables.
learning_curve_chart, leverage_charts and detail_charts: its figures. chart_parts: what charts are made of. escaping:
how text and data that nobody vouches for get into a page without becoming part of its code.
"""

from pathlib import Path

from moekit.comparison.report.report_page import render
from moekit.comparison.results_schema import Results
from moekit.core import files

__all__ = ["render", "write_report"]


def write_report(results: Results, path: Path) -> None:
    """Write the report of `results` to `path`, all of it or nothing; about 5 MB, most of it plotly.js."""
    files.write_text(path, render(results))
