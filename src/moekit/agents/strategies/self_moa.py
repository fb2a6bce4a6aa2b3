"""Self-MoA: several samples of one member, put together; quality of the answers outweighs their diversity.

Source: Li et al., arXiv 2502.00674, sections 3 (Self-MoA) and 5 (Self-MoA-Seq).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from moekit.agents.config.strategy_configs import SelfMoaConfig
from moekit.agents.session import Session
from moekit.agents.strategies.drafts import drafts, fitted, unseen
from moekit.agents.strategies.member_prompts import SYNTHESIZE, with_references
from moekit.core.messages import ChatOptions, Message, OnText, Reply


class SelfMixtureOfAgents:
    """Samples side by side, then one aggregation of all, or a window of them at a time."""

    def __init__(self, config: SelfMoaConfig) -> None:
        self._config = config
        self._aggregator = config.aggregator or config.member
        self._window = config.window if config.form == "sequential" else config.samples
        self._compose = partial(with_references, instruction=config.prompt or SYNTHESIZE)

    async def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        on_text: OnText | None = None,
    ) -> Reply:
        """The last aggregation. Raises QuorumFailed for too few samples, MemberError for the aggregator."""
        here = f"{stage}samples"
        names = [self._config.member] * self._config.samples
        layer = await session.layer(
            await drafts(session, names, messages, unseen(options), stage=here),
            stage=here,
            quorum=self._config.quorum,
            stages_left=len(windows(len(names), self._window)),
        )
        samples = [text.strip() for text in layer.texts]
        best: list[str] = []
        *before, last = windows(len(samples), self._window)
        for number, window in enumerate(before, 1):
            reply = await self._aggregate(
                messages, unseen(options), session, f"{stage}aggregation {number}", [*best, *samples[window]]
            )
            best = [reply.text.strip()]
        return await self._aggregate(messages, options, session, f"{stage}aggregator", [*best, *samples[last]], on_text)

    async def _aggregate(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        references: Sequence[str],
        on_text: OnText | None = None,
    ) -> Reply:
        request = await fitted(
            session, self._aggregator, messages, options, stage=stage, references=references, compose=self._compose
        )
        return await session.ask(self._aggregator, request, options, stage=stage, on_text=on_text)


def windows(samples: int, size: int) -> list[slice]:
    """Which samples each aggregation gets: `size` of them first, then one fewer, beside the best answer so far."""
    ends = [min(size, samples)]
    while ends[-1] < samples:
        ends.append(min(ends[-1] + size - 1, samples))
    return [slice(start, end) for start, end in pairwise([0, *ends])]
