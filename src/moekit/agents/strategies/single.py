"""One member, as it is."""

from moekit.agents.config.strategy_configs import SingleConfig
from moekit.agents.session import AnswerRequest, Session
from moekit.agents.strategies.drafts import ask_fitted
from moekit.core.messages import Reply


class Single:
    """Asks one member."""

    def __init__(self, config: SingleConfig) -> None:
        self._member = config.member

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask the member. Raises MemberError."""
        return await ask_fitted(session, self._member, request.in_stage("answer"))
