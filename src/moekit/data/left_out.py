"""What was given and is not used: counted with its reason, told to the user, and kept with the corpus."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from moekit.core.formatting import bytes_text

Say = Callable[[str], None]

_NAMED = 8
"""So many domains of one reason are named in a message, the others counted."""


def ignore(message: str) -> None:
    """Ignore a message: the default for functions that may have something to tell the user."""


@dataclass(frozen=True)
class Reason:
    """Why text is not used.

    Attributes:
        text: the reason, as it follows "3 texts: ".
        way_on: what the user can do about it; empty where there is nothing to do.
        is_loss: whether text of the user's is lost; else it is only counted, as what is hidden or empty.
    """

    text: str
    way_on: str = ""
    is_loss: bool = True


@dataclass(frozen=True)
class LeftOut:
    """Text of one domain that was left out for one reason.

    Attributes:
        domain: the domain that it would belong to.
        reason: why, in words.
        texts: the number of files, rows or passages.
        bytes: their bytes, of files as they lie there.
        example: the name of one of them.
    """

    domain: str
    reason: str
    texts: int
    bytes: int
    example: str


@dataclass
class Tally:
    """Counts what is left out, by domain and reason."""

    _found: dict[tuple[str, Reason], tuple[int, int, str]] = field(default_factory=dict)

    def add(self, domain: str, reason: Reason, size: int, example: str) -> None:
        """Count one text of `size` bytes."""
        texts, total, first = self._found.get((domain, reason), (0, 0, example))
        self._found[domain, reason] = texts + 1, total + size, first

    def counts(self) -> dict[Reason, int]:
        """Count texts by reason, in order of the reasons' words."""
        counts: dict[Reason, int] = {}
        for (_, reason), (texts, _, _) in sorted(self._found.items(), key=lambda item: item[0][1].text):
            counts[reason] = counts.get(reason, 0) + texts
        return counts

    def summary(self) -> str:
        """Write `2 empty, 3 not in UTF-8`; empty where nothing was left out."""
        return ", ".join(f"{count} {reason.text}" for reason, count in self.counts().items())

    def ways_on(self) -> str:
        """Write what the user can do, a sentence a reason, with an example of each."""
        return " ".join(
            f"{self._example(reason)} is {reason.text}: {reason.way_on}." for reason in self.counts() if reason.way_on
        )

    def losses(self) -> tuple[LeftOut, ...]:
        """Give what was lost, by domain and reason."""
        return tuple(
            LeftOut(domain, reason.text, texts, size, example)
            for (domain, reason), (texts, size, example) in sorted(
                self._found.items(), key=lambda item: (item[0][0], item[0][1].text)
            )
            if reason.is_loss
        )

    def tell(self, source: str, say: Say) -> None:
        """Say a line for each reason by which text was lost, and one for all that was passed over."""
        counts = self.counts()
        passed = ", ".join(f"{count} {reason.text}" for reason, count in counts.items() if not reason.is_loss)
        if passed:
            say(f"Skipped in {source}: {passed}.")
        for reason, count in counts.items():
            if reason.is_loss:
                size = sum(size for (_, why), (_, size, _) in self._found.items() if why == reason)
                way_on = f"; {reason.way_on}" if reason.way_on else ""
                texts = "1 text" if count == 1 else f"{count:,} texts"
                say(
                    f"Left out of {source}: {texts}, {bytes_text(size)}, {reason.text}, such as "
                    f"{self._example(reason)}{way_on}."
                )

    def _example(self, reason: Reason) -> str:
        return next(example for (_, why), (_, _, example) in self._found.items() if why == reason)


def named(names: Iterable[str]) -> str:
    """Write `'a', 'b' and 3 more`."""
    known = sorted(names)
    more = f" and {len(known) - _NAMED:,} more" if len(known) > _NAMED else ""
    return ", ".join(map(repr, known[:_NAMED])) + more
