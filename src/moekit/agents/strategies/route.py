"""Each question goes to one of several.

Sources: a router over whole models, Ong et al. (RouteLLM), arXiv 2406.18665, section 3; the likelihood of the question
under each model instead of a trained router as in the gates of Li et al. (Branch-Train-Merge), arXiv 2208.03306.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moekit.agents.config.strategy_configs import RouteConfig
from moekit.agents.members.member import MemberError
from moekit.agents.routing.classifier import Classifier
from moekit.agents.routing.examples import Examples, read_examples
from moekit.agents.routing.features import TfIdf, Vectors, normalized
from moekit.agents.routing.nearest import Nearest
from moekit.agents.session import AnswerRequest, QuorumFailed, Session
from moekit.agents.strategies.drafts import ask_fitted
from moekit.core.messages import Message, Reply

_EMBEDDED_AT_ONCE = 100
_SCORED = 1000
"""Characters of a question that likelihoods are taken of: enough to tell kinds of text apart, and soon computed."""

Judge = Callable[[Vectors], Vectors]
"""From vectors of questions to a score for each member, the greatest one being the best."""


class Route:
    """Asks the member that fits the latest user's message best, and the next best where that one fails.

    Where another member stands in, the trace says so; not after a part of an answer was passed on. Raises UsageError
    where there is something wrong with the examples; they are read, and a classifier is fitted, right away, or at the
    first question where a member makes their vectors.
    """

    def __init__(self, config: RouteConfig) -> None:
        self._config = config
        self._examples = read_examples(config) if config.by != "likelihood" else Examples(texts=(), places=())
        self._fitting = asyncio.Lock()
        self._vectors: list[list[float]] = []
        self._mean_F: Vectors | None = None
        self._judge: Judge | None = None
        if config.by != "likelihood" and config.embedding is None:
            self._tf_idf = TfIdf(self._examples.texts)
            self._judge = self._fitted(self._tf_idf(self._examples.texts))

    async def answer(self, request: AnswerRequest, session: Session) -> Reply:
        """Ask the member that fits best, and the next best where it fails. Raises what the last one does."""
        routing = request.in_stage("routing").stage
        scores = await self._scores(_question(request.messages), session, routing)
        names = self._config.members
        order = sorted(range(len(names)), key=lambda place: (-scores[place], place))
        found = ", ".join(f"{names[place]} {scores[place]:.4g}" for place in order)
        session.note(routing, f"Goes to {names[order[0]]} (by {self._config.by}: {found}).")
        return await _first_that_answers(request.in_stage("answer"), session, [names[place] for place in order])

    async def _scores(self, question: str, session: Session, stage: str) -> Sequence[float]:
        """Compute a score for each member, the greatest one being the best."""
        if self._config.by == "likelihood":
            return await self._likelihoods(question, session, stage)
        if self._config.embedding is None:
            x_1F = self._tf_idf([question])
        else:
            await self._fit(self._config.embedding, session, stage)
            x_1F = self._centered(await session.embed(self._config.embedding, [question], stage=stage))
        assert self._judge is not None
        scores: list[float] = self._judge(x_1F)[0].tolist()
        return scores

    async def _likelihoods(self, question: str, session: Session, stage: str) -> Sequence[float]:
        """Compute nats per byte of the question's beginning under each member or its judge; -inf for one that fails."""
        text = question[:_SCORED]
        found, failed = [], []
        for name in self._config.surprised:
            try:
                found.append(await session.score(name, (), text, stage=stage) / max(len(text.encode("utf-8")), 1))
            except MemberError as error:
                found.append(float("-inf"))
                failed.append(error)
        if len(failed) == len(found):
            raise failed[0]
        return found

    async def _fit(self, embedding: str, session: Session, stage: str) -> None:
        """Fit once, at the first question, which pays for the vectors; the others wait.

        Where it ends before all are made, the next one goes on with what is there.
        """
        async with self._fitting:
            if self._judge is not None:
                return
            texts, vectors = self._examples.texts, self._vectors
            while len(vectors) < len(texts):
                missing = texts[len(vectors) :][:_EMBEDDED_AT_ONCE]
                vectors += await session.embed(embedding, missing, stage=stage)
            self._mean_F = np.array(vectors).mean(0)
            # Others have answers under way, which would wait for a fit in the event loop.
            self._judge = await asyncio.to_thread(self._fitted, self._centered(vectors))
            vectors.clear()

    def _centered(self, vectors: Sequence[Sequence[float]]) -> Vectors:
        """Take off what is common to all examples: it says nothing, and is most of a language model's vector."""
        assert self._mean_F is not None
        return normalized(np.array(vectors) - self._mean_F)

    def _fitted(self, x_NF: Vectors) -> Judge:
        kind = Classifier if self._config.by == "classifier" else Nearest
        return kind(x_NF, self._examples.places, len(self._config.members))


async def _first_that_answers(request: AnswerRequest, session: Session, names: Sequence[str]) -> Reply:
    """Ask one name after the other until one answers, or until part of an answer was passed on."""
    on_text, passed_on = request.on_text, False

    async def pass_on(piece: str) -> None:
        nonlocal passed_on
        passed_on = True
        if on_text is not None:
            await on_text(piece)

    watched = replace(request, on_text=pass_on if on_text is not None else None)
    for name, following in zip(names, [*names[1:], None], strict=True):
        try:
            return await ask_fitted(session, name, watched)
        except (MemberError, QuorumFailed):
            if passed_on or following is None:
                raise
            session.note(request.stage, f"{following} stands in for {name}, which failed.")
    raise AssertionError("a route has members")


def _question(messages: Sequence[Message]) -> str:
    """Find what the user said last; without a user, all that was said."""
    asked = [message.content for message in messages if message.role == "user"]
    return asked[-1] if asked else "\n\n".join(message.content for message in messages)
