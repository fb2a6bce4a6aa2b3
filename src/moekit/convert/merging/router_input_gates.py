"""Gates from what a router really reads: the state after attention and its norm, of every token of every prompt.

mergekit's `hidden` takes the block's input instead, and of it the last token alone, at length 1. Here
- `router_input`: the difference between an expert's tokens and those of the others, every prompt counting the same,
  without the direction that all tokens share, with a temperature that fits the prompts;
- `fitted`: a logistic regression a layer on the prompts' tokens, with a penalty.
Both give the same bits for the same prompts; nothing in them is drawn.
N tokens, E experts, D model width, P prompts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from moekit.convert.merging.merge_config import ExpertConfig
from moekit.convert.merging.prompts import PromptEncoder, prompt_batches
from moekit.models.streamed_decoder import ReadableModel, StreamedDecoder

# The penalty on the squared weights, for inputs whose mean square distance from their mean is 1.
PENALTY = 1e-4
_STEPS = 60
_TEMPERATURES: list[float] = [2.0 ** (power / 2) for power in range(-4, 17)]


@dataclass(frozen=True)
class Labelled:
    """Tokens of prompts. label_N: the expert they are for, or against where `against_N`. prompt_N: which prompt."""

    x_ND: Tensor
    label_N: Tensor
    against_N: Tensor
    prompt_N: Tensor

    @property
    def share_N(self) -> Tensor:
        """What each token counts, so that every prompt of an expert counts the same, and every expert; sums to 1."""
        of_prompt = torch.bincount(self.prompt_N)[self.prompt_N].to(self.x_ND)
        # One side of one expert: its positive or its negative prompts.
        side_N = 2 * self.label_N + self.against_N
        sides = torch.unique(side_N).numel()
        prompts = torch.bincount(torch.unique(torch.stack([side_N, self.prompt_N]), dim=1)[0])
        share_N: Tensor = 1 / (of_prompt * prompts[side_N] * sides)
        return share_N


def router_gates(mode: str, base: ReadableModel, encoder: PromptEncoder, experts: Sequence[ExpertConfig]) -> Tensor:
    """Make gate_LED in fp32 of `router_input` or `fitted`; experts without prompts get zeros."""
    make = centroid_gate if mode == "router_input" else fitted_gate
    with torch.no_grad():
        gates = [make(layer, len(experts)) for layer in labelled_layers(base, encoder, experts)]
    return torch.stack(gates).float()


def shared_gates(
    mode: str, base: ReadableModel, encoder: PromptEncoder, experts: Sequence[ExpertConfig], shared: ExpertConfig
) -> Tensor:
    """Make gate_L1D before a sigmoid: the shared expert's prompts against all others; zeros (a half) without any."""
    if not shared.positive_prompts:
        return torch.zeros(len(base.config.layers), 1, base.config.width)
    others = ExpertConfig(
        source_model=shared.source_model,
        positive_prompts=tuple(prompt for expert in experts for prompt in expert.positive_prompts),
    )
    gate_L2D = router_gates(mode, base, encoder, [shared, others])
    return gate_L2D[:, :1] - gate_L2D[:, 1:]


def labelled_layers(base: ReadableModel, encoder: PromptEncoder, experts: Sequence[ExpertConfig]) -> Iterator[Labelled]:
    """Compute what the router of each layer would read of all prompts in the base model, in fp32, without padding."""
    texts = [
        (text, index, against)
        for index, expert in enumerate(experts)
        for against, side in ((False, expert.positive_prompts), (True, expert.negative_prompts))
        for text in side
    ]
    _, groups, batches = prompt_batches(encoder, [text for text, _, _ in texts], base.config.context)
    real_N = torch.cat([batch.real_BT.flatten() for batch in batches])
    place_N = torch.cat(
        [
            torch.tensor(group)[:, None].expand(batch.real_BT.shape).flatten()
            for group, batch in zip(groups, batches, strict=True)
        ]
    )[real_N]
    label_N = torch.tensor([index for _, index, _ in texts])[place_N]
    against_N = torch.tensor([against for _, _, against in texts])[place_N]
    for run in StreamedDecoder(base, torch.float32).run(batches):
        x_ND = torch.cat([x_BTD.flatten(0, 1) for x_BTD in run.feed_forward_inputs])[real_N]
        yield Labelled(x_ND, label_N, against_N, place_N)


def centroid_gate(tokens: Labelled, experts: int) -> Tensor:
    """Make gate_ED: how an expert's tokens differ from the mean of all experts', times the temperature that fits best.

    Every token is brought to length 1, every prompt is the mean of its tokens and brought to length 1. A difference
    that all experts share would move all logits alike. The direction of the mean is taken out, because logits along it
    would be a preference that no token has any say in.
    """
    unit_ND = F.normalize(tokens.x_ND, dim=-1)
    mean_ED = torch.stack([_centroid(unit_ND, tokens, expert) for expert in range(experts)])
    common_D = F.normalize(mean_ED.mean(0), dim=0)
    gate_ED = mean_ED - mean_ED.mean(0)
    gate_ED = gate_ED - (gate_ED @ common_D)[:, None] * common_D
    gate_ED = F.normalize(gate_ED.flatten(), dim=0).view_as(gate_ED) * experts**0.5
    scaled_ED: Tensor = gate_ED * _temperature(gate_ED, tokens)
    return scaled_ED


def _centroid(unit_ND: Tensor, tokens: Labelled, expert: int) -> Tensor:
    """Compute the mean of an expert's prompts, less that of the prompts against it, (D)."""
    total_D = torch.zeros(unit_ND.shape[1])
    for against, sign in ((False, 1.0), (True, -1.0)):
        chosen_N = (tokens.label_N == expert) & (tokens.against_N == against)
        prompts = torch.unique(tokens.prompt_N[chosen_N])
        means = [F.normalize(unit_ND[chosen_N & (tokens.prompt_N == prompt)].mean(0), dim=0) for prompt in prompts]
        if means:
            total_D += sign * torch.stack(means).mean(0)
    return total_D


def _temperature(gate_ED: Tensor, tokens: Labelled) -> float:
    """Find the factor of the logits at which the prompts' tokens are likeliest."""
    length = max(float(tokens.x_ND.norm(dim=-1).mean()), 1e-12)
    logits_NE = tokens.x_ND @ gate_ED.t() / length
    losses = [float((_loss(factor * logits_NE, tokens) * tokens.share_N).sum()) for factor in _TEMPERATURES]
    return _TEMPERATURES[losses.index(min(losses))] / length


def fitted_gate(tokens: Labelled, experts: int) -> Tensor:
    """Fit gate_ED: a multinomial logistic regression without intercept, its squared weights penalised, in fp64.

    A token of a prompt against an expert is one that goes to any other.
    """
    x_ND, share_N = tokens.x_ND.double(), tokens.share_N.double()
    centred_ND = x_ND - share_N @ x_ND
    scale = (centred_ND.square().sum(-1) * share_N).sum().sqrt().clamp(min=1e-12)
    # All weights that matter lie in the span of the tokens: with few tokens there is little to fit.
    basis_DR, inner_RN = _span(x_ND.t() / scale)
    weight_ER = torch.zeros(experts, basis_DR.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_ER], max_iter=_STEPS, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = (_loss((weight_ER @ inner_RN).t(), tokens) * share_N).sum()
        total = nats + PENALTY / 2 * weight_ER.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return (weight_ER.detach() @ basis_DR.t()) / scale


def _span(x_DN: Tensor) -> tuple[Tensor, Tensor]:
    """Give an orthonormal basis of the columns, (D, R), and the columns in it, (R, N); all of D where N >= D."""
    if x_DN.shape[1] >= x_DN.shape[0]:
        return torch.eye(x_DN.shape[0], dtype=x_DN.dtype), x_DN
    basis_DR, inner_RN = torch.linalg.qr(x_DN)
    return basis_DR, inner_RN


def _loss(logits_NE: Tensor, tokens: Labelled) -> Tensor:
    """Compute -log p of going where each token should, in nats, (N)."""
    log_p_N = logits_NE.log_softmax(-1).gather(1, tokens.label_N[:, None]).squeeze(1)
    away_N = torch.log1p(-log_p_N.exp().clamp(max=1 - 1e-12))
    return -torch.where(tokens.against_N, away_N, log_p_N)
