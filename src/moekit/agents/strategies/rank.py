"""Rank, then take the best answer or fuse the best ones.

Source: Jiang et al., LLM-Blender, arXiv 2306.02561: pairs compared in both orders, the top answers fused.
"""

from collections.abc import Sequence
from itertools import permutations

from moekit.agents.config.strategy_configs import RankConfig
from moekit.agents.members.member import MemberError
from moekit.agents.session import Call, Session
from moekit.agents.strategies.drafts import drafts, fitted, unseen
from moekit.agents.strategies.member_prompts import to_judge, verdict_of
from moekit.core.messages import ChatOptions, Message, OnText, Reply


class Rank:
    """All members answer; a judge's comparisons, or a local model's probabilities, put the answers in order."""

    def __init__(self, config: RankConfig) -> None:
        self._config = config

    async def answer(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        on_text: OnText | None = None,
    ) -> Reply:
        """The best answer, or what is made of the best. Raises QuorumFailed, and MemberError for the judge."""
        config, here = self._config, f"{stage}candidates"
        shown = options if config.then == "best" else unseen(options)
        layer = await session.layer(
            await drafts(session, config.members, messages, shown, stage=here),
            stage=here,
            quorum=config.quorum,
            stages_left=1 + (config.then == "fuse"),
        )
        answered = [
            (name, reply) for name, reply in zip(config.members, layer.replies, strict=True) if reply is not None
        ]
        order = await self._order(messages, options, session, f"{stage}ranking", answered)
        best = [answered[place][1] for place in order]
        if config.then == "fuse":
            return await self._fuse(messages, options, session, f"{stage}aggregator", best[: config.top], on_text)
        if on_text is not None:
            await on_text(best[0].text)
        return best[0]

    async def _order(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        answered: Sequence[tuple[str, Reply]],
    ) -> list[int]:
        """Places in `answered`, the best first; of equals the one that stands first in the configuration."""
        if len(answered) == 1:
            return [0]
        texts = [reply.text.strip() for _, reply in answered]
        if self._config.by == "pairwise":
            points = await self._compare(messages, options, session, stage, texts)
            what = f"of {2 * len(texts) - 2} points"
        else:
            points = await self._score(messages, session, stage, texts)
            what = "nats per byte"
        order = sorted(range(len(texts)), key=lambda place: (-points[place], place))
        found = ", ".join(f"{answered[place][0]} {points[place]:.4g}" for place in order)
        session.note(stage, f"Ranked by {self._config.judge}: {found} ({what}).")
        return order

    async def _compare(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        texts: Sequence[str],
    ) -> list[float]:
        """Points of each answer: 1 a comparison that it wins. Each pair is shown in both orders.

        A comparison that failed, or of which nobody can tell what it says, gives half a point to both.
        """
        judge = self._config.judge
        asking = judging(session, judge)
        pairs = list(permutations(range(len(texts)), 2))
        calls = [
            Call(judge, await judged(session, judge, messages, texts[one], texts[other], asking, stage=stage), asking)
            for one, other in pairs
        ]
        layer = await session.layer(calls, stage=stage, quorum=1, stages_left=int(self._config.then == "fuse"))
        points = [0.0] * len(texts)
        unclear = 0
        for (one, other), reply in zip(pairs, layer.replies, strict=True):
            share = None if reply is None else verdict_of(reply.text)
            unclear += share is None
            points[one] += 0.5 if share is None else share
            points[other] += 0.5 if share is None else 1 - share
        if unclear:
            session.note(stage, f"{unclear} of {len(pairs)} comparisons by {judge} decided nothing.")
        return points

    async def _score(
        self, messages: Sequence[Message], session: Session, stage: str, texts: Sequence[str]
    ) -> list[float]:
        """Log probability of each answer over its bytes, in nats: the sum alone would favour short answers."""
        scores, failed = [], []
        for text in texts:
            try:
                scores.append(await self._score_one(messages, session, stage, text))
            except MemberError as error:
                scores.append(float("-inf"))
                failed.append(error)
        if len(failed) == len(texts):
            raise failed[0]
        return scores

    async def _score_one(self, messages: Sequence[Message], session: Session, stage: str, text: str) -> float:
        def compose(kept: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
            return (*kept, Message(role="assistant", content=answers[0]))

        *asked, answer = await fitted(
            session,
            self._config.judge,
            messages,
            ChatOptions(max_tokens=1),
            stage=stage,
            references=[text],
            compose=compose,
            least=1,
        )
        nats = await session.score(self._config.judge, asked, answer.content, stage=stage)
        return nats / max(len(answer.content.encode("utf-8", "replace")), 1)

    async def _fuse(
        self,
        messages: Sequence[Message],
        options: ChatOptions,
        session: Session,
        stage: str,
        best: Sequence[Reply],
        on_text: OnText | None,
    ) -> Reply:
        name = self._config.aggregator or self._config.judge
        references = [reply.text.strip() for reply in best]
        request = await fitted(session, name, messages, options, stage=stage, references=references)
        return await session.ask(name, request, options, stage=stage, on_text=on_text)


def judging(session: Session, judge: str) -> ChatOptions:
    """How a judge is asked: at temperature 0 where it may be chosen."""
    return ChatOptions(temperature=0.0 if session.sets_temperature(judge) else None)


async def judged(
    session: Session,
    judge: str,
    messages: Sequence[Message],
    first: str,
    second: str,
    options: ChatOptions,
    *,
    stage: str,
) -> tuple[Message, ...]:
    """The request that has a judge compare two answers, cut to its context: both to the same length."""

    def compose(kept: Sequence[Message], answers: Sequence[str]) -> tuple[Message, ...]:
        return to_judge(kept, answers[0], answers[1])

    return await fitted(
        session, judge, messages, options, stage=stage, references=(first, second), compose=compose, least=1
    )
