"""What members answered, on disk, a JSON file a call: an answer can be had again without a call, or replayed."""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from pydantic import TypeAdapter, ValidationError

from moekit.agents.config.agents_config import CacheConfig
from moekit.agents.members.member import MemberError
from moekit.core.errors import MoekitError, UsageError
from moekit.core.files import replacing, write_text
from moekit.core.messages import ChatOptions, Message, Usage

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_USAGE = TypeAdapter(Usage)

Key = dict[str, Any]
"""All that the outcome of a call depends on, as JSON has it."""


def call_key(
    kind: str, identity: str, messages: Sequence[Message], options: ChatOptions, samples: Sequence[int]
) -> Key:
    """Make the key of a call. kind: what was asked for. samples: which of several outcomes, from the outside in."""
    asked = asdict(options) | {"stop": list(options.stop)}
    if not options.template_variables:
        del asked["template_variables"]  # which caches of before do not know
    return {
        "kind": kind,
        "identity": identity,
        "messages": [asdict(message) for message in messages],
        "options": asked,
        "samples": list(samples),
    }


class Cache:
    """A folder with what calls gave. Values: whatever a TypeAdapter writes as JSON.

    A file that cannot be read counts as missing: an error in a replay, and else its call is made and it is written
    again. Files are written while others go on, so that no answer waits for them; `close` waits for all. An answer that
    cannot be kept is as good as one that can: a warning is logged for the first, and nothing is raised.
    """

    def __init__(self, config: CacheConfig) -> None:
        self._folder, self._only = config.folder, config.mode == "only"
        self._warned = False
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._unwritten: dict[str, str] = {}
        # Whoever is in a turn or waits for one holds its lock.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def open(self) -> None:
        """Make the folder; raise UsageError where nothing can be written there. A replay only reads."""
        if not self._only:
            try:
                await asyncio.to_thread(_try_writing, self._folder)
            except (OSError, MoekitError) as error:
                raise UsageError(f"cache.folder: nothing can be kept in {self._folder}: {_told(error)}.") from error

    @asynccontextmanager
    async def alone(self, key: Key) -> AsyncIterator[None]:
        """Let one at a time through for each key: of several with the same, the first calls and the others find it.

        If the first fails or is cancelled, the next one calls.
        """
        turn = self._turns.setdefault(_digest(key), asyncio.Lock())
        async with turn:
            yield

    async def get(self, name: str, key: Key, of: TypeAdapter[T], older: Sequence[Key] = ()) -> tuple[T, Usage] | None:
        """Find what this call of member `name` gave and what that cost; None where it is not there.

        older: the keys under which older versions kept it. Raises MemberError in a replay where it is missing.
        """
        for each in (key, *older):
            digest = _digest(each)
            text = self._unwritten.get(digest) or await asyncio.to_thread(_read, self._path(digest))
            if (found := _parsed(text, each, of)) is not None:
                return found
        if self._only:
            raise MemberError(
                f"{name} was not asked this before: {self._path(_digest(key))} is not there or cannot be read, and "
                "a replay makes no calls.",
                reason="not cached",
                usage=Usage(),
            )
        return None

    def put(self, key: Key, value: T, usage: Usage, of: TypeAdapter[T]) -> None:
        """Keep what a call gave and what it cost."""
        digest = _digest(key)
        content = {"call": key, "value": of.dump_python(value, mode="json"), "usage": asdict(usage)}
        text = json.dumps(content, indent=1)
        self._unwritten[digest] = text
        self._writing[digest] = asyncio.create_task(self._write(digest, text, self._writing.get(digest)))

    async def close(self) -> None:
        """Wait until everything is written, or could not be."""
        await asyncio.gather(*self._writing.values(), return_exceptions=True)

    async def _write(self, digest: str, text: str, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        try:
            await asyncio.to_thread(write_text, self._path(digest), text)
        except (OSError, MoekitError) as error:
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "The cache does not keep all answers: cannot write %s: %s.",
                    self._path(digest),
                    _told(error),
                )
        finally:
            if self._writing.get(digest) is asyncio.current_task():  # else a later outcome is on its way
                del self._unwritten[digest], self._writing[digest]

    def _path(self, digest: str) -> Path:
        # Two letters a folder: some file systems are slow with very many files in one.
        return self._folder / digest[:2] / f"{digest}.json"


def _digest(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _try_writing(folder: Path) -> None:
    with replacing(folder / "probe") as probe:
        probe.write_bytes(b"")
    (folder / "probe").unlink()


def _told(error: OSError | MoekitError) -> str:
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error)).rstrip(".")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def _parsed(text: str | None, key: Key, of: TypeAdapter[T]) -> tuple[T, Usage] | None:
    """Read the value and its usage, if the text is that of this very call."""
    if text is None:
        return None
    try:
        content = json.loads(text)
        if not isinstance(content, dict) or content.get("call") != key:
            return None
        return of.validate_python(content["value"]), _USAGE.validate_python(content["usage"])
    except (ValueError, KeyError, RecursionError, ValidationError):
        return None
