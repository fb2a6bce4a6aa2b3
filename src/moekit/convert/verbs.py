"""The conversions, each in one call; and what plans each without running it.

Whatever a model is named by, it is a local folder, a GGUF file, or a hub id (owner/name), which is downloaded. Messages
go to the standard `logging`, how far the work is to `progress`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from moekit.config import Config
from moekit.convert.conversion import Refused
from moekit.convert.dense_to_moe.dense_conversion import ConversionReport, DenseConversion
from moekit.convert.dense_to_moe.sample_text import sample_tokens
from moekit.convert.dense_to_moe.splitting import Splitting, plan_splitting
from moekit.convert.dense_to_moe.upcycling import Upcycling, plan_upcycling
from moekit.convert.export.gguf_export import Quantization, QuantizationPlan, plan_quantization
from moekit.convert.merging.merge_config import MergeConfig, read_merge_config
from moekit.convert.merging.merge_conversion import MergeConversion, MergeOptions, MergeReport, plan_merging
from moekit.core.errors import did_you_mean
from moekit.core.progress import Progress, no_progress
from moekit.core.validation import validate
from moekit.kernels.packed.block_types import block_type_name
from moekit.kernels.packed.type_mixes import TYPE_MIXES
from moekit.models.load_model import find

Layers = Literal["every", "alternate"] | tuple[int, ...]
_log = logging.getLogger(__name__)


def upcycle(
    model: str | Path,
    out: str | Path,
    *,
    experts: int = 8,
    top_k: int = 2,
    granularity: int = 1,
    layers: Layers = "every",
    shared: int = 0,
    method: Literal["copy", "noise", "drop"] = "copy",
    noise: float = 0.01,
    drop: float = 0.5,
    renormalize: bool | None = None,
    router_std: float = 0.02,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ConversionReport:
    """Make a mixture of experts of a dense model: its feed-forward networks become experts.

    With method `copy` the result computes the same wherever it can, which is checked before it gets its name. A call
    that was stopped goes on with the same arguments.

    Args:
        model: a folder with a dense decoder, a hub id, or a GGUF file.
        out: the new folder.
        experts: copies of each network.
        top_k: experts that a token gets.
        granularity: parts that each copy is cut into, each an expert; `top_k` counts parts.
        layers: which become mixtures: `every`, `alternate` (every second one), or their indices.
        shared: experts that every token gets beside the routed ones.
        method: experts as copies; with noise; or with channels drawn anew (Drop-Upcycling).
        noise: of method `noise`, in standard deviations of each matrix.
        drop: the share of channels that method `drop` draws.
        renormalize: whether the weights of a token's experts sum to one; None: wherever a router can learn so.
        router_std: of the normal distribution that routers are drawn from.
        seed: of everything that is drawn.
        progress: is told how many bytes are written.

    Returns:
        What was written, and how far its logits are from the dense model's.

    Raises:
        UsageError: the options contradict each other or do not fit the model (`Refused`), or `out` holds something.
        MoekitError: the source is damaged, the disk is full, or the result is not the same function though it must be.

    Examples:
        >>> import moekit
        >>> report = moekit.upcycle("./llama", "./mixtral", experts=8, top_k=2)
        >>> report.exact, report.model_type
        (True, 'mixtral')
    """
    return plan_upcycle(model, _options(Upcycling, locals())).run(Path(out), progress)


def plan_upcycle(model: str | Path, options: Mapping[str, Any]) -> DenseConversion:
    """Plan what `upcycle` would do with these options; its errors that are known before a weight is read."""
    return plan_upcycling(find(model), validate(Upcycling, dict(options), where="moekit upcycle"))


def split(
    model: str | Path,
    out: str | Path,
    *,
    experts: int = 8,
    top_k: int = 2,
    layers: Layers = "every",
    method: Literal["random", "clustered", "co-activation"] = "clustered",
    data: Sequence[str] = (),
    router_std: float | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ConversionReport:
    """Cut each feed-forward network of a dense model into experts of its channels.

    Where a token gets all experts the result computes the same, which is checked before it gets its name. A call that
    was stopped goes on with the same arguments.

    Args:
        model: a folder with a dense decoder, a hub id, or a GGUF file.
        out: the new folder.
        experts: parts of each network, which have to divide its width.
        top_k: experts that a token gets.
        layers: which become mixtures: `every`, `alternate` (every second one), or their indices.
        method: which channels come together: any; those of like weights; those active on the same tokens of `data`.
        data: text for `co-activation`: files, folders or hub ids; none: the embedded corpus.
        router_std: of the normal distribution that routers are drawn from; None: 0 where a token gets all experts.
        seed: of everything that is drawn.
        progress: is told how many bytes are written.

    Returns:
        What was written, and how far its logits are from the dense model's.

    Raises:
        UsageError: the options contradict each other or do not fit the model (`Refused`), or `out` holds something.
        MoekitError: the source is damaged, the disk is full, or the result is not the same function though it must be.

    Examples:
        >>> import moekit
        >>> report = moekit.split("./llama", "./parts", experts=8, top_k=8)
        >>> report.exact
        True
    """
    return plan_split(model, _options(Splitting, locals()), data).run(Path(out), progress)


def plan_split(
    model: str | Path, options: Mapping[str, Any], data: Sequence[str] = (), *, only_sizes: bool = False
) -> DenseConversion:
    """Plan what `split` would do with these options. only_sizes: read no weights, for a plan that is not run."""
    folder, chosen = find(model), validate(Splitting, dict(options), where="moekit split")
    with_text = chosen.method == "co-activation" and not only_sizes
    return plan_splitting(folder, chosen, sample_tokens(folder, data) if with_text else None, only_sizes=only_sizes)


def merge(
    config: str | Path | Mapping[str, Any],
    out: str | Path,
    *,
    seed: int = 0,
    fused: bool = False,
    train_router: Sequence[str] = (),
    train_steps: int = 200,
    held_out: Sequence[str] = (),
    report: bool = True,
    command: str = "",
    progress: Progress = no_progress,
) -> MergeReport:
    """Make a mixture of experts of several fine-tunes of one dense model.

    A call that was stopped goes on with the same arguments.

    Args:
        config: a YAML file with mergekit-moe's keys and `backbone`, or the same keys and values.
        out: the new folder.
        seed: of drawn gates, noise and router training.
        fused: all experts of a layer in two tensors, which transformers 5 alone reads.
        train_router: text that only the routers are trained on afterwards: files, folders or hub ids.
        train_steps: steps of that training.
        held_out: further text for the routing report.
        report: whether to run prompts through the result and say where they go.
        command: what wrote the model, for its card.
        progress: is told of the training's steps and of the bytes written.

    Returns:
        What was written, how the routers' training went, and where texts go.

    Raises:
        UsageError: something is wrong with the file, the models or how they fit (`Refused`, with every problem), or
            `out` holds something.
        MoekitError: a source is damaged or the disk is full.

    Examples:
        >>> import moekit
        >>> experts = [{"source_model": "./code", "positive_prompts": ["def f(x):"]},
        ...            {"source_model": "./prose", "positive_prompts": ["Once upon a time"]}]
        >>> recipe = {"base_model": "./base", "gate_mode": "fitted", "experts": experts}
        >>> moekit.merge(recipe, "./merged").architecture
        'Mixtral'
    """
    conversion = plan_merge(config, _options(MergeOptions, locals()))
    for warning in conversion.warnings:
        _log.warning("Note: %s", warning)
    return conversion.run(Path(out), progress)


def plan_merge(
    config: str | Path | Mapping[str, Any], options: Mapping[str, Any] = MappingProxyType({})
) -> MergeConversion:
    """Plan what `merge` would do with these options; no weight is read."""
    if isinstance(config, Mapping):
        recipe = validate(MergeConfig, dict(config), where="moekit merge")
    else:
        recipe = read_merge_config(Path(config))
    return plan_merging(recipe, validate(MergeOptions, dict(options), where="moekit merge"))


def quantize(
    model: str | Path, out: str | Path, type: str = "q4_k", *, progress: Progress = no_progress
) -> QuantizationPlan:
    """Write a model as a GGUF file that moekit and llama.cpp run. Memory does not grow with the model.

    Args:
        model: a folder with a decoder, a hub id, or a GGUF file.
        out: the new file.
        type: of the matrices: q3_k, q4_0, q4_k, q5_k, q6_k, q8_0, bf16, f16 or f32, or one of llama.cpp's mixes, which
            give some matrices more bits: q3_k_s, q3_k_m, q3_k_l, q4_k_s, q4_k_m, q5_k_s, q5_k_m, in small letters or
            large ones. Norms, biases and routers stay f32; the head of a model of few bits is q6_k.
        progress: is told how many bytes are written.

    Returns:
        What was written.

    Raises:
        UsageError: GGUF has no architecture or no tokenizer for the model, there is no such type, or `out` exists.
        MoekitError: the source is damaged, or the disk is full.

    Examples:
        >>> import moekit
        >>> report = moekit.quantize("./my-model", "my-model.gguf", "q8_0")
        >>> report.architecture
        'llama'
        >>> report.output_bytes, report.bits_per_weight
    """
    return plan_quantize(model, type).run(Path(out), progress)


def plan_quantize(model: str | Path, type: str = "q4_k") -> Quantization:
    """Plan what `quantize` would do with these arguments; no weight is read."""
    name = block_type_name(type)
    if name not in TYPE_MIXES:
        raise Refused([f"There is no type {type!r} to write; {did_you_mean(name, TYPE_MIXES)}"])
    return plan_quantization(find(model), TYPE_MIXES[name])


def _options(kind: type[Config], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from all arguments of a verb those that the class of its options has as fields."""
    return {name: value for name, value in arguments.items() if name in kind.model_fields}
