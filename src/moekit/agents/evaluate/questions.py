"""The questions of an evaluation, from a JSONL file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

from moekit.agents.evaluate.matching import Match, extract
from moekit.core.errors import UsageError
from moekit.core.messages import Message
from moekit.core.validation import read_json_lines, validate


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


class Question(BaseModel):
    """One line: `question`, or `messages` for more than one turn, and the `answer` that is right, if there is one."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question: str | None = None
    messages: tuple[Message, ...] = ()
    answer: Annotated[str | None, BeforeValidator(_number_as_text)] = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "Question":
        if (self.question is None) == (not self.messages):
            raise ValueError('it needs either "question" or "messages"')
        if not self.asked[-1].content.strip():
            raise ValueError("the question is empty")
        if self.asked[-1].role != "user":
            raise ValueError('the last of "messages" must be the user\'s')
        return self

    @property
    def asked(self) -> tuple[Message, ...]:
        """What a model gets."""
        return self.messages or (Message(role="user", content=self.question or ""),)


def read_questions(path: Path, match: Match | None) -> tuple[Question, ...]:
    """Read the questions of a file; blank lines are skipped.

    match: how answers are compared; None where they are not needed.

    Raises UsageError, one sentence with the line's number, where the file or a line of it cannot be used.
    """
    questions = tuple(_question(data, where, match) for where, data in read_json_lines(path))
    if not questions:
        raise UsageError(f"{path} holds no question.")
    return questions


def _question(data: Any, where: str, match: Match | None) -> Question:
    question = validate(Question, data, where=where)
    if match is not None:
        if question.answer is None:
            raise UsageError(f'{where}: there is no "answer" to compare with.')
        if extract(question.answer, match) is None:
            raise UsageError(f"{where}: the answer {question.answer!r} holds nothing that --match {match} compares.")
    return question
