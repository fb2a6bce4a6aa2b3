"""Who takes part in a comparison: the default set, or what a YAML file says.

All contestants of one comparison share the outer shape that `--size` names and differ in their layer plan.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from moekit.config import (
    BYTE_VOCAB_SIZE,
    AttentionConfig,
    Config,
    DenseConfig,
    FeedForwardConfig,
    ModelConfig,
    MoEConfig,
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
    "xs": Size(width=128, depth=4, heads=2, kv_heads=1, hidden=384, context=128, sequences=8),
    "s": Size(width=192, depth=4, heads=3, kv_heads=1, hidden=512, context=128, sequences=8),
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


def read_contestants(path: Path, size: Size) -> tuple[list[Contestant], str]:
    """Contestants and the baseline's name from a YAML file, where a bare name stands for one of the default set.

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
        pick_default(entry, size)
        if isinstance(entry, str)
        else validate(Contestant, entry, where=f"{path}, contestants[{index}]")
        for index, entry in enumerate(listed.contestants)
    ]
    return contestants, check_set(contestants, listed.baseline)


def pick_default(name: str, size: Size) -> Contestant:
    """The contestant of the default set; raises UsageError with the nearest name where there is none."""
    known = default_contestants(size)
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
