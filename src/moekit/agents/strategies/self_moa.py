"""Self-MoA: several samples of one member, put together; quality of the answers outweighs their diversity.

Source: Li et al., arXiv 2502.00674, sections 3 (Self-MoA) and 5 (Self-MoA-Seq).
"""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from moekit.agents.config.strategy_configs import SelfMoaConfig
from moekit.agents.session import AnswerRequest, Session
from moekit.agents.strategies.drafts import ask_fitted, drafts
from moekit.agents.strategies.member_prompts import SYNTHESIZE, with_references
from moekit.core.messages import Reply


class SelfMixtureOfAgents:
    """Samples side by side, then one aggregation of all, or a window of them at a time."""

    def __init__(self, config: SelfMoaConfig) -> None:
        self._config = config
        self._aggregator = config.aggregator or config.member
        self._window = config.window if config.form == "sequential" else config.samples
        self._compose = partial(with_references, instruction=config.prompt or SYNTHESIZE)

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask for samples, then put them together. Raises QuorumFailed of the samples, MemberError of the last."""
        draft = request.in_stage("samples").as_draft()
        names = [self._config.member] * self._config.samples
        layer = await session.layer(
            await drafts(session, names, draft),
            stage=draft.stage,
            quorum=self._config.quorum,
            stages_left=len(windows(len(names), self._window)),
        )
        samples = [text.strip() for text in layer.texts]
        best: list[str] = []
        *before, last = windows(len(samples), self._window)
        for number, window in enumerate(before, 1):
            draft = request.in_stage(f"aggregation {number}").as_draft()
            reply = await self._aggregate(draft, session, [*best, *samples[window]])
            best = [reply.text.strip()]
        return await self._aggregate(request.in_stage("aggregator"), session, [*best, *samples[last]])

    async def _aggregate(self, request: AnswerRequest, session: Session, references: Sequence[str]) -> Reply:
        return await ask_fitted(session, self._aggregator, request, references=references, compose=self._compose)


def windows(samples: int, size: int) -> list[slice]:
    """Share out the samples among aggregations: `size` of them first, then one fewer, beside the best answer so far."""
    ends = [min(size, samples)]
    while ends[-1] < samples:
        ends.append(min(ends[-1] + size - 1, samples))
    return [slice(start, end) for start, end in pairwise([0, *ends])]
