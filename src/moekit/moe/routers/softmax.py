"""Routers that choose by a softmax over all experts: plain top-k, Switch's top-1, GShard's top-2.

T tokens, D model width, E experts, K experts per token.
"""

import torch
from torch import Tensor

from moekit.config import GShardConfig, SoftmaxTopKConfig, SwitchConfig
from moekit.moe.dispatch import not_chosen
from moekit.moe.routers.choice import ChoiceRule, fits
from moekit.moe.routers.router import Router, count_choices, weights_of
from moekit.moe.routing import RouterInput, Routing


class SoftmaxTopK(Router):
    """p = softmax(W x); the K largest p are the experts and their weights, divided by their sum if `renormalize`.

    Mixtral (arXiv 2401.04088, section 2.1) renormalises; OLMoE (arXiv 2409.02060) and Grok-1 do not.
    """

    config: SoftmaxTopKConfig

    def __init__(self, width: int, experts: int, config: SoftmaxTopKConfig) -> None:
        super().__init__(width, experts, config, balance=config.balance_loss)

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = self.logits(x_TD)
        if fits(logits_TE):
            rule = ChoiceRule(self.config.top_k, renormalize=self.config.renormalize)
            return self.scored_choice(rule, logits_TE, given)
        probs_TE = logits_TE.softmax(-1)
        expert_TK = self.choose(given, lambda: probs_TE.topk(self.config.top_k).indices)
        weight_TK = weights_of(probs_TE, expert_TK)
        if self.config.renormalize:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        return self.token_choice(expert_TK, weight_TK, logits_TE, probs_TE, given)


class Switch(Router):
    """The expert with the largest p = softmax(W x), weighed by p (Switch Transformer, arXiv 2101.03961, eq. 1–2).

    In training the router's input, and only the router's, is multiplied by jitter from U(1 - e, 1 + e).
    """

    config: SwitchConfig

    def __init__(self, width: int, experts: int, config: SwitchConfig) -> None:
        super().__init__(width, experts, config, balance=config.balance_loss)

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        if self.training and self.config.jitter:
            # In fp32: bf16 has steps of 0.008 around 1.
            jitter_TD = torch.empty_like(x_TD, dtype=torch.promote_types(torch.float32, x_TD.dtype))
            x_TD = x_TD * jitter_TD.uniform_(1 - self.config.jitter, 1 + self.config.jitter)
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)
        expert_T1 = self.choose(given, lambda: probs_TE.argmax(-1, keepdim=True))
        return self.token_choice(expert_T1, weights_of(probs_TE, expert_T1), logits_TE, probs_TE, given)


class GShard(Router):
    """The two largest p of softmax(W x), divided by p_1 + p_2 + 1e-9 before anything is dropped.

    In training the second is kept where u < weight / threshold, u from U(0, 1); in evaluation always. All first choices
    queue before all second ones; the balance loss counts first choices (GShard, arXiv 2006.16668, algorithm 1).
    """

    balanced = "first_choices"

    config: GShardConfig

    def __init__(self, width: int, experts: int, config: GShardConfig) -> None:
        super().__init__(width, experts, config, balance=config.balance_loss)

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        logits_TE = self.logits(x_TD)
        probs_TE = logits_TE.softmax(-1)

        # Drawn in every pass, also where a Decision makes it idle: layers behind then draw what they drew in the first.
        random = self.training and self.config.second_threshold > 0
        u_T = torch.rand_like(probs_TE[:, 0]) if random else None

        def choice() -> Tensor:
            top_T2, expert_T2 = probs_TE.topk(2)
            if u_T is not None:
                second_T = top_T2[:, 1] / (top_T2.sum(-1) + 1e-9)
                drawn_T = u_T < second_T / self.config.second_threshold
                expert_T2[:, 1] = torch.where(drawn_T, expert_T2[:, 1], not_chosen(expert_T2[:, 1]))
            return expert_T2

        expert_T2 = self.choose(given, choice)
        # An expert that was not drawn still counts in the sum.
        weight_T2 = weights_of(probs_TE, expert_T2)
        weight_T2 = weight_T2 / (weight_T2.sum(-1, keepdim=True) + 1e-9)
        routing = self.token_choice(expert_T2, weight_T2, logits_TE, probs_TE, given, queue="choices")
        return routing.with_sums(first_choices=count_choices(expert_T2[:, :1], self.experts))
