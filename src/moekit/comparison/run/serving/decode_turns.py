"""Models that decode in turns, so that whatever else the machine does meets all of them alike.

V vocabulary.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from moekit.core.energy import EnergyMeter
from moekit.inference.runner import Runner
from moekit.models import LSTMLanguageModel

Key = TypeVar("Key")
Turn = Callable[[int], list[float]]
"""Decodes so many tokens and gives the milliseconds of each; one that comes before them is not timed, since its
weights and keys lie where the model before has left them."""

FEWEST_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class Turns:
    """What a model's turns took; the names are those of `Decode`.

    Attributes:
        round_ms: milliseconds of each token, a list a round.
        joules_per_token: of the machine's processors and memory; None where the system does not tell.
    """

    round_ms: list[list[float]]
    joules_per_token: float | None


def in_turns(
    models: Mapping[Key, Turn],
    *,
    tokens: int,
    rounds: int,
    seconds: float,
    energy: Callable[[], EnergyMeter] = EnergyMeter,
) -> dict[Key, Turns]:
    """Let each model decode `tokens` tokens a round; every second round goes backwards.

    Args:
        models: by whatever names them.
        tokens: of a turn.
        rounds: the most that there are.
        seconds: after which no round begins, once there were FEWEST_ROUNDS.
        energy: makes what counts joules from then on.
    """
    ends = time.monotonic() + seconds
    found: dict[Key, list[list[float]]] = {key: [] for key in models}
    joules: dict[Key, list[float | None]] = {key: [] for key in models}
    order = list(models)
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.monotonic() >= ends:
            break
        for key in order if number % 2 == 0 else reversed(order):
            meter = energy()
            found[key].append(models[key](tokens))
            joules[key].append(meter.joules())
    return {key: Turns(round_ms=found[key], joules_per_token=_per_token(joules[key], tokens)) for key in models}


def _per_token(joules: Sequence[float | None], tokens: int) -> float | None:
    """Give joules of a token; one comes before those of each turn, which is not timed and takes as much."""
    told = [one for one in joules if one is not None]
    return sum(told) / (len(told) * (tokens + 1)) if told and len(told) == len(joules) else None


class GreedyTurns:
    """Turns of a runner: each continues the same prompt with the same tokens, the most probable ones."""

    def __init__(self, runner: Runner, prompt: Sequence[int]) -> None:
        self.runner, self.length = runner, len(prompt)
        self.cache = runner.new_cache()
        self.first = int(runner.prefill(self.cache, prompt).argmax())
        self.tokens: list[int] = []

    def __call__(self, tokens: int) -> list[float]:
        """Decode; `self.tokens` then holds what came after the prompt, the first token included."""
        self.cache.truncate(self.length)
        self.tokens = [self.first]
        milliseconds = []
        for _ in range(tokens + 1):
            begin = time.perf_counter()
            self.tokens.append(int(self.runner.decode([self.cache], self.tokens[-1:])[0].argmax()))
            milliseconds.append((time.perf_counter() - begin) * 1e3)
        return milliseconds[1:]


class GivenTurns:
    """Turns of a runner on tokens that are given, one after the other and round again, after a context that stays."""

    def __init__(self, runner: Runner, context: Sequence[int], tokens: Sequence[int]) -> None:
        self.runner, self.length, self.tokens = runner, len(context), tokens
        self.cache = runner.new_cache()
        runner.prefill(self.cache, context)
        self.place = 0

    def __call__(self, tokens: int) -> list[float]:
        """Decode the next tokens."""
        self.cache.truncate(self.length)
        milliseconds = []
        for _ in range(tokens + 1):
            token = self.tokens[self.place % len(self.tokens)]
            self.place += 1
            begin = time.perf_counter()
            self.runner.decode([self.cache], [token])
            milliseconds.append((time.perf_counter() - begin) * 1e3)
        return milliseconds[1:]


class LSTMTurns:
    """Turns of an LSTM, like GreedyTurns: its state takes the place of a KV cache."""

    def __init__(self, model: LSTMLanguageModel, prompt: Sequence[int]) -> None:
        self.model, self.state = model, model.new_state(1)
        with torch.inference_mode():
            self.first_11 = model(torch.tensor([prompt]), state=self.state)[:, -1:].argmax(-1)

    @torch.inference_mode()
    def __call__(self, tokens: int) -> list[float]:
        """Decode."""
        state, next_11 = copy.deepcopy(self.state), self.first_11
        milliseconds = []
        for _ in range(tokens + 1):
            begin = time.perf_counter()
            next_11 = self.model(next_11, state=state)[:, -1:].argmax(-1)
            milliseconds.append((time.perf_counter() - begin) * 1e3)
        return milliseconds[1:]

    @property
    def state_bytes(self) -> int:
        """The memory that the state takes."""
        return sum(part.nbytes for part in (*self.state.hidden, *self.state.cell))
