"""What of a local member happens beside the event loop, and what of its failures stays its own."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tests.agents.in_memory import QUESTION, config_of, now

from moekit.agents.calls.budget_ledger import Ledger
from moekit.agents.calls.member_calls import MemberCalls
from moekit.agents.calls.retried_call import Seat
from moekit.agents.config.agents_config import BudgetConfig
from moekit.agents.config.strategy_configs import SingleConfig
from moekit.agents.members.local import LocalMember
from moekit.agents.members.member import MemberError
from moekit.agents.outcome.trace import TraceRecorder
from moekit.agents.session import AnswerRequest, Session
from moekit.agents.strategies import build_strategy
from moekit.core.messages import ChatOptions, Message
from moekit.data.tokenizers import ByteTokenizer
from moekit.inference import LoadedModel

MAIN = threading.main_thread()
HISTORY = tuple(Message(role=role, content="x" * 40) for _ in range(8) for role in ("user", "assistant"))  # type: ignore[arg-type]
OPTIONS = ChatOptions(temperature=0.0, max_tokens=4)
REQUEST = AnswerRequest(messages=[*HISTORY, *QUESTION], options=OPTIONS)


class Runner:
    """Writes `a`, or fails as it is told."""

    vocab_size, context = 256, 200

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def new_cache(self) -> Any:
        return Cache()

    def prefill(self, cache: Any, tokens_T: Sequence[int], on_tokens: Callable[[int], None] | None = None) -> Any:
        if self.error is not None:
            raise self.error
        cache.length += len(tokens_T)
        return np.where(np.arange(256) == 97, np.float32(20), np.float32(0))

    def decode(self, caches: Sequence[Any], tokens_B: Sequence[int]) -> Any:
        return np.stack([self.prefill(cache, tokens_B[:1]) for cache in caches])


class Cache:
    length = 0

    def truncate(self, length: int) -> None:
        self.length = length


class Template:
    """Contents in a row. Notes who had it rendered; then calls `pause`."""

    def __init__(self, pause: Callable[[], object] = lambda: None) -> None:
        self.threads: list[threading.Thread] = []
        self.pause = pause

    def start(self) -> None:
        return

    def encode(self, said: Sequence[dict[str, str]], tokenizer: ByteTokenizer, variables: object) -> list[int]:
        self.threads.append(threading.current_thread())
        self.pause()
        return tokenizer.encode("".join(message["content"] for message in said))


def member_of(template: Template | None = None, runner: Runner | None = None) -> LocalMember:
    model = LoadedModel(
        runner=runner or Runner(),
        tokenizer=ByteTokenizer(),
        chat_template=template,  # type: ignore[arg-type]
        end_tokens=frozenset({0}),
    )
    embed = lambda texts: [[1.0] for _ in texts]  # noqa: E731
    return LocalMember("mine", model, identity="mine", defaults=OPTIONS, embed=embed)


def session_of(member: LocalMember) -> Session:
    config = config_of(["mine"])
    calls = MemberCalls(config, {"mine": Seat(member)}, None, Ledger(BudgetConfig()), TraceRecorder("test", now))
    return Session(config, calls, {}, now() + 30)


def test_templates_are_rendered_and_counted_beside_the_event_loop() -> None:
    template = Template()
    member = member_of(template)

    async def main() -> None:
        single = build_strategy("s", SingleConfig(member="mine"))
        reply = await single.answer(REQUEST, session_of(member))
        assert reply.text == "aaaa"
        tried = len(template.threads)
        assert tried > 3, "it takes several to find what fits"
        await session_of(member).score("mine", QUESTION, "Because.", stage="s")
        await session_of(member).embed("mine", ["x", "y"], stage="s")
        counted = len(template.threads)
        await member.complete([Message(role="user", content="not counted before")], OPTIONS)
        assert len(template.threads) == counted + 1 > tried + 1
        await member.close()

    asyncio.run(main())
    assert MAIN not in template.threads


def test_several_threads_count_at_once() -> None:
    barrier = threading.Barrier(4, timeout=20)
    member = member_of(Template(barrier.wait))

    async def main() -> None:
        asked = [(Message(role="user", content="x" * number),) for number in range(1, 5)]
        counts = await asyncio.gather(*(asyncio.to_thread(member.bound_tokens, each) for each in asked))
        assert counts == [1, 2, 3, 4]
        await member.close()

    asyncio.run(main())


def test_closing_ends_who_still_tries_what_fits() -> None:
    """Else the end of the process would wait for all that is left to try."""
    turn = threading.Semaphore(1)
    template = Template(lambda: turn.acquire(timeout=20))
    member = member_of(template)

    async def main() -> None:
        single = build_strategy("s", SingleConfig(member="mine"))
        task = asyncio.create_task(single.answer(REQUEST, session_of(member)))
        while len(template.threads) < 2:
            await asyncio.sleep(0.001)
        await member.close()
        turn.release(100)
        with pytest.raises(MemberError, match="mine: it was closed"):
            await task

    asyncio.run(main())
    assert len(template.threads) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate"),
            "mine: the model failed: CUDA out of memory.",
        ),
        (RuntimeError("shapes do not match"), "mine: the model failed: shapes do not match."),
        (MemoryError(), "mine: the model failed: out of memory."),
    ],
    ids=repr,
)
def test_a_model_that_breaks_is_a_member_that_fails(error: Exception, told: str) -> None:
    member = member_of(runner=Runner(error))

    async def main() -> None:
        with pytest.raises(MemberError) as found:
            await member.complete(QUESTION, OPTIONS)
        assert str(found.value) == told
        with pytest.raises(MemberError, match="the model failed"):
            await member.score(QUESTION, "Because.")
        await member.close()

    asyncio.run(main())


def test_what_the_listener_raises_is_no_failure_of_the_model() -> None:
    member = member_of()

    async def broken(piece: str) -> None:
        raise RuntimeError("a mistake of ours")

    async def main() -> None:
        with pytest.raises(RuntimeError, match="a mistake of ours"):
            await member.complete(QUESTION, OPTIONS, broken)
        await member.close()

    asyncio.run(main())
