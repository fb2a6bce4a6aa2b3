"""What a worker says to the process that started it: one JSON object a line, told apart by its `type`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from moekit.training import StepReport


class _Message(BaseModel):
    """Base of all messages: immutable, and a key that the other side does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StepTaken(_Message):
    """A training step was taken, or a point of an n-gram model's curve was counted."""

    type: Literal["step"] = "step"
    report: StepReport


class Calibrated(_Message):
    """What a contestant costs in its lane, in seconds. A worker that measures it goes on computing, as company.

    fixed_seconds: start, final measurement and decoding of one run. curve_seconds: one point of its curve.
    memory_bytes: the most that the worker held.
    """

    type: Literal["calibrated"] = "calibrated"
    step_seconds: float
    curve_seconds: float
    fixed_seconds: float
    memory_bytes: int


class Stopped(_Message):
    """The worker ended for a reason that is not the contestant's, such as a full disk or a stop: its last message."""

    type: Literal["stopped"] = "stopped"
    error: str
    exit_status: int


WorkerMessage = Annotated[StepTaken | Calibrated | Stopped, Field(discriminator="type")]
_ANY: TypeAdapter[StepTaken | Calibrated | Stopped] = TypeAdapter(WorkerMessage)


def write_message(message: StepTaken | Calibrated | Stopped) -> str:
    """Give the line, without its end, that `read_message` reads."""
    return message.model_dump_json()


def read_message(line: str) -> StepTaken | Calibrated | Stopped:
    """Read a line; raises pydantic's ValidationError where it is no message."""
    return _ANY.validate_json(line)
