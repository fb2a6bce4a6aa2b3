"""Decoding with the models that a comparison has trained, through what `moekit generate` would compute them with."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from moekit.comparison.results_schema import Decode
from moekit.comparison.run.serving.decode_turns import GreedyTurns, LSTMTurns, Turn, in_turns
from moekit.config import ModelConfig
from moekit.core.errors import UsageError
from moekit.inference.load import load_runner
from moekit.inference.native_runner import NativeRunner
from moekit.inference.runner import Runner
from moekit.inference.torch_runner import TorchRunner
from moekit.kernels import native
from moekit.kernels.native.decoder_description import unsupported
from moekit.models import LanguageModel, LSTMLanguageModel, load

SERVED_DTYPE = torch.bfloat16
"""What trained weights are rounded to before they are served."""

_TYPES = {torch.bfloat16: "bf16", torch.float32: "f32"}
_TOKENS, _ROUNDS = 32, 12
Run = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model in memory that is ready to decode; `decode` is what is known of it before it has."""

    turn: Turn
    decode: Decode


def save_served(model: LanguageModel, folder: Path) -> None:
    """Write the folder that `moekit generate` takes, its weights rounded to SERVED_DTYPE; `model` is rounded, too.

    A folder that is there already is whole, and left.
    """
    if not folder.exists():
        model.to(SERVED_DTYPE).save(folder)


def measure_trained(
    folders: Mapping[Run, Path], prompt: Sequence[int], *, tokens: int, seconds: float
) -> dict[Run, Decode]:
    """Measure the models of finished runs in turns.

    Args:
        folders: where they were saved, by contestant and seed.
        prompt: what all continue.
        tokens: the most that fit behind the prompt.
        seconds: that it may take; see `in_turns`.

    Returns:
        What was measured, without the models that nothing generates with.
    """
    models: dict[Run, ServedModel] = {}
    for run, folder in folders.items():
        with contextlib.suppress(UsageError):  # nothing generates with a model whose experts choose among later tokens
            models[run] = served_model(folder, prompt)
    tokens = max(1, min(_TOKENS, tokens - 1))
    times = in_turns({run: model.turn for run, model in models.items()}, tokens=tokens, rounds=_ROUNDS, seconds=seconds)
    return {run: model.decode.model_copy(update=vars(times[run])) for run, model in models.items()}


def served_model(folder: Path, prompt: Sequence[int]) -> ServedModel:
    """Load the model in `folder` as `moekit generate` does; where that refuses, as torch computes it."""
    try:
        runner = load_runner(folder).runner
    except UsageError as refused:
        return _by_torch(folder, prompt, str(refused))
    return ServedModel(turn=GreedyTurns(runner, prompt), decode=decode_with(runner, len(prompt)))


def decode_with(runner: Runner, context: int) -> Decode:
    """Say what a runner computes with and holds, after `context` tokens."""
    assert isinstance(runner, NativeRunner | TorchRunner)
    reason = None
    if isinstance(runner, TorchRunner):
        reason = unsupported(runner.config) if native.available() else "it is not built here"
    return Decode(
        engine="native" if isinstance(runner, NativeRunner) else "torch",
        engine_reason=reason,
        weight_type=runner.weight_type,
        weight_bytes=runner.weight_bytes,
        cache_bytes=cache_bytes(runner.config, context, 4 if runner.weight_type == "f32" else 2),
        context=context,
        threads=native.threads(),
        round_ms=[],
    )


def cache_bytes(config: ModelConfig, context: int, value_bytes: int) -> int:
    """Count the bytes of the keys and values of `context` tokens; a window bounds those of its layer."""
    numbers = 0
    for layer in config.layers:
        numbers += layer.attention.cached_values_per_token * min(context, layer.attention.window or context)
    return numbers * value_bytes


def _by_torch(folder: Path, prompt: Sequence[int], reason: str) -> ServedModel:
    model = load(folder)
    if not isinstance(model, LSTMLanguageModel):
        raise UsageError(reason)
    turn = LSTMTurns(model.eval(), prompt)
    parameters = list(model.parameters())
    return ServedModel(
        turn=turn,
        decode=Decode(
            engine="torch",
            engine_reason="`moekit generate` takes causal decoders alone",
            weight_type=_TYPES[parameters[0].dtype],
            weight_bytes=sum(parameter.nbytes for parameter in parameters),
            cache_bytes=turn.state_bytes,
            context=len(prompt),
            threads=torch.get_num_threads(),
            round_ms=[],
        ),
    )
