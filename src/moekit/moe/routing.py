"""Routing is data: the input of a router and its decision, whichever router it was.

T tokens (all sequences of the batch, one after the other), E experts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moekit.kernels.assignments import Assignments

Sums = Mapping[str, Tensor]
"""Sums over tokens by name, from which auxiliary losses are made. They add up over micro-batches and over ranks."""


@dataclass
class Decision:
    """The discrete part of one layer's routing, empty until the first forward pass fills it; later passes obey it.

    Activations that are computed again in the backward pass differ in the last bit, and a near tie would fall the other
    way: with the same Decision the same experts compute as in the first pass.

    Attributes:
        chosen: expert ids (T, K), or token ids (E, capacity) of expert choice.
    """

    chosen: Tensor | None = None

    def keep(self, choose: Callable[[], Tensor]) -> Tensor:
        """Give what was chosen in the first pass; this pass is the first, and calls `choose`, if there was none."""
        if self.chosen is None:
            # Without gradients: nothing is saved for backward that a pass which obeys would not save again.
            with torch.no_grad():
                self.chosen = choose()
        return self.chosen


@dataclass(frozen=True, kw_only=True)
class RouterInput:
    """The input that some routers need beside x_TD.

    Attributes:
        token_T: int64 ids of the tokens, for the hash router.
        real_T: bool, False at padding, which no expert computes and no loss counts. None means that all tokens are
            real.
        decision: the choices of the first pass, kept for later ones.
    """

    token_T: Tensor | None = None
    real_T: Tensor | None = None
    decision: Decision | None = None

    @property
    def real_T1(self) -> Tensor | None:
        """real_T as a column, to mask tensors with a row per token."""
        return None if self.real_T is None else self.real_T[:, None]

    def keep(self, choose: Callable[[], Tensor]) -> Tensor:
        """Give what the decision holds already; call `choose` where there is no decision, or none yet."""
        return self.decision.keep(choose) if self.decision else choose()


@dataclass(frozen=True, kw_only=True)
class Routing:
    """One MoE layer's decision on T tokens.

    Attributes:
        assignments: S (token, weight) pairs grouped by expert: all that experts and dispatch need.
        probs_TE: the router's scores, at least fp32.
        counts_E: int64, assignments per expert.
        sums: sums over the tokens that are not padding, from which auxiliary losses and telemetry come. Always there
            are: tokens, chosen (E: how many tokens chose each expert), computed (E: less where a capacity drops),
            top_score, logit_squares; in training also what the router's losses need.
    """

    assignments: Assignments
    probs_TE: Tensor
    counts_E: Tensor
    sums: dict[str, Tensor]

    def with_sums(self, **more: Tensor) -> "Routing":
        """Copy the routing with more sums."""
        return replace(self, sums=self.sums | more)
