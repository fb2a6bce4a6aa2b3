"""The frame of every page that moekit writes: one HTML file with its style, charts and script, and nothing else.

A page's template extends `base.html`, and takes tables, charts and contestants' names from `parts.html`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import jinja2
from plotly.offline import get_plotlyjs

from moekit.comparison.report import escaping
from moekit.comparison.report.chart_parts import Chart, Look

_PACKAGE = "moekit.comparison.report"


@dataclass(frozen=True)
class Table:
    """A table of a page.

    headings: of the columns, the first that of the row headings. rows: their cells, the first the row's heading.
    highlight: the heading of the row that stands out.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    highlight: str | None = None


def page_of(
    template: str, *, charts: Sequence[Chart | None], looks: Sequence[Look], package: str = _PACKAGE, **content: object
) -> str:
    """Write one HTML document that needs neither a network nor a second file.

    Args:
        template: the name of one in the folder `templates` of `package`.
        charts: of the page; the template names them by their ids, and None stands for one that has no figure.
        looks: of the contestants, which `swatch` of `parts.html` knows by name.
        package: whose folder holds the template.
        content: what else the template names.
    """
    folders = [jinja2.PackageLoader(name) for name in dict.fromkeys((package, _PACKAGE))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(folders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = escaping.code_spans
    environment.filters["figure"] = escaping.figure_and_note
    style, script = (folders[-1].get_source(environment, name)[0] for name in ("page.css", "page.js"))
    drawn = {chart.id: chart for chart in charts if chart}
    plotly = get_plotlyjs()
    return environment.get_template(template).render(
        **content,
        looks={look.name: look for look in looks},
        charts=drawn,
        chart_data=escaping.script_json({id: [asdict(one) for one in chart.variants] for id, chart in drawn.items()}),
        style=style,
        script=script,
        plotly=plotly,
        policy=escaping.content_security_policy([plotly, script]),
    )
