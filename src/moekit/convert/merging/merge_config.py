"""What a merge's YAML file says: mergekit-moe's keys with mergekit's meaning, and `backbone`, which is ours."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from moekit.config import Config
from moekit.core.errors import did_you_mean
from moekit.core.validation import read_yaml, validate

DRAWN_MODES = ("random", "uniform_random")
PROMPT_MODES = ("hidden", "hidden_avg", "hidden_last", "cheap_embed", "router_input", "fitted")
GATE_MODES = (*PROMPT_MODES, *DRAWN_MODES)
DTYPES = ("bfloat16", "float16", "float32", "float64")


def _gate_mode(mode: str) -> str:
    if mode not in GATE_MODES:
        raise ValueError(f"{mode!r} is no gate mode ({did_you_mean(mode, GATE_MODES).rstrip('.')})")
    return mode


def _dtype(name: str) -> str:
    plain = name.removeprefix("torch.")
    if plain not in DTYPES:
        raise ValueError(f"{name!r} is no type of numbers for weights ({did_you_mean(plain, DTYPES).rstrip('.')})")
    return plain


def _reference(value: Any) -> Any:
    """Read `path[@revision][+path[@revision]]`, or the same as keys, as texts."""
    if not isinstance(value, str):
        return value
    # A folder may have either sign in its name.
    if Path(value).is_dir():
        return {"model": value}
    parts = value.split("+")
    if len(parts) > 2:
        raise ValueError(f"{value!r} names more than a model and an adapter (model+lora)")
    return dict(zip(("model", "lora"), parts, strict=False))


def _path(value: Any) -> Any:
    if isinstance(value, dict) and set(value) <= {"path", "revision"} and "path" in value:
        value = f"{value['path']}@{value['revision']}" if value.get("revision") else value["path"]
    if isinstance(value, str) and "@" in value and not Path(value).is_dir():
        raise ValueError(f"{value!r} asks for a revision; download it and name its folder")
    return value


PathText = Annotated[str, BeforeValidator(_path)]


class Reference(Config):
    """A model: a folder or a hub id, and a LoRA adapter on top of it or None.

    override_architecture: as mergekit has it, and without effect: a folder says itself what it holds.
    """

    model: PathText
    lora: PathText | None = None
    override_architecture: str | None = None

    def __str__(self) -> str:
        return self.model if self.lora is None else f"{self.model}+{self.lora}"


AnyReference = Annotated[Reference, BeforeValidator(_reference)]
Prompts = Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value is None else value)]


class ExpertConfig(Config):
    """A model whose feed-forward networks become one expert a layer.

    positive_prompts, negative_prompts: texts that should and should not go to it. noise_scale: standard deviation of
    noise that is added to its matrices. residual_scale: factor of its down projections.
    """

    source_model: AnyReference
    positive_prompts: Prompts = ()
    negative_prompts: Prompts = ()
    noise_scale: float | None = None
    residual_scale: float | None = None

    @property
    def prompts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Positive and negative ones."""
        return self.positive_prompts, self.negative_prompts


class MergeConfig(Config):
    """Several models of one shape to a mixture of experts.

    base_model: gives everything but the feed-forward networks, and the tokenizer. experts_per_token: K.
    dtype: of the result; None: that of the base model. architecture: the beginning of an output's name; None: Mixtral
    where the models allow it, else the first that they allow. gate_mode: how routers are made.
    backbone: `base`, or `average` of the experts' models (Branch-Train-MiX, arXiv 2403.07816), for all but
    feed-forward networks.
    """

    base_model: AnyReference
    experts: Annotated[tuple[ExpertConfig, ...], Field(min_length=1)]
    gate_mode: Annotated[str, AfterValidator(_gate_mode)] = "hidden"
    dtype: Annotated[str, AfterValidator(_dtype)] | None = None
    experts_per_token: PositiveInt = 2
    shared_experts: Annotated[tuple[ExpertConfig, ...], BeforeValidator(lambda value: value or ())] = ()
    architecture: str | None = None
    backbone: Literal["base", "average"] = "base"

    @property
    def all_experts(self) -> tuple[ExpertConfig, ...]:
        """The routed ones, then the shared ones."""
        return (*self.experts, *self.shared_experts)

    def key(self, index: int) -> str:
        """Tell where in the file the expert of that place in `all_experts` stands."""
        routed = len(self.experts)
        return f"experts[{index}]" if index < routed else f"shared_experts[{index - routed}]"


def read_merge_config(file: Path) -> MergeConfig:
    """Read the configuration in a YAML file.

    Raises UsageError naming the file and the key: unknown keys with the nearest one, values that cannot be.
    """
    return validate(MergeConfig, read_yaml(file), where=str(file))


def prompt_problems(config: MergeConfig) -> list[str]:
    """Say what is wrong with numbers and prompts, a sentence each; each names its key and model."""
    problems = []
    if config.experts_per_token > len(config.experts):
        problems.append(
            f"experts_per_token: {config.experts_per_token} are more than the {len(config.experts)} experts there are."
        )
    if config.gate_mode in DRAWN_MODES:
        return problems
    for index, expert in enumerate(config.experts):
        if not any(prompt.strip() for prompt in expert.positive_prompts):
            problems.append(
                f"{config.key(index)}.positive_prompts: {expert.source_model} needs at least one prompt for "
                f"gate_mode {config.gate_mode}."
            )
    if len(config.experts) > 1 and len({expert.prompts for expert in config.experts}) == 1 and not problems:
        problems.append(
            f"experts: all {len(config.experts)} have the same prompts, from {config.experts[0].source_model} on, so "
            "no router can tell them apart."
        )
    return problems
