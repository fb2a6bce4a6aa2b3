"""Noisy top-k. T tokens, D model width, E experts, K experts per token."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import NoisyTopKConfig
from moekit.moe.balance import smooth_load, squared_variation
from moekit.moe.routers.router import Router, over_tokens, project, weights_of
from moekit.moe.routing import RouterInput, Routing, Sums


class NoisyTopK(Router):
    """H = x W_g + N(0, 1) · softplus(x W_noise); the weights are a softmax over the K largest H.

    Shazeer et al., arXiv 1701.06538, eq. 3–5. Without the noise in evaluation. Both matrices start at zero (their
    appendix A), so that at first the noise alone chooses.
    """

    config: NoisyTopKConfig

    def __init__(self, width: int, experts: int, config: NoisyTopKConfig) -> None:
        super().__init__(width, experts, config, importance=config.importance_loss, load=config.load_loss)
        self.noise_weight = nn.Parameter(torch.empty(experts, width))

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = noisy_TE = self.logits(x_TD)
        scale_TE = None
        if self.training:
            scale_TE = F.softplus(project(x_TD, self.noise_weight))
            noisy_TE = logits_TE + torch.randn_like(logits_TE) * scale_TE
        expert_TK = self.choose(given, lambda: noisy_TE.topk(self.config.top_k).indices)
        weight_TK = weights_of(noisy_TE, expert_TK).softmax(-1)
        routing = self.token_choice(expert_TK, weight_TK, noisy_TE, noisy_TE.softmax(-1), given)
        if scale_TE is None:
            return routing
        gates_TE = torch.zeros_like(noisy_TE).scatter(1, expert_TK.clamp(min=0), weight_TK)
        load_TE = smooth_load(logits_TE, noisy_TE, scale_TE, self.config.top_k)
        return routing.with_sums(
            importance=over_tokens(gates_TE, given.real_T1), load=over_tokens(load_TE, given.real_T1)
        )

    def loss(self, name: str, sums: Sums) -> Tensor:
        """Compute the auxiliary loss of that name, without its coefficient."""
        return squared_variation(sums[name]) if name in ("importance", "load") else super().loss(name, sums)

    def initialize(self, std: float) -> None:
        """Set both matrices to zero, whatever `std` is: at first the noise alone chooses."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.noise_weight)
