"""Who takes part in a comparison: the default set, the set of routers, or what a YAML file says.

All contestants of one comparison share the outer shape that `--size` names and differ in their layer plan.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, ValidationError

from moekit.config import (
    BYTE_VOCAB_SIZE,
    AnyRouterConfig,
    AttentionConfig,
    Config,
    DenseConfig,
    ExpertChoiceConfig,
    FeedForwardConfig,
    GShardConfig,
    HashConfig,
    ModelConfig,
    MoEConfig,
    NoisyTopKConfig,
    SigmoidBiasConfig,
    SinkhornConfig,
    SwitchConfig,
)
from moekit.config import SoftmaxTopKConfig as SoftmaxTopK
from moekit.errors import UsageError, did_you_mean
from moekit.validation import validate


@dataclass(frozen=True, kw_only=True)
class Size:
    """The outer shape that all contestants share. hidden: the dense contestant's feed-forward width (F)."""

    width: int
    depth: int
    heads: int
    kv_heads: int
    hidden: int
    context: int
    sequences: int


SIZES = {
    "xs": Size(width=128, depth=4, heads=2, kv_heads=1, hidden=384, context=128, sequences=16),
    "s": Size(width=192, depth=4, heads=3, kv_heads=1, hidden=512, context=128, sequences=16),
    "m": Size(width=256, depth=6, heads=4, kv_heads=2, hidden=768, context=256, sequences=32),
    "l": Size(width=512, depth=8, heads=8, kv_heads=4, hidden=1536, context=512, sequences=32),
}


def _check_name(name: str) -> str:
    # Names become folders and labels.
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,39}", name):
        raise ValueError("a name is up to 40 lower-case letters, digits, dots, dashes and underscores")
    return name


class Contestant(Config):
    """A name and a layer plan; the plan is repeated from its start until the depth of the size is reached."""

    name: Annotated[str, AfterValidator(_check_name)]
    layers: Annotated[tuple[FeedForwardConfig, ...], Field(min_length=1)]
    description: str = ""

    def model(self, size: Size) -> ModelConfig:
        """The model: this plan in the outer shape `size`."""
        return ModelConfig(
            vocab_size=BYTE_VOCAB_SIZE,
            width=size.width,
            context=size.context,
            attention=AttentionConfig(heads=size.heads, kv_heads=size.kv_heads, head_width=size.width // size.heads),
            layers=tuple(self.layers[index % len(self.layers)] for index in range(size.depth)),
            # Narrow models want larger weights than GPT-2's 0.02 (SmallInit, arXiv 1910.05895, section 2.2).
            init_std=math.sqrt(2 / (5 * size.width)),
        )


class ContestantsFile(Config):
    """What a YAML file of contestants may say."""

    contestants: Annotated[tuple[str | dict[str, Any], ...], Field(min_length=1)]
    baseline: str | None = None


def default_contestants(size: Size) -> dict[str, Contestant]:
    """The default set by name. `moe`, `moe-fine` and `hybrid` have the active FLOPs of `dense`, within 2 %."""
    hidden = size.hidden
    fine = hidden // 4
    plans = [
        Contestant(
            name="dense", description=f"every layer dense, hidden width {hidden}", layers=(DenseConfig(width=hidden),)
        ),
        Contestant(
            name="moe",
            description=f"every layer 8 experts of width {hidden // 2}, top-2",
            layers=(MoEConfig(experts=8, expert_width=hidden // 2, router=SoftmaxTopK(top_k=2)),),
        ),
        Contestant(
            name="moe-fine",
            description=f"every layer 16 experts of width {fine}, top-4",
            layers=(MoEConfig(experts=16, expert_width=fine, router=SoftmaxTopK(top_k=4)),),
        ),
        Contestant(
            name="hybrid",
            description=f"dense layers and layers of 16 experts of width {fine}, top-3 and one shared, in turn",
            layers=(
                DenseConfig(width=hidden),
                MoEConfig(
                    experts=16,
                    expert_width=fine,
                    router=SoftmaxTopK(top_k=3),
                    branch="shared",
                    branch_width=fine,
                ),
            ),
        ),
        Contestant(
            name="dense-large",
            description=f"every layer dense, hidden width {4 * hidden}: the total parameters of moe",
            layers=(DenseConfig(width=4 * hidden),),
        ),
    ]
    return {plan.name: plan for plan in plans}


def router_contestants(size: Size) -> dict[str, Contestant]:
    """`dense`, and contestants that differ in the router alone, by name.

    Each has 8 experts a layer, of the width at which the active FLOPs are those of `dense`, within 2 %.
    """
    routers: dict[str, tuple[AnyRouterConfig, str]] = {
        "softmax": (SoftmaxTopK(top_k=2), "softmax, top-2, renormalised"),
        "noisy": (NoisyTopKConfig(top_k=2), "noisy top-2"),
        "switch": (SwitchConfig(), "Switch, top-1, capacity factor 1.25"),
        "gshard": (GShardConfig(), "GShard, top-2, the second by chance, capacity factor 1"),
        "expert-choice": (
            ExpertChoiceConfig(mean_experts=2, leaky=True),
            "expert choice, 2 experts a token on average; it sees later tokens, so its bits per byte do not count as a "
            "language model's",
        ),
        "sigmoid-bias": (SigmoidBiasConfig(top_k=2), "sigmoid with a balancing bias, top-2"),
        "hash": (HashConfig(), "a table by byte, evened out by how often bytes occur, top-1; nothing learned"),
        "sinkhorn": (SinkhornConfig(top_k=1), "Sinkhorn, top-1"),
    }
    contestants = {"dense": default_contestants(size)["dense"]}
    for name, (router, text) in routers.items():
        width = size.hidden // router.experts_per_token
        contestants[name] = Contestant(
            name=name,
            description=f"every layer 8 experts of width {width}; router: {text}",
            layers=(MoEConfig(experts=8, expert_width=width, router=router),),
        )
    return contestants


def caveat_of(model: ModelConfig) -> str | None:
    """Why the model's bits per byte do not count as a language model's; None where they do."""
    for layer in model.layers:
        if isinstance(layer, MoEConfig) and isinstance(layer.router, ExpertChoiceConfig):
            return "its router sees later tokens, so its bits per byte do not count as a language model's"
        if isinstance(layer, MoEConfig) and isinstance(layer.router, GShardConfig) and layer.router.capacity_factor:
            return (
                "in its queues later tokens displace earlier ones, so its bits per byte do not count as a language "
                "model's"
            )
    return None


def read_contestants(path: Path, size: Size) -> tuple[list[Contestant], str]:
    """Contestants and the baseline's name from a YAML file, where a bare name stands for one of the two sets.

    Raises UsageError naming the file, the key, and the nearest valid name.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Cannot read {path}: {error}.") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    listed = validate(ContestantsFile, data, where=str(path))
    contestants = [
        pick_contestant(entry, size)
        if isinstance(entry, str)
        else _described(entry, size, where=f"{path}, contestants[{index}]")
        for index, entry in enumerate(listed.contestants)
    ]
    return contestants, check_set(contestants, listed.baseline)


def _described(entry: dict[str, Any], size: Size, where: str) -> Contestant:
    """What a file describes; what is wrong with the model as a whole is found here as well."""
    contestant = validate(Contestant, entry, where=where)
    try:
        contestant.model(size)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
        raise UsageError(f"{where}: {problem}.") from error
    return contestant


def pick_contestant(name: str, size: Size) -> Contestant:
    """The contestant of either set; raises UsageError with the nearest name where there is none."""
    known = default_contestants(size) | router_contestants(size)
    if name not in known:
        raise UsageError(f"There is no contestant {name!r}: {did_you_mean(name, known)}")
    return known[name]


def check_set(contestants: list[Contestant], baseline: str | None) -> str:
    """The baseline's name (by default the first contestant's); raises UsageError where names clash or it is missing."""
    names = [contestant.name for contestant in contestants]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise UsageError(f"The contestant {twice!r} is there twice; give each its own name.")
    if baseline is not None and baseline not in names:
        raise UsageError(f"The baseline {baseline!r} is not among the contestants: {did_you_mean(baseline, names)}")
    return baseline or names[0]
