"""Routers: which experts see which token, with what weight.

T tokens, D model width, E experts, K experts per token. All of a router's arithmetic is in fp32 whatever the precision
of the model: in bf16 near ties fall the wrong way (Switch Transformer, arXiv 2101.03961, section 2.4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moekit.config import MoEConfig
from moekit.kernels import assign_top_k
from moekit.moe.balance import load_balancing_loss, z_loss
from moekit.moe.routing import Routing


class SoftmaxTopK(nn.Module):
    """p = softmax(W x); the K largest p are the experts and their weights, divided by their sum if `renormalize`.

    Mixtral (arXiv 2401.04088, section 2.1) renormalises; OLMoE and Grok-1 do not.
    """

    def __init__(self, width: int, config: MoEConfig) -> None:
        super().__init__()
        self.config = config
        self.weight = nn.Parameter(torch.empty(config.experts, width))

    def forward(self, x_TD: Tensor) -> Routing:
        """Route x_TD; losses `balance` and `z` are there in training, where their coefficients are not 0."""
        with torch.autocast(x_TD.device.type, enabled=False):
            # Double stays double, so that references can be held to 1e-10.
            dtype = torch.promote_types(torch.float32, self.weight.dtype)
            logits_TE = F.linear(x_TD.to(dtype), self.weight.to(dtype))
            probs_TE = logits_TE.softmax(-1)
            weights_TK, ids_TK = probs_TE.topk(self.config.router.top_k)
            if self.config.router.renormalize:
                weights_TK = weights_TK / weights_TK.sum(-1, keepdim=True)
            assignments = assign_top_k(ids_TK, weights_TK, experts=self.config.experts)
            counts_E = torch.tensor(assignments.expert_offsets).diff().to(x_TD.device)
            losses = self._losses(logits_TE, probs_TE, counts_E) if self.training else {}
        return Routing(assignments=assignments, probs_TE=probs_TE, counts_E=counts_E, losses=losses)

    def _losses(self, logits_TE: Tensor, probs_TE: Tensor, counts_E: Tensor) -> dict[str, Tensor]:
        losses = {}
        if self.config.balance_loss:
            losses["balance"] = self.config.balance_loss * load_balancing_loss(probs_TE, counts_E)
        if self.config.z_loss:
            losses["z"] = self.config.z_loss * z_loss(logits_TE)
        return losses
