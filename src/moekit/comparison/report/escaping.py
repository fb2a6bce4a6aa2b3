"""Putting text and data that nobody vouches for into a page: names, failure messages, the command.

Each place needs its own treatment: HTML (jinja2 escapes it, and `code_spans` keeps that), JSON inside a script element
(`script_json`), plotly's labels, which read a few tags and entities of their own (`plotly_text`), and GitHub's Markdown
(`markdown_text`, `markdown_code`, `markdown_block`). On top of that the page's content security policy allows no script
but the three that moekit wrote there, by hash, and no network at all.
"""

import base64
import hashlib
import json
import re

from markupsafe import Markup, escape

_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def script_json(value: object) -> Markup:
    """Write JSON that can stand in a script element: nothing in it can close the element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(re.sub("[<>&\u2028\u2029]", lambda match: _IN_SCRIPT[match[0]], text))


def plotly_text(text: str) -> str:
    """Escape `text` for a label of plotly, which otherwise reads tags, entities and %{...} in it."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return escaped.replace("%{", "%\u200b{")


def code_spans(text: str) -> Markup:
    """Escape `text`, with what stands between backticks as a code element; "95 %" stays on one line."""
    parts = text.replace(" %", "\u00a0%").split("`")
    if len(parts) % 2 == 0:  # an odd backtick, from a name: leave the text as it is
        return escape(text)
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else escape(part) for index, part in enumerate(parts)
    )


def figure_and_note(text: str) -> Markup:
    """Escape a cell of figures, with what stands in brackets or after a comma in small on a line of its own."""
    figure, *notes = re.split(r" (?=\()|, (?=\d)", text)
    return escape(figure) + Markup("").join(Markup("<small>{}</small>").format(note.strip()) for note in notes)


def markdown_text(text: str, *, cell: bool = False) -> str:
    """Escape a sentence for a line of GitHub's Markdown, or a `cell` of its tables; what is between backticks is code.

    Nothing in it becomes a tag, a link, a mention of somebody or of an issue, or a formula.
    """
    parts = " ".join(text.split()).split("`")
    if len(parts) % 2 == 0:  # an odd backtick, from a name
        return _markdown_plain(" ".join(text.split()))
    return "".join(
        markdown_code(part, cell=cell) if index % 2 else _markdown_plain(part) for index, part in enumerate(parts)
    )


def markdown_code(text: str, *, cell: bool = False) -> str:
    """Write a code span that holds `text` on one line; in a `cell` of a table a bar needs an escape even there."""
    line = " ".join(text.split())
    if not line:
        return ""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if "`" in (line[0], line[-1]) else ""
    return f"{fence}{space}{line.replace('|', chr(92) + '|') if cell else line}{space}{fence}"


def markdown_block(text: str) -> str:
    """Write a code block that holds all of `text`."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}\n{text}\n{fence}"


def _markdown_plain(text: str) -> str:
    escaped = re.sub(r"([\\`*_{}\[\]~|$])", r"\\\1", text.replace("&", "&amp;"))
    escaped = escaped.replace("<", "&lt;").replace(">", "&gt;")
    # A space of no width keeps GitHub from reading a mention, an issue or an address.
    return re.sub(r"(@|#|:(?=//)|www(?=\.))", "\\1\u200b", escaped)


def content_security_policy(scripts: list[str]) -> str:
    """Write a policy that lets the browser run exactly `scripts` (the text between the tags) and fetch nothing.

    Styles may be inline because plotly.js makes its own; images may be data because it draws heat maps so.
    """
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    return f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
