"""What strategies have in common: requests that fit into a member's context, and drafts for a layer."""

from collections.abc import Sequence
from functools import partial

from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest, Call, Session
from moekit.agents.strategies.member_prompts import with_references
from moekit.agents.strategies.trimming import Compose, fit
from moekit.core.messages import Message, Reply


async def fitted(
    session: Session,
    name: str,
    request: AnswerRequest,
    *,
    references: Sequence[str] = (),
    compose: Compose = with_references,
    least: int = 0,
) -> tuple[Message, ...]:
    """Make the messages that `name` is sent, cut to its context as `trimming.fit` does; tell the trace what was cut.

    Args:
        session: of the answer under way.
        name: a member or a strategy.
        request: whose conversation, options and stage hold.
        references: answers of other models, which the messages build on.
        compose: puts the conversation and the references together.
        least: characters that each reference keeps in any case.

    Raises:
        MemberError: where a member cannot count tokens or has no room for any prompt; the trace is told of it.
    """
    count = partial(session.estimated_tokens, name)
    try:
        room = session.room(name, request.options)
        if room is None:
            return compose(request.messages, references)
        found = await session.counting(
            name, partial(fit, request.messages, references, compose, count, room, least=least)
        )
    except MemberError as error:
        session.refuse(name, compose(request.messages, references), error, stage=request.stage)
        raise
    for cut in found.cuts:
        session.note(request.stage, f"{name}: {cut}")
    return found.messages


async def ask_fitted(
    session: Session,
    name: str,
    request: AnswerRequest,
    *,
    references: Sequence[str] = (),
    compose: Compose = with_references,
    sample: int = 0,
) -> Reply:
    """Ask `name` what fits into its context; arguments and errors are those of `fitted` and `Session.ask`."""
    messages = await fitted(session, name, request, references=references, compose=compose)
    return await session.ask(
        name, messages, request.options, stage=request.stage, sample=sample, on_text=request.on_text
    )


async def drafts(
    session: Session,
    names: Sequence[str],
    request: AnswerRequest,
    *,
    references: Sequence[str] = (),
    compose: Compose = with_references,
) -> list[Call]:
    """Make a call for each name; a name that stands there several times is asked for as many samples.

    Where no messages can be made for a name, its calls say so and count as failures of their layer.
    """
    messages: dict[str, tuple[Message, ...]] = {}
    refused: dict[str, MemberError] = {}
    for name in dict.fromkeys(names):
        try:
            messages[name] = await fitted(session, name, request, references=references, compose=compose)
        except MemberError as error:
            messages[name], refused[name] = compose(request.messages, references), error
    return [
        Call(name, messages[name], request.options, sample=names[:place].count(name), refused=refused.get(name))
        for place, name in enumerate(names)
    ]
