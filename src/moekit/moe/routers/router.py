"""What routers have in common: the projection, its precision, and the way from choices to a Routing.

T tokens, D model width, E experts, K experts per token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from moekit.config import RouterConfig
from moekit.core.errors import UsageError
from moekit.kernels.assignments import Assignments
from moekit.kernels.training.compiled import takes
from moekit.kernels.training.router_passes import router_grad_weight, router_grad_x, router_logits
from moekit.moe.balance import load_balancing_loss, z_loss
from moekit.moe.dispatch import NO_EXPERT, chosen_or_meant, dispatch, expert_capacity
from moekit.moe.routers.choice import ChoiceRule, choose_scored
from moekit.moe.routing import RouterInput, Routing, Sums


class Router(nn.Module):
    """A module that decides which experts see which token, with what weight.

    All of a router's arithmetic is in at least fp32 whatever the precision of the model: in bf16 near ties fall the
    wrong way (Switch Transformer, arXiv 2101.03961, section 2.4). A subclass writes `route`, and `loss` where it has
    its own; it draws random numbers in training only.

    Attributes:
        coefficients: the coefficients of the auxiliary losses, by name.
        balanced: the name of the sum whose choices the balance loss looks at.
    """

    balanced = "chosen"

    def __init__(self, width: int, experts: int, config: RouterConfig, **coefficients: float) -> None:
        super().__init__()
        self.experts, self.config = experts, config
        self.capacity_factor = config.capacity_factor
        self.coefficients = {name: value for name, value in {"z": config.z_loss, **coefficients}.items() if value}
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x_TD: Tensor, given: RouterInput | None = None) -> Routing:
        """Route x_TD; `given` holds what some routers need beside it."""
        with torch.autocast(x_TD.device.type, enabled=False):
            return self.route(x_TD, given or RouterInput())

    def route(self, x_TD: Tensor, given: RouterInput) -> Routing:
        """Route x_TD; autocast is off here."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        """Enter training mode, or leave it; raises UsageError where the weights are to learn and never would.

        Frozen ones (requires_grad off) are no obstacle: the experts behind them can be trained.
        """
        if mode and self.config.never_learns and self.weight.requires_grad:
            raise UsageError(f"This model cannot be trained: {self.config.never_learns}.")
        return super().train(mode)

    def losses(self, sums: Sums) -> dict[str, Tensor]:
        """Compute the auxiliary losses by name, times their coefficients, from the sums over a whole batch."""
        return {name: coefficient * self.loss(name, sums) for name, coefficient in self.coefficients.items()}

    def loss(self, name: str, sums: Sums) -> Tensor:
        """Compute the auxiliary loss of that name, without its coefficient; a subclass adds its own."""
        if name == "balance":
            return load_balancing_loss(sums[self.balanced], sums["probs"], sums["tokens"])
        assert name == "z", name
        return z_loss(sums["z_squares"], sums["tokens"])

    def after_step(self, sums: Sums) -> None:
        """Update what is not learned by gradients, once an optimiser step, from the sums of its whole batch."""

    def initialize(self, std: float) -> None:
        """Draw the weights anew."""
        nn.init.normal_(self.weight, std=std)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Compute the logits W x, (T, E), in at least fp32 whatever the precision of x."""
        return project(x_TD, self.weight)

    def choose(self, given: RouterInput, choice: Callable[[], Tensor]) -> Tensor:
        """Give expert_TK, the ids that `choice` gives, or gave in the first pass; those of padding are negative."""

        def choose() -> Tensor:
            expert_TK = choice()
            return expert_TK if given.real_T1 is None else torch.where(given.real_T1, expert_TK, NO_EXPERT)

        return given.keep(choose)

    def scored_choice(
        self, rule: ChoiceRule, logits_TE: Tensor, given: RouterInput, bias_E: Tensor | None = None
    ) -> Routing:
        """Make the Routing of `choice.choose_scored`, whose logits fit it; a Decision that is filled is obeyed."""
        decision = given.decision
        with_squares = self.training and "z" in self.coefficients
        found = choose_scored(
            rule,
            logits_TE,
            bias_E=bias_E,
            real_T=given.real_T,
            decided_TK=None if decision is None else decision.chosen,
            with_squares=with_squares,
        )
        if decision is not None:
            decision.keep(lambda: found.expert_TK)
        assignments = self.assignments(found.expert_TK, found.weight_TK, given)
        counts_E = found.chosen_E if self.capacity_factor is None else counts_of(assignments, found.chosen_E.device)
        tokens, top_score, logit_squares = found.figures.unbind()
        sums = {"tokens": tokens, "top_score": top_score, "logit_squares": logit_squares}
        sums |= {"chosen": found.chosen_E, "computed": counts_E}
        if self.training:
            sums["probs"] = found.score_sums_E
            if with_squares:
                sums["z_squares"] = found.log_sum_squares
        return Routing(assignments=assignments, probs_TE=found.score_TE, counts_E=counts_E, sums=sums)

    def token_choice(
        self,
        expert_TK: Tensor,
        weight_TK: Tensor,
        logits_TE: Tensor,
        probs_TE: Tensor,
        given: RouterInput,
        queue: Literal["tokens", "choices"] = "tokens",
    ) -> Routing:
        """Make the Routing in which each token has the experts expert_TK, as far as the capacity allows."""
        assignments = self.assignments(expert_TK, weight_TK, given, queue)
        chosen_E = count_choices(expert_TK, self.experts)
        return self.routing(assignments, chosen_E, logits_TE, probs_TE, given)

    def assignments(
        self,
        expert_TK: Tensor,
        weight_TK: Tensor,
        given: RouterInput,
        queue: Literal["tokens", "choices"] = "tokens",
    ) -> Assignments:
        """Make the assignments of expert_TK, as far as the capacity allows."""
        tokens, per_token = expert_TK.shape
        capacity = None
        if self.capacity_factor is not None:
            real = tokens if given.real_T is None else int(given.real_T.sum())
            capacity = expert_capacity(real, per_token=per_token, experts=self.experts, factor=self.capacity_factor)
        return dispatch(expert_TK, weight_TK, experts=self.experts, capacity=capacity, queue=queue)

    def routing(
        self, assignments: Assignments, chosen_E: Tensor, logits_TE: Tensor, probs_TE: Tensor, given: RouterInput
    ) -> Routing:
        """Make a Routing with the sums that every router has."""
        counts_E = counts_of(assignments, chosen_E.device)
        real_T1 = given.real_T1
        sums = observed(logits_TE.detach(), probs_TE.detach(), real_T1) | {"chosen": chosen_E, "computed": counts_E}
        if self.training:
            sums["probs"] = over_tokens(probs_TE, real_T1)
            if "z" in self.coefficients:
                sums["z_squares"] = over_tokens(logits_TE.logsumexp(-1, keepdim=True).square(), real_T1).squeeze()
        return Routing(assignments=assignments, probs_TE=probs_TE, counts_E=counts_E, sums=sums)


@contextmanager
def without_capacity(model: nn.Module) -> Iterator[None]:
    """Let the routers of a model drop nothing while the block runs.

    A capacity is of the tokens that are routed together. What a model makes of a text must not depend on what else
    stands in its batch, nor on whether the text comes token by token, where nothing is ever dropped.
    """
    limited = [(router, router.capacity_factor) for router in model.modules() if isinstance(router, Router)]
    try:
        for router, _ in limited:
            router.capacity_factor = None
        yield
    finally:
        for router, factor in limited:
            router.capacity_factor = factor


class _Project(torch.autograd.Function):
    """Compute x W^T in the precision of `dtype`, and the gradient of W too.

    The gradient of x goes on in the precision of x: that of bf16 is computed in it on a GPU and by torch, where fp32
    would cost more than the rest of a router, only to be rounded.
    """

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_ED: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(x_TD, weight_ED)
        ctx.native = takes(x_TD, torch.bfloat16, torch.float32) and takes(weight_ED, torch.float32)
        if ctx.native:
            return router_logits(x_TD, weight_ED)
        return F.linear(x_TD.to(dtype), weight_ED.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TE: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_TD, weight_ED = ctx.saved_tensors
        needs_x, needs_weight, _ = ctx.needs_input_grad
        if ctx.native:
            grad_TE = grad_TE.contiguous()
            grad_x_TD = router_grad_x(grad_TE, weight_ED, x_TD.dtype) if needs_x else None
            return grad_x_TD, router_grad_weight(grad_TE, x_TD) if needs_weight else None, None
        grad_x_TD = grad_TE.to(x_TD.dtype) @ weight_ED.to(x_TD.dtype) if needs_x else None
        grad_ED = grad_TE.t() @ x_TD.to(grad_TE.dtype) if needs_weight else None
        return grad_x_TD, None if grad_ED is None else grad_ED.to(weight_ED.dtype), None


def project(x_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """Compute x W^T, (T, E), in at least fp32; double stays double, so that references can be held to 1e-12."""
    dtype = torch.promote_types(torch.promote_types(torch.float32, x_TD.dtype), weight_ED.dtype)
    logits_TE: Tensor = _Project.apply(x_TD, weight_ED, dtype)  # type: ignore[no-untyped-call]
    return logits_TE


def observed(logits_TE: Tensor, probs_TE: Tensor, real_T1: Tensor | None) -> dict[str, Tensor]:
    """Sum up how the router is doing: the tokens, their highest scores, and the squares of their logits."""
    top_T1 = probs_TE.amax(-1, keepdim=True)
    if real_T1 is not None:
        logits_TE, top_T1 = logits_TE.masked_fill(~real_T1, 0), top_T1.masked_fill(~real_T1, 0)
    tokens = top_T1.new_tensor(len(top_T1)) if real_T1 is None else real_T1.sum().to(top_T1.dtype)
    flat_N = logits_TE.reshape(-1)
    return {"tokens": tokens, "top_score": top_T1.sum(), "logit_squares": flat_N.dot(flat_N)}


def over_tokens(values_TN: Tensor, real_T1: Tensor | None) -> Tensor:
    """Sum values_TN over the tokens that are not padding, (N)."""
    return values_TN.sum(0) if real_T1 is None else values_TN.masked_fill(~real_T1, 0).sum(0)


def counts_of(assignments: Assignments, device: torch.device) -> Tensor:
    """Count the assignments of each expert, int64."""
    return torch.tensor([end - begin for begin, end in pairwise(assignments.expert_offsets)], device=device)


def count_choices(expert_TK: Tensor, experts: int) -> Tensor:
    """Count chosen_E: how often each expert was chosen."""
    return torch.bincount(expert_TK.flatten().clamp(min=-1) + 1, minlength=experts + 1)[1:]


def weights_of(score_TE: Tensor, expert_TK: Tensor) -> Tensor:
    """Give weight_TK, the scores of the chosen experts, also of those that a negative id only remembers."""
    return score_TE.gather(1, chosen_or_meant(expert_TK))
