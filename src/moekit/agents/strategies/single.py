"""One member, as it is."""

from collections.abc import Sequence

from moekit.agents.config.strategy_configs import SingleConfig
from moekit.agents.session import Session
from moekit.agents.strategies.drafts import fitted
from moekit.core.messages import ChatOptions, Message, OnText, Reply


class Single:
    """Asks one member."""

    def __init__(self, config: SingleConfig) -> None:
        self._member = config.member

    async def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        on_text: OnText | None = None,
    ) -> Reply:
        """The member's answer. Raises MemberError."""
        stage = f"{stage}answer"
        request = await fitted(session, self._member, messages, options, stage=stage)
        return await session.ask(self._member, request, options, stage=stage, on_text=on_text)
