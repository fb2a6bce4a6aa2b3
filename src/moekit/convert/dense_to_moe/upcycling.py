"""Sparse upcycling: a dense model's feed-forward networks become the experts of a mixture (Komatsuzaki et al., arXiv
2212.05055), whole or cut into G parts each (He et al., arXiv 2410.07524), as copies or changed.

N = E · G experts, K of them for a token. Copies whose weights sum to one are the dense network: their down projection
times G with a softmax over the chosen experts, whose groups are chosen whole where K is a multiple of G; times E G² / K
with one over all experts, which is exact only while the router is uniform. Biases go with the channels: see
`expert_channels.Slot.bias_scale`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from moekit.config import (
    DenseConfig,
    LatentAttentionConfig,
    ModelConfig,
    MoEConfig,
    SigmoidBiasConfig,
    SoftmaxTopKConfig,
)
from moekit.convert.conversion import Refused
from moekit.convert.dense_to_moe.dense_conversion import DenseConversion, ExpertOptions, choose_family
from moekit.convert.expert_channels import Change, Matrix, Mixture, Slot
from moekit.models.stored_model import StoredModel, dense_of, moe_of

_Branch = Literal["none", "shared", "gated_shared"]


class Upcycling(ExpertOptions):
    """How to upcycle: the options of `verbs.upcycle`.

    experts: E. granularity: G, so E · G experts are stored. method: `noise` is normal, of `noise` times a matrix's
    standard deviation; `drop` draws a share of `drop` of each expert's channels anew (Drop-Upcycling, arXiv 2502.19261,
    section 3.2). Both treat a channel's biases as they do its weights; the bias of down, which is no channel's, stays.
    renormalize: None: where K > 1. router_std: 0 is uniform.
    """

    granularity: PositiveInt = 1
    shared: Annotated[int, Field(ge=0)] = 0
    method: Literal["copy", "noise", "drop"] = "copy"
    noise: Annotated[float, Field(gt=0)] = 0.01
    drop: Annotated[float, Field(gt=0, le=1)] = 0.5
    renormalize: bool | None = None
    router_std: Annotated[float, Field(ge=0)] = 0.02

    @model_validator(mode="after")
    def _check_renormalized(self) -> Self:
        if self.renormalize and self.top_k == 1:
            raise ValueError("a renormalised top-1 router never learns; leave renormalize out, or take top_k 2 or more")
        return self

    @property
    def stored_experts(self) -> int:
        """N = E · G."""
        return self.experts * self.granularity

    @property
    def renormalized(self) -> bool:
        """Whether the weights of the chosen experts sum to one."""
        return self.top_k > 1 if self.renormalize is None else self.renormalize

    @property
    def scale(self) -> float:
        """The factor of the experts' down projections, where no shared expert takes a part."""
        if self.renormalized:
            return float(self.granularity)
        return self.experts * self.granularity**2 / self.top_k

    def inexact(self) -> str | None:
        """Say why the result is not the same function as the dense model; None where it is."""
        if self.method != "copy":
            return f"method {self.method} changes the experts"
        if self.top_k == self.stored_experts:
            return None  # the weights of all experts sum to one
        if self.granularity > 1 and self.top_k % self.granularity:
            return f"top_k ({self.top_k}) is no multiple of granularity ({self.granularity}), so networks lack parts"
        if self.granularity > 1 and not self.router_std:
            return "a uniform router leaves open which parts of a network are chosen together"
        if not self.renormalized and self.router_std:
            return "weights that are not renormalised sum to K / N only while the router is uniform (router_std 0)"
        return None


def plan_upcycling(folder: Path, options: Upcycling) -> DenseConversion:
    """Plan what upcycling the model in `folder` makes; no weight is read.

    Raises `Refused` with everything that does not fit the model, MoekitError where the folder is damaged.
    """
    source = StoredModel(folder)
    layers, problems = chosen_layers(source, options.layers)
    problems += indivisible(source, layers, options.granularity, f"granularity {options.granularity} does not divide")
    if problems:
        raise Refused(problems)
    config, family = choose_family(candidates(source.config, layers, options))
    mixtures = {layer: _mixture(config, layer, source, options) for layer in layers}
    return DenseConversion(
        verb="upcycle",
        source=source,
        config=config,
        family=family,
        mixtures=mixtures,
        inexact=options.inexact(),
        scale=options.scale,
        settings=json.dumps(options.model_dump(mode="json"), sort_keys=True),
    )


def chosen_layers(source: StoredModel, layers: str | tuple[int, ...]) -> tuple[list[int], list[str]]:
    """Give the dense layers that become mixtures, and what is wrong with those that are asked for beside them."""
    count = len(source.config.layers)
    asked: list[int]
    if isinstance(layers, tuple):
        asked = sorted(set(layers))
    else:
        asked = list(range(count)) if layers == "every" else list(range(1, count, 2))
    if not asked:
        return [], [f"{source.folder} has {count} layer, and 'alternate' begins with the second; name layers."]
    problems = [
        f"There is no layer {layer}: {source.folder} has {count}, from 0 to {count - 1}."
        for layer in asked
        if layer >= count
    ]
    parts = source.config.feed_forwards
    mixtures = [layer for layer in asked if layer < count and isinstance(parts[layer], MoEConfig)]
    if mixtures:
        dense = [str(layer) for layer in range(count) if isinstance(parts[layer], DenseConfig)]
        more = f" and {len(mixtures) - 1} more are mixtures" if len(mixtures) > 1 else " is a mixture"
        way = (
            f"name dense ones ({', '.join(dense[:5])}{', …' if len(dense) > 5 else ''})"
            if dense
            else "give a dense model"
        )
        problems.append(f"Layer {mixtures[0]} of {source.folder}{more} already; {way}.")
    return [layer for layer in asked if layer < count and layer not in mixtures], problems


def indivisible(source: StoredModel, layers: Sequence[int], parts: int, what: str) -> list[str]:
    """Say which widths of feed-forward networks cannot be cut into so many parts, each with its first layer."""
    found: dict[int, int] = {}
    for layer in layers:
        if (width := dense_of(source.config, layer).width) % parts:
            found.setdefault(width, layer)
    return [f"Layer {layer} has {width} channels, which {what}." for width, layer in found.items()]


def candidates(config: ModelConfig, layers: list[int], options: Upcycling) -> list[ModelConfig]:
    """Give configurations that compute what is asked for, the best first: ways to add a shared expert."""
    latent = any(isinstance(layer.attention, LatentAttentionConfig) for layer in config.layers)
    branches: tuple[_Branch, ...] = ("none",)
    if options.shared:
        branches = ("shared",) if latent else ("gated_shared", "shared")
    return [_with_layers(config, layers, branch, options, latent=latent) for branch in branches]


def _with_layers(
    config: ModelConfig, layers: list[int], branch: _Branch, options: Upcycling, *, latent: bool
) -> ModelConfig:
    changed = list(config.feed_forwards)
    for layer in layers:
        changed[layer] = _layer(dense_of(config, layer), branch, options, latent=latent)
    return config.with_feed_forwards(changed)


def _layer(dense: DenseConfig, branch: _Branch, options: Upcycling, *, latent: bool) -> MoEConfig:
    width = dense.width // options.granularity
    router: SoftmaxTopKConfig | SigmoidBiasConfig = SoftmaxTopKConfig(
        top_k=options.top_k, renormalize=options.renormalized
    )
    if latent and options.renormalized:
        router = SigmoidBiasConfig(top_k=options.top_k)
    return MoEConfig(
        experts=options.stored_experts,
        expert_width=width,
        router=router,
        branch=branch,
        branch_width=options.shared * width,
        activation=dense.activation,
        gated=dense.gated,
        bias=dense.bias,
    )


@dataclass(frozen=True)
class Shares:
    """How a shared branch and the routed experts divide the dense network's parts between them.

    slots: the part that each shared expert holds, and what its down projection is multiplied by. routed: by part, what
    the routed experts' is multiplied by, beside `Upcycling.scale`.
    """

    slots: tuple[tuple[int, float], ...]
    routed: tuple[float, ...]


def shares(shared: int, granularity: int, *, gated: bool, alpha: float = 0.5) -> Shares:
    """Give alpha of a part to its shared experts, evenly, and the rest to the routed ones; all where none holds it.

    gated: the branch is multiplied by sigmoid(0) = 1/2 at first.
    """
    parts = [slot % granularity for slot in range(shared)]
    gate = 2.0 if gated else 1.0
    return Shares(
        tuple((part, gate * alpha / parts.count(part)) for part in parts),
        tuple(1 - alpha if part in parts else 1.0 for part in range(granularity)),
    )


def _mixture(config: ModelConfig, layer: int, source: StoredModel, options: Upcycling) -> Mixture:
    moe, dense = moe_of(config, layer), dense_of(source.config, layer)
    width, parts = moe.expert_width, options.granularity
    divided = shares(options.shared, parts, gated=moe.branch == "gated_shared")
    experts = []
    for expert in range(moe.experts):
        part = expert % parts
        changes = _changes(options, layer, expert, width)
        key = f"{options.method} {options.noise} {options.drop} {options.seed} {layer} {expert}" if changes else ""
        experts.append(
            Slot(
                source=source,
                layer=layer,
                channels=range(part * width, (part + 1) * width),
                scale=options.scale * divided.routed[part],
                changes=changes,
                key=key,
            )
        )
    branch = None
    if options.shared:
        held = [channel for part, _ in divided.slots for channel in range(part * width, (part + 1) * width)]
        scale = torch.tensor([scale for _, scale in divided.slots]).repeat_interleave(width)
        whole = held == list(range(dense.width)) and len(set(scale.tolist())) == 1
        branch = Slot(
            source=source,
            layer=layer,
            channels=range(dense.width) if whole else tuple(held),
            scale=float(scale[0]) if whole else scale,
        )
    return Mixture(
        experts=tuple(experts),
        routers={"router.weight": lambda: _router(options, layer, config.width)},
        router_key=f"{options.seed} {layer} {options.router_std} {parts}",
        branch=branch,
    )


def _router(options: Upcycling, layer: int, width: int) -> Tensor:
    """Draw (N, D): a row for each copy of the network, the same one for its G parts, which so are chosen together."""
    weight = torch.randn(options.experts, width, generator=generator(options.seed, layer, "router"))
    return (weight * options.router_std).repeat_interleave(options.granularity, 0)


def _changes(options: Upcycling, layer: int, expert: int, width: int) -> dict[Matrix, Change]:
    """Give what the method does to an expert's matrices, (channels, D), and to biases of gate and up, (channels, 1)."""
    if options.method == "copy":
        return {}

    def noise(matrix: Matrix, values: Tensor) -> Tensor:
        values = values.float()
        draw = torch.randn(values.shape, generator=generator(options.seed, layer, expert, matrix))
        return values + draw * (options.noise * _std(values))

    def drop(matrix: Matrix, values: Tensor) -> Tensor:
        order = torch.randperm(width, generator=generator(options.seed, layer, expert, "channels"))
        dropped = order[: round(options.drop * width)]
        values = values.float()
        old = values[dropped]
        draw = torch.randn(old.shape, generator=generator(options.seed, layer, expert, matrix))
        return values.index_copy(0, dropped, draw * _std(old) + old.mean())

    change = noise if options.method == "noise" else drop
    changed: tuple[Matrix, ...] = ("gate", "up", "down", "gate bias", "up bias")
    return {matrix: partial(change, matrix) for matrix in changed}


def _std(values: Tensor) -> Tensor:
    """Compute the standard deviation; that of one number, as the bias of a narrow expert may be, is 0."""
    return values.std() if values.numel() > 1 else torch.zeros(())


def generator(*seeds: int | str) -> torch.Generator:
    """Make a generator for one use, so that no draw depends on which came before."""
    digest = hashlib.sha256(json.dumps(seeds).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
