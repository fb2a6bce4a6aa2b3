"""The evaluation itself: the strategy runs, its cost is measured, and each member gets what that cost buys.

A member's samples are put together by majority vote (self-consistency, Wang et al., arXiv 2203.11171) where answers can
be counted, else by itself (Self-MoA, arXiv 2502.00674).
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean

from moekit.agents.config.agents_config import AgentsConfig
from moekit.agents.config.strategy_configs import RankConfig, RouteConfig, SelfMoaConfig
from moekit.agents.engine import Engine
from moekit.agents.evaluate.costs import Costs, samples_for
from moekit.agents.evaluate.crowd import Comparison, Crowd, Sample
from moekit.agents.evaluate.evaluation_results import AgentsEvaluation, MemberResult
from moekit.agents.evaluate.intervals import Estimate, estimate
from moekit.agents.evaluate.matching import Match, is_right, majority
from moekit.agents.evaluate.questions import Question
from moekit.agents.outcome.answer import Answer
from moekit.agents.session import Strategy
from moekit.agents.strategies.member_prompts import verdict_of, with_references
from moekit.agents.strategies.self_moa import SelfMixtureOfAgents
from moekit.core.errors import MoekitError, UsageError, did_you_mean
from moekit.core.messages import Message, Usage
from moekit.core.progress import Progress, no_progress

# The end of a line, a number, a full stop.
_NUMBERING_TOKENS = 3


def _answering(config: AgentsConfig, name: str) -> Iterator[str]:
    """Yield the members whose answers `name` uses: not those that only judge or make vectors."""
    if name in config.members:
        yield name
        return
    match config.strategies[name]:
        case RouteConfig(members=names):
            pass
        case RankConfig(then="best", members=names):
            pass
        case RankConfig(members=members, aggregator=aggregator, judge=judge):
            names = (*members, aggregator or judge)
        case strategy:
            names = strategy.names()
    for part in names:
        yield from _answering(config, part)


async def evaluate(
    config: AgentsConfig,
    questions: Sequence[Question],
    *,
    name: str | None = None,
    match: Match = "exact",
    judge: str | None = None,
    progress: Progress = no_progress,
) -> AgentsEvaluation:
    """Measure the strategy `name`, by default the configuration's, against each member that it asks.

    match: how answers are compared with those of the questions. judge: a member or strategy that compares the answers
    of both instead, each pair in both orders; the questions' own are then not needed. With a cache, what was asked
    before is not asked again, so that an evaluation that was broken off goes on where it was. Raises UsageError for
    unknown names or endpoints that are not there; MoekitError where no answer or no usage came at all.
    """
    name = name or config.default_name
    for asked in (name, judge or name):
        if asked not in config.names:
            raise UsageError(f"There is no strategy or member {asked!r}: {did_you_mean(asked, config.names)}")
    async with Engine(config) as engine:
        await engine.check()
        contest = _Contest(Crowd(engine, progress), questions, name, match, judge)
        return await contest.run()


class _Contest:
    def __init__(self, crowd: Crowd, questions: Sequence[Question], name: str, match: Match, judge: str | None) -> None:
        self._crowd, self._questions = crowd, questions
        self._name, self._match, self._judge = name, match, judge
        config = crowd.engine.config
        self._members = [member for member in dict.fromkeys(_answering(config, name)) if member != name]
        self._costs = Costs(config, config.members_of(name))

    async def run(self) -> AgentsEvaluation:
        engine = self._crowd.engine
        asks = [partial(engine.answer, question.asked, self._name) for question in self._questions]
        answers = await self._crowd.answers(self._name, asks)
        cost = fmean(self._costs.of(answer.trace) for answer in answers if answer is not None)
        if self._members and not _told_usage(answers):
            raise MoekitError(f"{self._name}: its members told no usage, so that no cost can be made equal.")
        texts = [None if answer is None else answer.text for answer in answers]
        members = [await self._member(member, texts, cost) for member in self._members]
        return AgentsEvaluation(
            strategy=self._name,
            questions=len(self._questions),
            measure="accuracy" if self._judge is None else "win rate",
            match=self._match if self._judge is None else None,
            judge=self._judge,
            unit=self._costs.unit,
            cost=cost,
            accuracy=estimate(self._right(texts)) if self._judge is None else None,
            failures=texts.count(None),
            members=tuple(members),
            reasons=tuple(self._crowd.reasons),
        )

    async def _member(self, member: str, texts: Sequence[str | None], budget: float) -> MemberResult:
        """Measure the member with as many samples as the budget of a question buys."""
        first = await self._sample(member, [0])
        one = fmean(self._costs.of(answer.trace) for answer in first if answer is not None)
        if not _told_usage(first):
            raise MoekitError(f"{member} told no usage, so that its cost cannot be made equal.")
        if self._judge is None:
            return await self._by_votes(member, first, samples_for(budget, lambda count: count * one), texts)
        return await self._by_judge(member, first, samples_for(budget, self._joined_cost(member, first, one)), texts)

    async def _by_votes(
        self, member: str, first: list[Answer | None], count: int, texts: Sequence[str | None]
    ) -> MemberResult:
        answers = first + await self._sample(member, range(1, count))
        by_question = [answers[place :: len(texts)] for place in range(len(texts))]
        said = [majority([one.text for one in some if one is not None], self._match) for some in by_question]
        right, own = self._right(texts), self._right(said)
        return MemberResult(
            name=member,
            samples=count,
            cost=self._cost_a_question(answers),
            accuracy=estimate(own),
            difference=estimate([one - other for one, other in zip(right, own, strict=True)]),
            failures=sum(not any(some) for some in by_question),
        )

    async def _by_judge(
        self, member: str, first: list[Answer | None], count: int, texts: Sequence[str | None]
    ) -> MemberResult:
        answers = first if count == 1 else await self._join(member, count)
        said = [None if answer is None else answer.text for answer in answers]
        win_rate, undecided = await self._compare(member, texts, said)
        return MemberResult(
            name=member,
            samples=count,
            cost=self._cost_a_question(answers),
            win_rate=win_rate,
            failures=said.count(None),
            undecided=undecided,
        )

    async def _run(self, strategy: Strategy, messages: Sequence[Message]) -> Answer:
        return await self._crowd.engine.run(strategy, messages, title="evaluation")

    async def _sample(self, member: str, numbers: Sequence[int]) -> list[Answer | None]:
        """Ask every question for the first of these samples, then every question for the next."""
        asks = [
            partial(self._run, Sample(member, number), question.asked)
            for number in numbers
            for question in self._questions
        ]
        return await self._crowd.answers(f"{member}, {len(numbers)} more" if 0 not in numbers else member, asks)

    async def _join(self, member: str, count: int) -> list[Answer | None]:
        strategy = SelfMixtureOfAgents(SelfMoaConfig(member=member, samples=count))
        asks = [partial(self._run, strategy, question.asked) for question in self._questions]
        return await self._crowd.answers(f"{member}, {count} samples put together", asks)

    def _cost_a_question(self, answers: Sequence[Answer | None]) -> float:
        return sum(self._costs.of(answer.trace) for answer in answers if answer is not None) / len(self._questions)

    def _joined_cost(self, member: str, answers: Sequence[Answer | None], one: float) -> Callable[[int], float]:
        """Make what computes the cost of so many samples, where the member then reads all and writes one more answer.

        A sample is read in as many tokens as it was written in; only our instruction's tokens are told from its bytes.
        """
        calls = [call for answer in answers if answer is not None for call in answer.trace.calls]
        written = fmean(call.usage.completion_tokens for call in calls)
        tokens_per_byte = written / fmean(_bytes(call.text or "") for call in calls)
        (instruction,) = with_references((), ("",))
        prompt = fmean(call.usage.prompt_tokens for call in calls) + tokens_per_byte * _bytes(instruction.content)
        reference = written + _NUMBERING_TOKENS

        def cost(count: int) -> float:
            read = math.ceil(prompt + count * reference)
            return count * one + self._costs.of_call(
                member, Usage(prompt_tokens=read, completion_tokens=math.ceil(written))
            )

        return cost

    def _right(self, texts: Sequence[str | None]) -> list[float]:
        """Score each answer: 1 for a right one, 0 for each wrong or missing one."""
        pairs = zip(texts, self._questions, strict=True)
        return [float(text is not None and is_right(text, one.answer or "", self._match)) for text, one in pairs]

    async def _compare(
        self, member: str, ours: Sequence[str | None], theirs: Sequence[str | None]
    ) -> tuple[Estimate, int]:
        """Compute the share of wins of our answers over theirs, and count the comparisons that said nothing."""
        assert self._judge is not None
        asks, places = [], []
        for place, (question, one, other) in enumerate(zip(self._questions, ours, theirs, strict=True)):
            if one is not None and other is not None:
                asks.append(partial(self._run, Comparison(self._judge, one, other), question.asked))
                asks.append(partial(self._run, Comparison(self._judge, other, one), question.asked))
                places.append(place)
        answers = await self._crowd.answers(f"{self._judge} compares with {member}", asks)
        verdicts = [None if answer is None else verdict_of(answer.text) for answer in answers]
        # Who has no answer loses against who has one.
        shares = [0.5 * (1 + (one is not None) - (other is not None)) for one, other in zip(ours, theirs, strict=True)]
        for place, there, back in zip(places, verdicts[::2], verdicts[1::2], strict=True):
            shares[place] = 0.5 * ((0.5 if there is None else there) + (0.5 if back is None else 1 - back))
        return estimate(shares), verdicts.count(None)


def _told_usage(answers: Iterable[Answer | None]) -> bool:
    return any(call.usage.total_tokens for answer in answers if answer is not None for call in answer.trace.calls)


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "replace"))
