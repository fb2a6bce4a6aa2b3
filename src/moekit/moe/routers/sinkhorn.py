"""Sinkhorn routing. T tokens, D model width, E experts, K experts per token."""

import torch
from torch import Tensor

from moekit.config import SinkhornConfig
from moekit.moe.routers.router import Router, weights_of
from moekit.moe.routing import RouterInput, Routing


class Sinkhorn(Router):
    """In training the K largest of W x after Sinkhorn's iterations, which make the experts' shares of the batch even.

    Clark et al., arXiv 2202.01169, section 3.2 and appendix B. As in Megatron-LM the weights come from the logits
    alone, a sigmoid at K = 1 and else the softmax over all experts; in evaluation so does the choice. In training,
    therefore, a token's expert depends on the other tokens of the batch; what it then computes does not.
    """

    config: SinkhornConfig

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        expert_TK = self.choose(given, lambda: self._best(logits_TE.detach(), given.real_T))
        score_TE = logits_TE.sigmoid() if self.config.top_k == 1 else probs_TE
        return self.token_choice(expert_TK, weights_of(score_TE, expert_TK), logits_TE, probs_TE, given)

    def _best(self, logits_TE: Tensor, real_T: Tensor | None) -> Tensor:
        if self.training:
            logits_TE = logits_TE + sinkhorn_bias(logits_TE, self.config.iterations, real_T)
        return logits_TE.topk(self.config.top_k).indices


def sinkhorn_bias(logits_TE: Tensor, iterations: int, real_T: Tensor | None = None) -> Tensor:
    """Compute the bias_E with which softmax(logits + bias) gives every expert the same share of the real tokens.

    This is Sinkhorn's alternating normalisation of exp(logits) over rows and columns, in logarithms, so that nothing
    overflows.
    """
    bias_E = torch.zeros_like(logits_TE[0])
    if real_T is not None:
        logits_TE = logits_TE[real_T]
    for _ in range(iterations if len(logits_TE) else 0):
        log_share_TE = (logits_TE + bias_E).log_softmax(-1)
        bias_E = bias_E - log_share_TE.logsumexp(0)
    return bias_E
