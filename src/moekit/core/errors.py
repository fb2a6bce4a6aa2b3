"""The errors that a user is meant to read: each message is one sentence that says what to do."""

import difflib
from collections.abc import Iterable


class MoekitError(Exception):
    """Work failed for a reason that the user can understand; the command line exits with status 1."""

    exit_status = 1


class UsageError(MoekitError):
    """Arguments, configuration or input are unusable, found before any work started; exit status 2."""

    exit_status = 2


class TrainingFailed(MoekitError):
    """One training run cannot go on (its loss is no longer a number, or memory ran out)."""


def did_you_mean(word: str, valid: Iterable[str]) -> str:
    """Suggest the valid name nearest to `word`: `did you mean 'moe'?`; else list the valid names."""
    names = sorted(valid)
    nearest = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean {nearest[0]!r}?" if nearest else f"valid are {', '.join(names)}."
