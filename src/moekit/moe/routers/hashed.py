"""Routing by a hash of the token. T tokens, D model width, E experts, V vocabulary."""

import torch
from torch import Tensor

from moekit.config import HashConfig
from moekit.moe.routers.router import Router
from moekit.moe.routing import RouterInput, Routing


class HashRouter(Router):
    """The expert is a fixed table's entry for the token's id, its weight 1 (Roller et al., arXiv 2106.04426, 3.1).

    The table gives every expert as many ids; `balance` gives every expert about as many tokens. It is kept with the
    weights. There is no parameter.
    """

    expert_V: Tensor

    def __init__(self, width: int, experts: int, config: HashConfig, vocab_size: int) -> None:
        super().__init__(width, experts, config)
        del self.weight  # nothing is learned
        shuffled_V = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(config.seed))
        self.register_buffer("expert_V", shuffled_V % experts)

    def forward(self, x_TD: Tensor, given: RouterInput | None = None) -> Routing:
        """Route by given.token_T; raises ValueError where it is missing."""
        if given is None or given.token_T is None:
            raise ValueError("a hash router needs the ids of the tokens (RouterInput.token_T)")
        dtype = torch.promote_types(torch.float32, x_TD.dtype)
        table_T1 = self.expert_V[given.token_T][:, None]
        expert_T1 = self.choose(given, lambda: table_T1)
        probs_TE = torch.zeros(len(x_TD), self.experts, dtype=dtype, device=x_TD.device)
        probs_TE.scatter_(1, table_T1, 1.0)
        weight_T1 = torch.ones_like(probs_TE[:, :1])
        return self.token_choice(expert_T1, weight_T1, torch.zeros_like(probs_TE), probs_TE, given)

    def initialize(self, std: float) -> None:
        """Draw nothing: the router has no weights."""

    def balance(self, frequency_V: Tensor) -> None:
        """Give each id, the most frequent first, to the expert with the least so far (their "balanced assignment").

        frequency_V: how often each id occurs in training text.
        """
        load = [0.0] * self.experts
        for token in frequency_V.argsort(descending=True, stable=True).tolist():
            expert = load.index(min(load))
            self.expert_V[token] = expert
            load[expert] += float(frequency_V[token])
