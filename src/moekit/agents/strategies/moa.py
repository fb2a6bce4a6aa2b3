"""Mixture of agents: layers of proposers, each building on the layer before, and an aggregator.

Source: Wang et al., arXiv 2406.04692, section 2.2 and table 1; placement and numbering as in togethercomputer/MoA.
"""

from collections.abc import Sequence
from functools import partial

from moekit.agents.config.strategy_configs import MoaConfig
from moekit.agents.session import AnswerRequest, Session
from moekit.agents.strategies.drafts import ask_fitted, drafts
from moekit.agents.strategies.member_prompts import SYNTHESIZE, with_references
from moekit.core.messages import Reply


class MixtureOfAgents:
    """The first layer gets the conversation as it is; every later one and the aggregator the last layer's answers too.

    Proposers that failed are left out and the others numbered without a gap.
    """

    def __init__(self, config: MoaConfig) -> None:
        self._config = config
        self._compose = partial(with_references, instruction=config.prompt or SYNTHESIZE)

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask layer after layer, then the aggregator. Raises QuorumFailed of a layer, MemberError of the last."""
        references: Sequence[str] = ()
        for number, names in enumerate(self._config.layers, 1):
            draft = request.in_stage(f"layer {number}").as_draft()
            calls = await drafts(session, names, draft, references=references, compose=self._compose)
            layer = await session.layer(
                calls, stage=draft.stage, quorum=self._config.quorum, stages_left=len(self._config.layers) - number + 1
            )
            references = [text.strip() for text in layer.texts]
        last = request.in_stage("aggregator")
        return await ask_fitted(session, self._config.aggregator, last, references=references, compose=self._compose)
