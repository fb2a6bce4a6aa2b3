"""The cache on disk: the same answer again, nothing else, and never half a file."""

import asyncio
import errno
import json
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from tests.agents.in_memory import QUESTION, USAGE, reply

from moekit.agents.calls.answer_cache import Cache, Key, call_key
from moekit.agents.config.agents_config import CacheConfig
from moekit.agents.members.member import MemberError
from moekit.core.errors import MoekitError, UsageError
from moekit.core.messages import ChatOptions, Message, Reply, Usage

OF = TypeAdapter(Reply)
OPTIONS = ChatOptions(temperature=0.7, max_tokens=10, stop=("#",))


def key_of(**changes: Any) -> Key:
    given = {"kind": "chat", "identity": "http://host model", "messages": QUESTION, "options": OPTIONS, "samples": (0,)}
    return call_key(**(given | changes))


def with_cache(folder: Path, use: Callable[[Cache], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        cache = Cache(CacheConfig(folder=folder, **settings))
        await cache.open()
        try:
            return await use(cache)
        finally:
            await cache.close()

    return asyncio.run(main())


async def keep(cache: Cache) -> None:
    cache.put(key_of(), reply("Grüße 🙂\u2028"), USAGE, OF)


def find(folder: Path, key: Key, **settings: Any) -> Any:
    return with_cache(folder, lambda cache: cache.get("a", key, OF), **settings)


def test_what_was_kept_is_found_to_the_letter(tmp_path: Path) -> None:
    with_cache(tmp_path / "new" / "cache", keep)
    assert find(tmp_path / "new" / "cache", key_of()) == (reply("Grüße 🙂\u2028"), USAGE)
    (file,) = (tmp_path / "new" / "cache").rglob("*.json")
    assert json.loads(file.read_text())["value"]["text"] == "Grüße 🙂\u2028"


def test_it_is_found_at_once(tmp_path: Path) -> None:
    async def keep_and_find(cache: Cache) -> object:
        await keep(cache)
        return await cache.get("a", key_of(), OF)

    assert with_cache(tmp_path, keep_and_find) == (reply("Grüße 🙂\u2028"), USAGE)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "score"},
        {"identity": "http://host other"},
        {"messages": (*QUESTION, Message(role="assistant", content=""))},
        {"messages": (replace(QUESTION[0], role="system"),)},
        {"options": replace(OPTIONS, temperature=0.0)},
        {"options": replace(OPTIONS, max_tokens=11)},
        {"options": replace(OPTIONS, stop=())},
        {"options": replace(OPTIONS, seed=1)},
        {"options": replace(OPTIONS, top_p=0.5)},
        {"options": replace(OPTIONS, template_variables={"enable_thinking": False})},
        {"samples": (1,)},
        {"samples": (0, 0)},
    ],
)
def test_whatever_else_is_asked_is_another_call(change: dict[str, Any], tmp_path: Path) -> None:
    with_cache(tmp_path, keep)
    assert find(tmp_path, key_of(**change)) is None


def _swapped(text: str) -> str:
    content = json.loads(text)
    return json.dumps(content | {"call": content["call"] | {"identity": "other"}})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "[]",
        lambda text: "[" * 100_000,
        lambda text: text.replace('"stop"', '"bored"'),
        lambda text: text.replace('"usage": {', '"usage": 5, "x": {'),
        _swapped,
    ],
)
def test_a_spoilt_file_counts_as_missing_and_is_written_again(spoil: Callable[[str], str], tmp_path: Path) -> None:
    with_cache(tmp_path, keep)
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    file.write_text(spoil(file.read_text()))
    assert find(tmp_path, key_of()) is None
    with pytest.raises(MemberError, match=r"a was not asked this before: \S+\.json is not there or cannot be read"):
        find(tmp_path, key_of(), mode="only")
    with_cache(tmp_path, keep)
    assert file.read_bytes() == whole


def test_a_replay_says_what_is_missing(tmp_path: Path) -> None:
    with_cache(tmp_path, keep)
    assert find(tmp_path, key_of(), mode="only") is not None
    with pytest.raises(MemberError, match="a was not asked this before") as error:
        find(tmp_path, key_of(samples=(1,)), mode="only")
    assert (error.value.reason, error.value.retryable, error.value.usage) == ("not cached", False, Usage())


def test_many_at_once_and_the_same_twice(tmp_path: Path) -> None:
    async def keep_many(cache: Cache) -> None:
        for number in range(100):
            cache.put(key_of(samples=(number % 50,)), reply(str(number)), USAGE, OF)

    with_cache(tmp_path, keep_many)
    assert len(list(tmp_path.rglob("*"))) == 50 + len({file.parent for file in tmp_path.rglob("*.json")})
    assert find(tmp_path, key_of(samples=(7,))) == (reply("57"), USAGE)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"^cache\.folder: nothing can be kept in \S+: Permission denied\.$"):
        with_cache(tmp_path, keep)


def test_a_folder_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, told in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "cache", "Not a directory")):
        with pytest.raises(UsageError, match=rf"^cache\.folder: nothing can be kept in \S+: {told}\.$"):
            with_cache(folder, keep)
        # A replay writes nothing; what is missing is told when it is asked for.
        with_cache(folder, lambda cache: cache.close(), mode="only")


def test_looking_whether_it_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    with_cache(tmp_path / "cache", lambda cache: cache.close())
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), MoekitError("The disk is full while writing it.")], ids=repr
)
def test_what_cannot_be_kept_is_told_once_and_forgotten(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise error

    async def keep_some(cache: Cache) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("moekit.agents.calls.answer_cache.write_text", refuse)
            for _ in range(2):
                await keep(cache)
                await keep(cache)
                await cache.close()
            assert await cache.get("a", key_of(), OF) is None, "its text is not held for ever"
        await keep(cache)

    with_cache(tmp_path, keep_some)
    (warning,) = caplog.messages
    assert warning.startswith("The cache does not keep all answers: cannot write ")
    assert caplog.records[0].levelname == "WARNING"
    assert find(tmp_path, key_of()) == (reply("Grüße 🙂\u2028"), USAGE)
