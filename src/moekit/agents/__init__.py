"""Whole models answering together: local ones, and any behind an OpenAI-compatible server.

from pathlib import Path

from moekit.agents import ask, read_agents

answer = ask(read_agents(Path("agents.yaml")), "Why is the sky blue?")
print(answer.text, answer.usage, answer.failures)
"""

import asyncio
from collections.abc import Sequence

from moekit.agents.config.agents_config import AgentsConfig, read_agents
from moekit.agents.engine import Engine
from moekit.agents.outcome.answer import Answer, AnswerFailed
from moekit.core.messages import ChatOptions, Message

__all__ = ["AgentsConfig", "Answer", "AnswerFailed", "Engine", "ask", "read_agents"]


def ask(
    config: AgentsConfig,
    question: str | Sequence[Message],
    name: str | None = None,
    options: ChatOptions | None = None,
) -> Answer:
    """One answer, for those without an event loop: `Engine.answer` of an engine that lives as long as it takes.

    question: a text, or a conversation that ends with it. Raises UsageError, AnswerFailed.
    """
    messages = [Message(role="user", content=question)] if isinstance(question, str) else question

    async def answer() -> Answer:
        async with Engine(config) as engine:
            return await engine.answer(messages, name, options)

    return asyncio.run(answer())
