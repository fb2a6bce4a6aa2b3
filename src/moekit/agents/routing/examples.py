"""Questions of which it is known who should answer them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moekit.agents.config.strategy_configs import RouteConfig
from moekit.config import Config
from moekit.core.errors import UsageError, did_you_mean
from moekit.core.validation import read_json_lines, validate


@dataclass(frozen=True)
class Examples:
    """Questions, and who should answer them.

    Attributes:
        texts: the questions.
        places: for each text, the place of its member among those of the strategy.
    """

    texts: tuple[str, ...]
    places: tuple[int, ...]


class _Line(Config):
    """A line of the file."""

    text: str
    member: str


def read_examples(config: RouteConfig) -> Examples:
    """Read the examples that stand in the configuration, then those in its file.

    Raises UsageError where the file cannot be read, a line names another member, or a member has no example: no
    question would ever go to it.
    """
    found = [(text, name) for name, texts in config.examples.items() for text in texts]
    if config.data is not None:
        found += _read(config.data, config.members)
    named = {name for _, name in found}
    for name in config.members:
        if name not in named:
            raise UsageError(f"No example goes to {name}, so that no question would; give it some or leave it out.")
    return Examples(
        texts=tuple(text for text, _ in found), places=tuple(config.members.index(name) for _, name in found)
    )


def _read(path: Path, members: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for where, row in read_json_lines(path):
        example = validate(_Line, row, where=where)
        if example.member not in members:
            raise UsageError(f"{where}: there is no member {example.member!r}; {did_you_mean(example.member, members)}")
        yield example.text, example.member
