"""Several dense models of one shape to one mixture of experts: planned and checked before a weight is read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from moekit.convert.merging.gates import prompt_encoder
from moekit.convert.merging.merge_config import DRAWN_MODES, DTYPES, MergeConfig, prompt_problems
from moekit.convert.merging.merge_plan import Merge
from moekit.convert.merging.output_formats import choose_output, merged_settings
from moekit.convert.merging.router_training import training_memory_bytes
from moekit.convert.merging.source_models import Source, difference, open_source
from moekit.convert.storage.streaming_writer import output_bytes, peak_memory_bytes
from moekit.core.errors import MoekitError


@dataclass(frozen=True)
class Problems:
    """What was found before any weight was read. blocking: nothing can be written; warnings: one should know."""

    blocking: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def plan_merge(
    config: MergeConfig, *, seed: int = 0, fused: bool = False, open_one: Callable[..., Source] = open_source
) -> tuple[Merge | None, Problems]:
    """Open the models and check all that can be known without reading a weight.

    Gives None where something blocking was found.
    """
    problems = Problems(blocking=prompt_problems(config))
    base, sources = _open(config, problems, open_one)
    if base is None:
        return None, problems
    for index, source in enumerate(sources):
        where = f"{config.key(index)}.source_model: {config.all_experts[index].source_model}"
        if source is not None and (reason := difference(source, base)):
            problems.blocking.append(f"{where} does not fit: {reason}.")
    _check_base(config, base, problems)
    merge = _chosen(config, base, sources, problems, seed, fused)
    return (None if problems.blocking else merge), problems


def _open(
    config: MergeConfig, problems: Problems, open_one: Callable[..., Source]
) -> tuple[Source | None, list[Source | None]]:
    """The base model and those of all experts; what cannot be opened is a problem that names its key."""
    opened: dict[str, Source | None] = {}
    wanted = [("base_model", config.base_model)]
    wanted += [(f"{config.key(index)}.source_model", one.source_model) for index, one in enumerate(config.all_experts)]
    for key, reference in wanted:
        if str(reference) in opened:
            continue
        try:
            opened[str(reference)] = open_one(reference)
        except MoekitError as error:
            opened[str(reference)] = None
            problems.blocking.append(f"{key}: {reference} cannot be merged: {error}")
    return opened[str(config.base_model)], [opened[str(one.source_model)] for one in config.all_experts]


def _check_base(config: MergeConfig, base: Source, problems: Problems) -> None:
    if config.gate_mode not in DRAWN_MODES:
        try:
            prompt_encoder(base)
        except MoekitError as error:
            problems.blocking.append(
                f"base_model: gate_mode {config.gate_mode} needs the tokenizer of the base: {error}"
            )
    elif base.config.vocab_size != 256 and not (base.folder / "tokenizer.json").is_file():
        problems.warnings.append(f"base_model: {base.reference} has no tokenizer.json, so the result has none either.")
    names = {str(expert.source_model) for expert in config.experts}
    if len(config.experts) > 1 and len(names) == 1 and all(one.noise_scale is None for one in config.experts):
        problems.warnings.append(
            f"experts: all are {names.pop()}, so that the result computes what one of them does until it is trained."
        )


def _chosen(
    config: MergeConfig,
    base: Source,
    sources: Sequence[Source | None],
    problems: Problems,
    seed: int,
    fused: bool,
) -> Merge | None:
    """The merge in the format that fits; None, and a problem, where none does or a model is missing."""
    try:
        output = choose_output(config, base)
        if config.experts_per_token > len(config.experts):
            return None  # said already, and no configuration
        if fused and not output.fused:
            raise MoekitError(f"--fused: nothing reads {output.name} with all experts of a layer in one tensor.")
        name = config.dtype or _stored_dtype(base)
        settings = merged_settings(output, config, base, name)
    except MoekitError as error:
        problems.blocking.append(str(error))
        return None
    found = [source for source in sources if source is not None]
    if len(found) < len(sources):
        return None
    routed = len(config.experts)
    return Merge(
        config=config,
        output=output,
        base=base,
        experts=tuple(found[:routed]),
        shared=tuple(found[routed:]),
        dtype=getattr(torch, name) if name else None,
        seed=seed,
        fused=fused,
        settings=settings,
    )


def _stored_dtype(base: Source) -> str | None:
    """The type that the base model's config.json names."""
    value = base.settings.values.get("dtype") or base.settings.values.get("torch_dtype")
    name = str(value).removeprefix("torch.") if value else None
    return name if name in DTYPES else None


@dataclass(frozen=True)
class Forecast:
    """What a merge would take. tensors: their number."""

    output_bytes: int
    peak_memory_bytes: int
    tensors: int


def forecast(merge: Merge, *, train_routers: bool = False) -> Forecast:
    """Exact bytes of the weights' files, and the memory needed beside the interpreter, with the routers' training."""
    peak = peak_memory_bytes(merge.tensors)
    if train_routers:
        peak = max(peak, training_memory_bytes(merge))
    return Forecast(output_bytes(merge.tensors), peak, len(merge.tensors))
