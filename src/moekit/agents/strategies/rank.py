"""Rank, then take the best answer or fuse the best ones.

Source: Jiang et al., LLM-Blender, arXiv 2306.02561: pairs compared in both orders, the top answers fused.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

from moekit.agents.config.strategy_configs import RankConfig
from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest, Call, Session
from moekit.agents.strategies.drafts import ask_fitted, drafts, fitted
from moekit.agents.strategies.member_prompts import to_judge, verdict_of
from moekit.core.messages import ChatOptions, Message, Reply


class Rank:
    """All members answer; a judge's comparisons, or a local model's probabilities, put the answers in order."""

    def __init__(self, config: RankConfig) -> None:
        self._config = config

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Take the best answer, or make one of the best. Raises QuorumFailed, and MemberError for the judge."""
        config, candidates = self._config, request.in_stage("candidates")
        layer = await session.layer(
            # The best candidate is what the user sees, unless something is made of the best.
            await drafts(session, config.members, candidates if config.then == "best" else candidates.as_draft()),
            stage=candidates.stage,
            quorum=config.quorum,
            stages_left=1 + (config.then == "fuse"),
        )
        answered = [
            (name, reply) for name, reply in zip(config.members, layer.replies, strict=True) if reply is not None
        ]
        order = await self._order(request.in_stage("ranking"), session, answered)
        best = [answered[place][1] for place in order]
        if config.then == "fuse":
            references = [reply.text.strip() for reply in best[: config.top]]
            name = config.aggregator or config.judge
            return await ask_fitted(session, name, request.in_stage("aggregator"), references=references)
        if request.on_text is not None:
            await request.on_text(best[0].text)
        return best[0]

    async def _order(
        self, request: AnswerRequest, session: Session, answered: Sequence[tuple[str, Reply]]
    ) -> list[int]:
        """Order the places in `answered`, the best first; of equals the one that stands first in the configuration."""
        if len(answered) == 1:
            return [0]
        texts = [reply.text.strip() for _, reply in answered]
        if self._config.by == "pairwise":
            points = await self._compare(request, session, texts)
            what = f"of {2 * len(texts) - 2} points"
        else:
            points = await self._score(request, session, texts)
            what = "nats per byte"
        order = sorted(range(len(texts)), key=lambda place: (-points[place], place))
        found = ", ".join(f"{answered[place][0]} {points[place]:.4g}" for place in order)
        session.note(request.stage, f"Ranked by {self._config.judge}: {found} ({what}).")
        return order

    async def _compare(self, request: AnswerRequest, session: Session, texts: Sequence[str]) -> list[float]:
        """Count the points of each answer: 1 a comparison that it wins. Each pair is shown in both orders.

        A comparison that failed, or of which nobody can tell what it says, gives half a point to both.
        """
        judge = self._config.judge
        judging = judge_request(request, session, judge)
        pairs = list(permutations(range(len(texts)), 2))
        calls = [
            Call(judge, await judge_messages(session, judge, judging, texts[one], texts[other]), judging.options)
            for one, other in pairs
        ]
        layer = await session.layer(calls, stage=request.stage, quorum=1, stages_left=int(self._config.then == "fuse"))
        points = [0.0] * len(texts)
        unclear = 0
        for (one, other), reply in zip(pairs, layer.replies, strict=True):
            share = None if reply is None else verdict_of(reply.text)
            unclear += share is None
            points[one] += 0.5 if share is None else share
            points[other] += 0.5 if share is None else 1 - share
        if unclear:
            session.note(request.stage, f"{unclear} of {len(pairs)} comparisons by {judge} decided nothing.")
        return points

    async def _score(self, request: AnswerRequest, session: Session, texts: Sequence[str]) -> list[float]:
        """Compute the log probability of each answer over its bytes, in nats: a sum would favour short answers."""
        scores, failed = [], []
        for text in texts:
            try:
                scores.append(await self._score_one(request, session, text))
            except MemberError as error:
                scores.append(float("-inf"))
                failed.append(error)
        if len(failed) == len(texts):
            raise failed[0]
        return scores

    async def _score_one(self, request: AnswerRequest, session: Session, text: str) -> float:
        def compose(kept: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
            return (*kept, Message(role="assistant", content=answers[0]))

        scored = replace(request, options=ChatOptions(max_tokens=1))
        *asked, answer = await fitted(session, self._config.judge, scored, references=[text], compose=compose, least=1)
        nats = await session.score(self._config.judge, asked, answer.content, stage=request.stage)
        return nats / max(len(answer.content.encode("utf-8", "replace")), 1)


def judge_request(request: AnswerRequest, session: Session, judge: str) -> AnswerRequest:
    """Make the request as a judge gets it: at temperature 0 where it may be chosen, and heard by nobody."""
    options = ChatOptions(temperature=0.0 if session.sets_temperature(judge) else None)
    return replace(request, options=options, on_text=None)


async def judge_messages(
    session: Session, judge: str, request: AnswerRequest, first: str, second: str
) -> tuple[Message, ...]:
    """Make the messages that have a judge compare two answers, cut to its context: both to the same length.

    Raises:
        MemberError: where nothing fits into the judge's context.
    """

    def compose(kept: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
        return to_judge(kept, answers[0], answers[1])

    return await fitted(session, judge, request, references=(first, second), compose=compose, least=1)
