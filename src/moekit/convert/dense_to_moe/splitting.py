"""One feed-forward network cut into E experts of its channels, none of them twice (LLaMA-MoE, arXiv 2406.16554).

With all experts and a uniform router their weighted sum, each times E, is the network again. Of a bias of down each
expert holds 1 / E, so times E it is the bias itself. T tokens, D model width, F channels, E experts, C channels of an
expert, N features.
"""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from moekit.config import ModelConfig, MoEConfig, SoftmaxTopKConfig
from moekit.convert.conversion import Refused
from moekit.convert.dense_to_moe.dense_conversion import DenseConversion, ExpertOptions, choose_family
from moekit.convert.dense_to_moe.upcycling import chosen_layers, generator, indivisible
from moekit.convert.expert_channels import Mixture, Slot
from moekit.kernels.activation import Activation, plain_activation
from moekit.models.stored_model import StoredModel, dense_of
from moekit.models.streamed_decoder import StreamedDecoder, TokenBatch

_log = logging.getLogger(__name__)
_ROUNDS = 10
# Of a token's channels, those that count as active: the largest tenth (as in arXiv 2110.01786, section 4.1, where
# most channels of a ReLU network are silent).
_ACTIVE = 0.1


class Splitting(ExpertOptions):
    """How to split: the options of `verbs.split`.

    experts: E, which divides each network's channels. method: `clustered`: together come channels whose gate rows (up,
    where there is no gate) point the same way; `co-activation`: those that are large on the same tokens of a text.
    router_std: None: 0 where all experts are taken, which is exact, else 0.02.
    """

    experts: Annotated[int, Field(ge=2, le=100_000)] = 8
    method: Literal["random", "clustered", "co-activation"] = "clustered"
    router_std: Annotated[float, Field(ge=0)] | None = None

    @property
    def std(self) -> float:
        """The standard deviation that routers are drawn with."""
        if self.router_std is not None:
            return self.router_std
        return 0.0 if self.top_k == self.experts else 0.02

    def inexact(self) -> str | None:
        """Say why the result is not the same function as the dense model; None where it is."""
        if self.top_k < self.experts:
            return f"{self.top_k} of {self.experts} experts leave channels out"
        return f"a router that is drawn (std {self.std}) weighs the experts unevenly" if self.std else None


Channels = list[list[int]]
"""By expert, its channels in rising order."""


def plan_splitting(
    folder: Path, options: Splitting, tokens_BT: Tensor | None = None, *, only_sizes: bool = False
) -> DenseConversion:
    """Plan what splitting the model in `folder` makes. The clusterings are computed here, and weights read for them.

    tokens_BT: a text, for `co-activation`. only_sizes: read no weights, for a plan that is not run. Raises `Refused`
    with everything that does not fit the model, MoekitError where the folder is damaged.
    """
    source = StoredModel(folder)
    layers, problems = chosen_layers(source, options.layers)
    problems += indivisible(source, layers, options.experts, f"{options.experts} experts do not divide")
    if options.method == "co-activation" and tokens_BT is None and not only_sizes:
        problems.append("Method co-activation looks at a text; give its tokens.")
    if problems:
        raise Refused(problems)
    config, family = choose_family([_config(source.config, layers, options)])
    if only_sizes or options.method == "random":
        channels = {layer: _random(dense_of(source.config, layer).width, layer, options) for layer in layers}
    else:
        channels = _clustered(source, layers, options, tokens_BT)
    mixtures = {layer: _mixture(source, layer, channels[layer], options) for layer in layers}
    text = hashlib.sha256(json.dumps(channels).encode()).hexdigest()
    return DenseConversion(
        verb="split",
        source=source,
        config=config,
        family=family,
        mixtures=mixtures,
        inexact=options.inexact(),
        scale=float(options.experts),
        settings=json.dumps(options.model_dump(mode="json") | {"channels": text}, sort_keys=True),
    )


def _config(config: ModelConfig, layers: Sequence[int], options: Splitting) -> ModelConfig:
    changed = list(config.feed_forwards)
    for layer in layers:
        dense = dense_of(config, layer)
        changed[layer] = MoEConfig(
            experts=options.experts,
            expert_width=dense.width // options.experts,
            router=SoftmaxTopKConfig(top_k=options.top_k, renormalize=options.top_k > 1),
            activation=dense.activation,
            gated=dense.gated,
            bias=dense.bias,
        )
    return config.with_feed_forwards(changed)


def _mixture(source: StoredModel, layer: int, channels: Channels, options: Splitting) -> Mixture:
    def router() -> Tensor:
        draw = torch.randn(options.experts, source.config.width, generator=generator(options.seed, layer, "router"))
        return draw * options.std

    scale = float(options.experts)
    return Mixture(
        experts=tuple(Slot(source=source, layer=layer, channels=tuple(part), scale=scale) for part in channels),
        routers={"router.weight": router},
        router_key=f"{options.seed} {layer} {options.std}",
    )


def _clustered(
    source: StoredModel,
    layers: Sequence[int],
    options: Splitting,
    tokens_BT: Tensor | None,
) -> dict[int, Channels]:
    features = (
        ((layer, _gate_rows(source, layer)) for layer in layers)
        if tokens_BT is None or options.method == "clustered"
        else activity(source, layers, tokens_BT)
    )
    found = {}
    for layer, features_FN in features:
        _log.info("Clustering the %d channels of layer %d", len(features_FN), layer)
        found[layer] = balanced_clusters(features_FN, options.experts, generator(options.seed, layer, "clusters"))
    return found


def _random(width: int, layer: int, options: Splitting) -> Channels:
    order = torch.randperm(width, generator=generator(options.seed, layer, "channels"))
    return [sorted(part.tolist()) for part in order.chunk(options.experts)]


def _gate_rows(source: StoredModel, layer: int) -> Tensor:
    """Read (F, D): what decides when a channel is active."""
    return source.rows(f"layers.{layer}.feed_forward.gate_up.weight", 0, dense_of(source.config, layer).width).float()


def activity(source: StoredModel, layers: Sequence[int], tokens_BT: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Give by layer (F, T): 1 where a channel is among the most active of a token, else 0; a layer at a time."""
    probe = TokenBatch(tokens_BT, torch.ones_like(tokens_BT, dtype=torch.bool))
    for run in StreamedDecoder(source, torch.float64).run([probe]):
        if run.index in layers:
            yield run.index, _active(source, run.index, run.feed_forward_inputs[0].flatten(0, 1).float())
        if run.index == max(layers):
            return


def _active(source: StoredModel, layer: int, x_TD: Tensor) -> Tensor:
    """Compute (F, T), zeros and ones."""
    dense, gate_up = dense_of(source.config, layer), f"layers.{layer}.feed_forward.gate_up"
    bias = source.parameter(f"{gate_up}.bias").to(x_TD.dtype) if dense.bias else None
    gate_up_TG = F.linear(x_TD, source.rows(f"{gate_up}.weight").to(x_TD.dtype), bias)
    hidden_TF = plain_activation(gate_up_TG, Activation(dense.activation, dense.gated)).abs()
    kept = max(1, round(_ACTIVE * dense.width))
    active_TF = torch.zeros(hidden_TF.shape).scatter_(1, hidden_TF.topk(kept).indices, 1.0)
    return active_TF.t().contiguous()


def balanced_clusters(features_FN: Tensor, clusters: int, draw: torch.Generator) -> Channels:
    """Find clusters of equal size by direction, with k-means: rows are scaled to length 1 first (rows of zeros stay).

    Each round sends channels to the cluster they are nearest to, those with most to lose first, while it has room;
    the best of the rounds counts.
    """
    unit_FN = F.normalize(features_FN, dim=1)
    room = len(unit_FN) // clusters
    centre_EN = unit_FN[torch.randperm(len(unit_FN), generator=draw)[:clusters]]
    best, best_score = torch.arange(len(unit_FN)) // room, -torch.inf
    for _ in range(_ROUNDS):
        likeness_FE = unit_FN @ F.normalize(centre_EN, dim=1).t()
        cluster_F = _with_room(likeness_FE, room)
        score = float(likeness_FE.gather(1, cluster_F[:, None]).sum())
        if score <= best_score:
            break
        best, best_score = cluster_F, score
        centre_EN = torch.zeros_like(centre_EN).index_add_(0, cluster_F, unit_FN)
    return [(best == cluster).nonzero().flatten().tolist() for cluster in range(clusters)]


def _with_room(likeness_FE: Tensor, room: int) -> Tensor:
    """Give cluster_F: for each row its best column that is not full; first those that lose most by their second."""
    top_F2 = likeness_FE.topk(min(2, likeness_FE.shape[1])).values
    order = (top_F2[:, 0] - top_F2[:, -1]).argsort(stable=True, descending=True).tolist()
    wishes = likeness_FE.argsort(stable=True, dim=1, descending=True).tolist()
    left = [room] * likeness_FE.shape[1]
    cluster = [0] * len(likeness_FE)
    for row in order:
        cluster[row] = next(column for column in wishes[row] if left[column])
        left[cluster[row]] -= 1
    return torch.tensor(cluster)
