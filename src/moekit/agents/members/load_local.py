"""From what a configuration says of models in this process to members: each model is loaded once.

D model width, T tokens.
"""

import hashlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from moekit.agents.config.agents_config import LocalMemberConfig
from moekit.agents.config.strategy_configs import EnsembleConfig
from moekit.agents.members.ensemble import ensemble_of
from moekit.agents.members.local import Embed, LocalMember, LockedRunner
from moekit.checkpoint.gguf import is_gguf
from moekit.core.errors import UsageError
from moekit.core.messages import ChatOptions
from moekit.inference import LoadedModel, Runner, load_runner
from moekit.inference.torch_runner import TorchRunner
from moekit.models import Decoder, find, load
from moekit.models.gguf import load_gguf

LOCAL_TOKENS = 4096
"""Of an answer where nobody says how many: a model that never ends by itself has to stop some time."""


def load_local_members(
    configs: Mapping[str, LocalMemberConfig], most_tokens: int = LOCAL_TOKENS
) -> dict[str, LocalMember]:
    """Load the members; those that say the same path and context share a model.

    Args:
        configs: the members, by name.
        most_tokens: of an answer where a member says nothing of max_tokens, or half of the context if that is less.

    Returns:
        The members, by name.

    Raises:
        UsageError: where an answer may fill the whole context, and, with the member's name before it, what
            moekit.inference.load_runner raises of bad configuration, beside its other errors.
    """
    loaded: dict[tuple[str, int | None], tuple[LoadedModel, Embed]] = {}
    members = {}
    for name, config in configs.items():
        key = config.path, config.context
        if key not in loaded:
            try:
                model = load_runner(config.path, context=config.context)
            except UsageError as error:
                raise UsageError(f"members.{name}: {error}") from error
            locked = LockedRunner(model.runner)
            loaded[key] = replace(model, runner=locked), _embedding(config.path, model.runner, locked.lock)
        model, embed = loaded[key]
        most = config.max_tokens or min(most_tokens, model.runner.context // 2)
        _check_room(f"members.{name}.max_tokens", most, model.runner)
        members[name] = LocalMember(
            name,
            model,
            identity=model_identity(config.path),
            defaults=ChatOptions(temperature=config.temperature, max_tokens=most),
            price=config.price,
            embed=embed,
        )
    return members


def _check_room(what: str, most_tokens: int | None, runner: Runner) -> None:
    if most_tokens is not None and most_tokens >= runner.context:
        raise UsageError(f"{what}: {most_tokens:,} leave no room for a prompt in a context of {runner.context:,}.")


def ensemble_member(name: str, config: EnsembleConfig, members: Mapping[str, LocalMember]) -> LocalMember:
    """Make one member of those that an ensemble names, with the defaults of the first.

    Raises UsageError, naming the ensemble, where they do not share a tokenizer, or where an answer as long as the first
    may give fills the shortest context.
    """
    parts = [members[part] for part in config.members]
    try:
        model = ensemble_of([(part.name, part.model) for part in parts], config.weights)
    except UsageError as error:
        raise UsageError(f"strategies.{name}: {error}") from error
    _check_room(f"strategies.{name}: max_tokens of {parts[0].name}", parts[0].defaults.max_tokens, model.runner)
    identities = [part.identity for part in parts]
    return LocalMember(
        name, model, identity=f"ensemble of {identities} by {config.weights}", defaults=parts[0].defaults
    )


def model_identity(path: str) -> str:
    """Name the folder or file and, in a digest, sizes and dates of what is in it: a model trained anew is another."""
    place = Path(path) if is_gguf(Path(path)) else find(path)
    listed = [place] if place.is_file() else sorted(file for file in place.iterdir() if file.is_file())
    digest = hashlib.sha256()
    for file in listed:
        status = file.stat()
        digest.update(f"{file.name}\0{status.st_size}\0{status.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
    return f"{place.resolve()} {digest.hexdigest()[:16]}"


def _embedding(path: str, runner: Runner, lock: threading.Lock) -> Embed:
    """Make what computes vectors by the model at `path`, computed while nobody else holds the lock.

    The native runner gives no hidden states: of a model that it computes, torch's form is loaded beside it at the first
    call.
    """

    @cache
    def decoder() -> Decoder:
        if isinstance(runner, TorchRunner):
            return runner.model
        found = load_gguf(Path(path), torch.bfloat16) if is_gguf(Path(path)) else load(path)
        assert isinstance(found, Decoder)
        return found

    def embed(texts: Sequence[list[int]]) -> list[list[float]]:
        with lock:
            return hidden_means(decoder(), texts)

    return embed


@torch.inference_mode()
def hidden_means(model: Decoder, texts: Sequence[list[int]]) -> list[list[float]]:
    """Compute for the ids of each text the mean of the last layer's normed hidden states; zeros for none."""
    found: list[Tensor] = []

    def keep(_: nn.Module, __: object, given: tuple[Tensor, Tensor, object]) -> None:
        h_1TD, added_1TD = given[:2]
        found.append(model.norm(h_1TD, added_1TD)[1][0].float().mean(0))

    hook = model.layers[-1].register_forward_hook(keep)
    try:
        for ids in texts:
            if ids:
                model(torch.tensor([ids]), last_only=True)
            else:
                found.append(torch.zeros(model.config.width))
    finally:
        hook.remove()
    return [mean_D.tolist() for mean_D in found]
