"""Sigmoid scores with a balancing bias. T tokens, D model width, E experts, K experts per token, N groups."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from moekit.config import SigmoidBiasConfig
from moekit.moe.routers.choice import ChoiceRule, fits
from moekit.moe.routers.router import Router, weights_of
from moekit.moe.routing import RouterInput, Routing, Sums

_LEAST_SUM = 1e-20  # added to a sum of scores that is divided by


class SigmoidBias(Router):
    """s = sigmoid(W x); the K largest s + b are chosen, and weighed by s alone, divided by its sum, times `scale`.

    After each optimiser step b_i += u · sign(mean count - count_i) (DeepSeek-V3, arXiv 2412.19437, eq. 13–16; Wang et
    al., arXiv 2408.15664, algorithm 1). With groups, experts are chosen inside the groups whose two largest s + b have
    the largest sum.
    """

    bias_E: Tensor

    config: SigmoidBiasConfig

    def __init__(self, width: int, experts: int, config: SigmoidBiasConfig) -> None:
        super().__init__(width, experts, config)
        self.register_buffer("bias_E", torch.zeros(experts))

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = self.logits(x_TD)
        if self.config.top_groups == self.config.groups and fits(logits_TE):
            rule = ChoiceRule(self.config.top_k, True, self.config.renormalize, _LEAST_SUM, self.config.scale)
            return self.scored_choice(rule, logits_TE, given, self.bias_E)
        score_TE = logits_TE.sigmoid()
        expert_TK = self.choose(given, lambda: self._best(score_TE.detach() + self.bias_E))
        weight_TK = weights_of(score_TE, expert_TK)
        if self.config.renormalize:
            weight_TK = weight_TK / (weight_TK.sum(-1, keepdim=True) + _LEAST_SUM)
        return self.token_choice(expert_TK, weight_TK * self.config.scale, logits_TE, score_TE, given)

    def after_step(self, sums: Sums) -> None:
        """Move the bias by one step against the load of the batch, choices that were dropped included."""
        chosen_E = sums["chosen"].to(self.bias_E.dtype)
        self.bias_E += self.config.bias_step * torch.sign(chosen_E.mean() - chosen_E)

    def _best(self, biased_TE: Tensor) -> Tensor:
        """Choose expert_TK, the K largest inside the best groups."""
        groups, top_groups = self.config.groups, self.config.top_groups
        if top_groups < groups:
            biased_TNE = biased_TE.view(len(biased_TE), groups, -1)
            group_TN = biased_TNE.topk(min(2, biased_TNE.shape[-1])).values.sum(-1)
            open_TN = torch.zeros_like(group_TN, dtype=torch.bool)
            open_TN.scatter_(1, group_TN.topk(top_groups).indices, value=True)
            biased_TE = biased_TNE.masked_fill(~open_TN[:, :, None], -torch.inf).flatten(1)
        return biased_TE.topk(self.config.top_k).indices

    def _apply(self, fn: Callable[[Tensor], Tensor], *arguments: Any, **options: Any) -> Self:
        """Move the bias with the module, but keep it in fp32: in bf16 steps of 0.001 would soon be lost in rounding."""
        kept = self.bias_E
        super()._apply(fn, *arguments, **options)  # type: ignore[no-untyped-call]
        self.bias_E = kept.to(self.bias_E.device)
        return self
