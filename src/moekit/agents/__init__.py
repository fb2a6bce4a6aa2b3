"""Whole models answering together: local ones, and any behind an OpenAI-compatible server.

Example:
    answer = moekit.ask("agents.yaml", "Why is the sky blue?")
    print(answer.text, answer.usage, answer.failures)
"""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from moekit.agents.config.agents_config import AgentsConfig, read_agents
from moekit.agents.engine import Engine
from moekit.agents.outcome.answer import Answer, AnswerFailed
from moekit.core.messages import ChatOptions, Message

__all__ = ["AgentsConfig", "Answer", "AnswerFailed", "Engine", "ask", "read_agents"]


def ask(
    config: AgentsConfig | str | Path,
    question: str | Sequence[Message],
    name: str | None = None,
    options: ChatOptions | None = None,
) -> Answer:
    """Ask models, alone or together, one question, and wait for the answer.

    An event loop that runs already asks `moekit.agents.Engine` instead, which also answers several questions at once.
    What the engine has to warn of goes to the standard `logging`, to loggers under `moekit.agents`.

    Args:
        config: who answers and how, or the YAML file that says so.
        question: a text, or a conversation that ends with it.
        name: of the strategy or the member that answers; None for the one that the configuration names as default.
        options: temperature, most tokens and so on; None for what each member's configuration says.

    Returns:
        The answer's text, the tokens and the money it took, and a trace of who said what and what failed on the way.

    Raises:
        UsageError: where the configuration is wrong, a model or key is missing, or there is no such name.
        AnswerFailed: where too few answered; it holds what was spent, and the trace.

    Examples:
        >>> import moekit
        >>> answer = moekit.ask("agents.yaml", "Why is the sky blue?")
        >>> print(answer.text, answer.usage.completion_tokens, answer.failures)
    """
    settings = config if isinstance(config, AgentsConfig) else read_agents(Path(config))
    messages = [Message(role="user", content=question)] if isinstance(question, str) else question

    async def answer() -> Answer:
        async with Engine(settings) as engine:
            return await engine.answer(messages, name, options)

    return asyncio.run(answer())
