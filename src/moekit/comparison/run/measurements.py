"""What is measured on a model: held-out bits per byte, and what its routers do by domain.

N windows, T tokens, E experts, M domains.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from moekit.comparison.results_schema import ExpertsByDomain, LayerRouting
from moekit.core.hardware import Precision
from moekit.data import is_scored
from moekit.models import Decoder, LanguageModel, NGram
from moekit.moe import Routing, add_sums, routing_stats
from moekit.training import matrix_precision

# Windows scored at a time: enough to keep the processor busy, few enough to stay small in memory.
_BATCH = 16
_SHUFFLES = 200


def held_out_bits(
    model: LanguageModel | NGram,
    windows_NT: Tensor,
    precision: Precision,
    routings: list[list[Routing]] | None = None,
) -> tuple[float, int]:
    """Give (bits, bytes): the model's code length of the windows' targets, and how many of those count.

    windows_NT: int64, T tokens of which all but the first are targets. Separators (0) are context, not targets.
    routings: a list that gets one list per batch, with the Routing of each MoE layer.
    """
    bits_NT = target_bits(model, windows_NT, precision, routings)
    return float(bits_NT.sum()), int(is_scored(windows_NT[:, 1:]).sum())


def target_bits(
    model: LanguageModel | NGram,
    windows_NT: Tensor,
    precision: Precision,
    routings: list[list[Routing]] | None = None,
) -> Tensor:
    """Give the code length of each target in bits, fp64 (N, T), 0 for those that do not count; see `held_out_bits`."""
    found = []
    for batch_NT in torch.split(windows_NT, _BATCH):
        of_batch: list[Routing] = []
        with torch.no_grad(), matrix_precision(precision):
            log_prob_NT = _log_prob(model, batch_NT, of_batch)
        found.append((log_prob_NT.double() / -math.log(2)).masked_fill(~is_scored(batch_NT[:, 1:]), 0.0))
        if routings is not None:
            routings.append(of_batch)
    return torch.cat(found)


def sums_by_part(value_NT: Tensor, part_NT: Tensor) -> list[float]:
    """Add up the values of targets by the part of the text that they belong to, rounded to a thousandth."""
    sums = np.bincount(part_NT.flatten().numpy(), weights=value_NT.flatten().double().numpy())
    return [round(each, 3) for each in sums.tolist()]


def _log_prob(model: LanguageModel | NGram, tokens_NT: Tensor, routings: list[Routing]) -> Tensor:
    """Give log_prob; a decoder also tells how it routed."""
    return model.log_prob(tokens_NT, routings) if isinstance(model, Decoder) else model.log_prob(tokens_NT)


def mean_bits_per_byte(model: LanguageModel | NGram, windows: dict[str, Tensor], precision: Precision) -> float:
    """Give bits per byte over all domains' windows together."""
    totals = [held_out_bits(model, windows_NT, precision) for windows_NT in windows.values()]
    return sum(bits for bits, _ in totals) / sum(count for _, count in totals)


@dataclass(frozen=True)
class DomainFigures:
    """What the final measurement found.

    bits_by_part: by domain, bits of each part of its text (`moekit.data.held_out_parts`). routing, experts_by_domain:
    an entry a MoE layer.
    """

    bits_per_byte: float
    bits_per_byte_by_domain: dict[str, float]
    bits_by_part: dict[str, list[float]]
    routing: list[LayerRouting]
    experts_by_domain: list[ExpertsByDomain]


def measure_domains(
    model: LanguageModel | NGram,
    windows: dict[str, Tensor],
    precision: Precision,
    parts: dict[str, Tensor] | None = None,
) -> DomainFigures:
    """Measure bits per byte in all, by domain and by part, and per MoE layer the router's figures and its experts.

    windows: by domain, (N, T + 1). parts: of their targets, (N, T), where bits of each part are wanted.
    """
    if not isinstance(model, NGram):
        model.eval()
    total_bits, total_count = 0.0, 0
    by_domain: dict[str, float] = {}
    by_part: dict[str, list[float]] = {}
    routings: list[list[Routing]] = []
    window_counts: dict[int, list[Tensor]] = defaultdict(list)
    labels: list[int] = []
    for index, (domain, windows_NT) in enumerate(windows.items()):
        of_domain: list[list[Routing]] = []
        bits_NT = target_bits(model, windows_NT, precision, of_domain)
        bits, count = float(bits_NT.sum()), int(is_scored(windows_NT[:, 1:]).sum())
        by_domain[domain] = bits / count
        if parts is not None:
            by_part[domain] = sums_by_part(bits_NT, parts[domain])
        total_bits, total_count = total_bits + bits, total_count + count
        labels += [index] * len(windows_NT)
        routings += of_domain
        for batch in of_domain:
            for layer, routing in enumerate(batch):
                window_counts[layer].append(count_by_window(routing, windows_NT.shape[1] - 1))
    moe_layers = [] if isinstance(model, NGram) else model.moe_places
    stats = [
        LayerRouting(layer=layer, **vars(routing_stats(add_sums(batch[position].sums for batch in routings))))
        for position, layer in enumerate(moe_layers)
    ]
    tables = [
        experts_by_domain(layer, torch.cat(window_counts[position]).numpy(), np.array(labels), list(windows))
        for position, layer in enumerate(moe_layers)
    ]
    return DomainFigures(total_bits / total_count, by_domain, by_part, stats, tables)


def count_by_window(routing: Routing, tokens: int) -> Tensor:
    """Give counts_NE: how often each window of `tokens` tokens used each expert, from a batch's Routing."""
    experts = routing.counts_E.numel()
    windows = routing.probs_TE.shape[0] // tokens
    expert_S = torch.arange(experts).repeat_interleave(routing.counts_E)
    window_S = routing.assignments.token_S // tokens
    return torch.bincount(window_S * experts + expert_S, minlength=windows * experts).view(windows, experts)


def experts_by_domain(layer: int, counts_NE: np.ndarray, label_N: np.ndarray, domains: list[str]) -> ExpertsByDomain:
    """Make the table of one layer, with its mutual information against a control.

    counts_NE: assignments by window and expert; label_N: the windows' domains as indices into `domains`. The control
    shuffles the labels of whole windows, since the tokens of one window are not independent.
    """
    counts_ME = np.stack([counts_NE[label_N == index].sum(0) for index in range(len(domains))])
    generator = np.random.default_rng(0)
    shuffled = []
    for _ in range(_SHUFFLES):
        permuted_N = generator.permutation(label_N)
        shuffled.append(mutual_information(np.stack([counts_NE[permuted_N == i].sum(0) for i in range(len(domains))])))
    return ExpertsByDomain(
        layer=layer,
        domains=domains,
        share=(counts_ME / counts_ME.sum(1, keepdims=True)).tolist(),
        mutual_information_bits=mutual_information(counts_ME),
        shuffled_mean_bits=float(np.mean(shuffled)),
        shuffled_p95_bits=float(np.quantile(shuffled, 0.95)),
    )


def mutual_information(counts_ME: np.ndarray) -> float:
    """Give I(row; column) in bits of the joint distribution that the counts give."""
    # scikit-learn's mutual_info_score would take 1.6 s to import and 51 MB for these lines.
    joint = counts_ME / counts_ME.sum()
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    filled = joint > 0
    return float((joint[filled] * np.log2(joint[filled] / independent[filled])).sum())
