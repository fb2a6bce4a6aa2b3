"""What strategies have in common: requests that fit, and options for what the user does not get to see."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from moekit.agents.members.member import MemberError
from moekit.agents.session import Call, Session
from moekit.agents.strategies.member_prompts import with_references
from moekit.agents.strategies.trimming import Compose, fit
from moekit.core.messages import ChatOptions, Message


async def fitted(
    session: Session,
    name: str,
    messages: Sequence[Message],
    options: ChatOptions,
    *,
    stage: str,
    references: Sequence[str] = (),
    compose: Compose = with_references,
    least: int = 0,
) -> tuple[Message, ...]:
    """What `name` is sent, cut to its context as `trimming.fit` does; the trace is told of cuts.

    Raises MemberError, and tells the trace, where a member cannot count or has no room for any prompt.
    """
    count = partial(session.estimated_tokens, name)
    try:
        room = session.room(name, options)
        if room is None:
            return compose(messages, references)
        found = await session.counting(name, partial(fit, messages, references, compose, count, room, least=least))
    except MemberError as error:
        session.refuse(name, compose(messages, references), error, stage=stage)
        raise
    for cut in found.cuts:
        session.note(stage, f"{name}: {cut}")
    return found.messages


def unseen(options: ChatOptions) -> ChatOptions:
    """Options for what the user does not get to see: stop sequences end the answer, not what it is made of."""
    return replace(options, stop=())


async def drafts(
    session: Session,
    names: Sequence[str],
    messages: Sequence[Message],
    options: ChatOptions,
    *,
    stage: str,
    references: Sequence[str] = (),
    compose: Compose = with_references,
) -> list[Call]:
    """A call for each name; a name that stands there several times is asked for as many samples.

    Where nothing can be made that a name could be sent, its calls say so, and are failures of their layer.
    """
    requests: dict[str, tuple[Message, ...]] = {}
    refused: dict[str, MemberError] = {}
    for name in dict.fromkeys(names):
        try:
            requests[name] = await fitted(
                session, name, messages, options, stage=stage, references=references, compose=compose
            )
        except MemberError as error:
            requests[name], refused[name] = compose(messages, references), error
    return [
        Call(name, requests[name], options, sample=names[:place].count(name), refused=refused.get(name))
        for place, name in enumerate(names)
    ]
