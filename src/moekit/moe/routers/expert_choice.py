"""Expert choice. T tokens, D model width, E experts, C tokens an expert."""

import torch
from torch import Tensor

from moekit.config import ExpertChoiceConfig
from moekit.kernels.assignments import assign
from moekit.moe.dispatch import expert_capacity
from moekit.moe.routers.router import Router
from moekit.moe.routing import RouterInput, Routing


class ExpertChoice(Router):
    """p = softmax(W x) over experts; each expert takes its C = ceil(T · mean_experts / E) best tokens, weighed by p.

    Zhou et al., arXiv 2202.09368, section 3.2; no auxiliary loss, nothing is renormalised. A token may be taken by any
    number of experts, also by none. Which ones depends on all other tokens of the batch, later ones included; and a
    token alone, as in generation, is taken by all.
    """

    config: ExpertChoiceConfig

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        token_EC = given.keep(lambda: self._best(probs_TE, given))
        experts, capacity = token_EC.shape
        expert_S = torch.arange(experts, device=x_TD.device).repeat_interleave(capacity)
        token_S = token_EC.flatten()
        assignments = assign(token_S, expert_S, probs_TE[token_S, expert_S], tokens=len(x_TD), experts=experts)
        chosen_E = torch.full((experts,), capacity, device=x_TD.device)
        return self.routing(assignments, chosen_E, logits_TE, probs_TE, given)

    def _best(self, probs_TE: Tensor, given: RouterInput) -> Tensor:
        """Choose token_EC, the best tokens of each expert."""
        tokens = len(probs_TE)
        if given.real_T is not None:
            probs_TE = probs_TE.masked_fill(~given.real_T[:, None], -1.0)
            tokens = int(given.real_T.sum())
        capacity = expert_capacity(tokens, per_token=self.config.mean_experts, experts=self.experts, factor=1.0)
        return probs_TE.t().topk(min(capacity, tokens)).indices
