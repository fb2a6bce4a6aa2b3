"""A session without members: it records what strategies ask and answers as the test says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from moekit.agents.members.member import MemberError
from moekit.agents.session import AnswerRequest, Call, Layer, QuorumFailed, Strategy
from moekit.core.errors import MoekitError
from moekit.core.messages import ChatOptions, Message, OnText, Reply, Usage

T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    name: str
    messages: tuple[Message, ...]
    options: ChatOptions
    stage: str
    sample: int

    @property
    def system(self) -> str:
        first = self.messages[0]
        return first.content if first.role == "system" else ""


def named(asked: Asked) -> str:
    """An answer that says who gave it, at which stage and as which sample."""
    return f"{asked.stage}|{asked.name}|{asked.sample}"


class FakeSession:
    """answer: the text of a reply, or raises. rooms: tokens by name; a token is a character here.

    own_temperature: who leaves it to the server.
    """

    def __init__(
        self,
        answer: Callable[[Asked], str] = named,
        *,
        strategies: Mapping[str, Strategy] | None = None,
        rooms: Mapping[str, int] | None = None,
        score: Callable[[str], float] = len,
        own_temperature: Sequence[str] = (),
    ) -> None:
        self._own_temperature = own_temperature
        self._answer, self._score = answer, score
        self._strategies, self._rooms = strategies or {}, rooms or {}
        self.asked: list[Asked] = []
        self.scored: list[tuple[tuple[Message, ...], str]] = []
        self.layers: list[tuple[str, int, int]] = []
        self.notes: list[tuple[str, str]] = []

    async def ask(
        self,
        name: str,
        messages: Sequence[Message],
        options: ChatOptions,
        *,
        stage: str,
        sample: int = 0,
        on_text: OnText | None = None,
    ) -> Reply:
        if name in self._strategies:
            request = AnswerRequest(messages=messages, options=options, stage=f"{stage}: {name}: ", on_text=on_text)
            return await self._strategies[name].answer(request, self)
        asked = Asked(name, tuple(messages), options, stage, sample)
        self.asked.append(asked)
        text = self._answer(asked)
        if on_text is not None:
            for piece in text:
                await on_text(piece)
        return Reply(text=text, usage=Usage(), finish_reason="stop")

    async def layer(self, calls: Sequence[Call], *, stage: str, quorum: int, stages_left: int = 0) -> Layer:
        self.layers.append((stage, quorum, stages_left))
        replies: list[Reply | None] = []
        failures = []
        for call in calls:
            try:
                if call.refused is not None:
                    raise call.refused
                reply = await self.ask(call.name, call.messages, call.options, stage=stage, sample=call.sample)
            except MoekitError as error:
                failures.append(str(error))
                replies.append(None)
            else:
                replies.append(reply)
        if len(calls) - len(failures) < quorum:
            raise QuorumFailed(" ".join(failures), tuple(failures))
        return Layer(tuple(replies), tuple(failures))

    async def score(self, name: str, messages: Sequence[Message], answer: str, *, stage: str) -> float:
        self.scored.append((tuple(messages), answer))
        return self._score(answer)

    def room(self, name: str, options: ChatOptions) -> int | None:
        return self._rooms.get(name)

    def estimated_tokens(self, name: str, messages: Sequence[Message]) -> int:
        return sum(len(message.content) for message in messages)

    def sets_temperature(self, name: str) -> bool:
        return name not in self._own_temperature

    async def counting(self, name: str, work: Callable[[], T]) -> T:
        return work()

    def refuse(self, name: str, messages: Sequence[Message], error: MemberError, *, stage: str) -> None:
        self.notes.append((stage, str(error)))

    def note(self, stage: str, text: str) -> None:
        self.notes.append((stage, text))


def failed(name: str) -> MemberError:
    return MemberError(f"{name} is down.", reason="status")


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def system(text: str) -> Message:
    return Message(role="system", content=text)


CONVERSATIONS: dict[str, tuple[Message, ...]] = {
    "one question": (user("Why is the sky blue?"),),
    "with a system message": (system("You are a pirate."), user("Why is the sky blue?")),
    "several turns": (user("Hello."), assistant("Hi!"), user("Why is the sky blue?")),
    "several turns with a system message": (
        system("You are a pirate.\n\nBe brief."),
        user("Hello."),
        assistant("Ahoy!"),
        user("Why is the sky blue?"),
    ),
}
