"""Making a request fit into a member's context: what may be cut, in which order, and what was.

The question (the last user message and whatever follows it) and every system message of the user are never touched.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moekit.core.messages import Message

# Other models' answers keep so many characters as long as there are old turns that can go instead.
_KEPT = 400
# No tokenizer needs fewer tokens than one for so many characters of ordinary text: longer is not worth trying.
_CHARACTERS_PER_TOKEN = 8
_MARK = " […]"

Compose = Callable[[Sequence[Message], Sequence[str]], tuple[Message, ...]]
"""From a conversation and other models' answers to it, to the messages that are sent."""


@dataclass(frozen=True)
class Fitted:
    """A request that fits.

    Attributes:
        messages: to be sent.
        cuts: what was left out, a sentence each, for the trace.
    """

    messages: tuple[Message, ...]
    cuts: tuple[str, ...] = ()


def fit(
    messages: Sequence[Message],
    references: Sequence[str],
    compose: Compose,
    count: Callable[[Sequence[Message]], int],
    room: int,
    *,
    least: int = 0,
) -> Fitted:
    """Cut what is sent to at most `room` tokens by `count` unless the question alone is longer.

    First the longest references are shortened, all of them to one length; where that would leave less than a few
    hundred characters of each, the oldest turns go first. No more is cut than must be.
    least: characters that references keep in any case; 0: they may be left out altogether.
    """

    def fits(dropped: int, length: int) -> bool:
        return count(compose(_without(messages, turns[:dropped]), shortened(references, length))) <= room

    whole = compose(messages, references)
    if count(whole) <= room:
        return Fitted(whole)
    turns = _old_turns(messages)
    longest = max((len(reference) for reference in references), default=0)
    kept = min(max(_KEPT, least), max(longest, least))
    dropped = _first(range(len(turns) + 1), lambda number: fits(number, kept))
    if dropped is None:  # even without a past: as much of the references as fits, down to none
        dropped, lengths = len(turns), range(kept - 1, least - 1, -1)
    else:
        lengths = range(min(longest, max(kept, room * _CHARACTERS_PER_TOKEN)), kept - 1, -1)
    length = _first(lengths, lambda number: fits(dropped, number))
    if length is None:  # whoever is asked will say that it is too long
        length = least
    return Fitted(
        compose(_without(messages, turns[:dropped]), shortened(references, length)),
        tuple(_cuts(messages, turns[:dropped], references, length)),
    )


def shortened(references: Sequence[str], length: int) -> tuple[str, ...]:
    """Cut references longer than `length` characters to it, and mark them; give none at all for length 0."""
    if length == 0:
        return ()
    end = max(length - len(_MARK), 0)
    return tuple(text if len(text) <= length else text[:end].rstrip() + _MARK for text in references)


def _old_turns(messages: Sequence[Message]) -> list[frozenset[int]]:
    """Find the turns that may be dropped, oldest first, as places in `messages`: a user's message and its answers."""
    users = [place for place, message in enumerate(messages) if message.role == "user"]
    question = users[-1] if users else 0
    turns: list[list[int]] = []
    for place, message in enumerate(messages[:question]):
        if message.role == "user" or (message.role == "assistant" and not turns):
            turns.append([place])
        elif message.role == "assistant":
            turns[-1].append(place)
    return [frozenset(turn) for turn in turns]


def _without(messages: Sequence[Message], turns: Sequence[frozenset[int]]) -> list[Message]:
    gone = frozenset().union(*turns)
    return [message for place, message in enumerate(messages) if place not in gone]


def _first(candidates: range, fits: Callable[[int], bool]) -> int | None:
    """Find the first candidate that fits, where all after it do too; it has been tried, so that it fits in any case."""
    place = bisect_left(candidates, True, key=fits)
    return candidates[place] if place < len(candidates) else None


def _cuts(
    messages: Sequence[Message], turns: Sequence[frozenset[int]], references: Sequence[str], length: int
) -> list[str]:
    cuts = []
    if length == 0 and references:
        cuts.append(f"All {len(references)} answers to build on were left out to fit the context.")
    elif short := [f"{place} (of {len(text):,})" for place, text in enumerate(references, 1) if len(text) > length]:
        cuts.append(f"Answers cut to {length:,} characters to fit the context: {', '.join(short)}.")
    if turns:
        gone = sum(len(turn) for turn in turns)
        cuts.append(f"The oldest {gone} of {len(messages)} messages were left out to fit the context.")
    return cuts
