"""Whether an answer is right: what counts of an answer's text, so that two answers can be compared and counted."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal, get_args

Match = Literal["exact", "number", "choice"]
"""exact: the whole text, but for case, punctuation and articles. number: its last number. choice: its last letter."""

MATCHES: tuple[Match, ...] = get_args(Match)

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NUMBER = re.compile(r"(?<![\w.])-?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[+-]?\d{1,3}|\s*/\s*\d+)?", re.I)
# From the surest sign of a choice to the least: "the answer is B"; "(B)", "B." or "B" at the end of a line; any B.
_CHOICES = (
    re.compile(r"(?i:answer)\W*(?:is\b|\b)\W*([A-Z])\b"),
    re.compile(r"(?<!\w)\(?([A-Z])(?=[).:,]|\W*$)", re.M),
    re.compile(r"\b(?![AI] [a-z'])([A-Z])\b(?!')"),
)


def extract(text: str, match: Match) -> str | None:
    """Find what counts of an answer, in one form for all ways to write it; None where there is nothing of the kind."""
    return {"exact": _exact, "number": _last_number, "choice": _letter}[match](text)


def is_right(text: str, answer: str, match: Match) -> bool:
    """Tell whether `text` says the same as the `answer` that is right."""
    found = extract(text, match)
    return found is not None and found == extract(answer, match)


def majority(texts: Sequence[str], match: Match) -> str | None:
    """Find the answer that most samples agree on, of equals the earliest; None where none says anything."""
    counted = [(key, text) for text in texts if (key := extract(text, match)) is not None]
    if not counted:
        return None
    # Counter keeps the order of first appearance, and most_common is stable.
    ((winner, _),) = Counter(key for key, _ in counted).most_common(1)
    return next(text for key, text in counted if key == winner)


def _exact(text: str) -> str | None:
    """Put in lower case, without punctuation, articles and repeated spaces (as SQuAD's evaluation compares)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    words = "".join(" " if unicodedata.category(character)[0] in "PS" else character for character in folded)
    return " ".join((_ARTICLES.sub(" ", words).strip() or words).split()) or None


def _last_number(text: str) -> str | None:
    """Find the last number as an exact fraction: `1,000`, `1000.0` and `2000/2` are the same."""
    found = _NUMBER.findall(text)
    if not found:
        return None
    above, *below = re.sub(r"[,\s]", "", found[-1]).split("/")
    try:
        return str(Fraction(above) / Fraction(below[0] if below else 1))
    except (ValueError, ZeroDivisionError):  # longer than Python reads, or no number at all
        return None


def _letter(text: str) -> str | None:
    """Find the last letter that stands as a choice; an `A` or `I` that is a word of the sentence does not count."""
    if len(alone := text.strip().strip("().:*").upper()) == 1:
        return alone if "A" <= alone <= "Z" else None
    return next((found[-1] for choice in _CHOICES if (found := choice.findall(text))), None)
