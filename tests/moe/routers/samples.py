"""What the tests of routers share: one configuration of each kind, and routers in double with unit-scale weights."""

from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from moekit.config import AnyRouterConfig
from moekit.moe import Router, RouterInput, Routing, new_router

WIDTH, VOCAB = 6, 23

KINDS: dict[str, dict[str, Any]] = {
    "softmax_top_k": {"top_k": 2},
    "noisy_top_k": {"top_k": 2, "z_loss": 0.001},
    "switch": {},
    "gshard": {},
    "expert_choice": {"leaky": True},
    "sigmoid_bias": {"top_k": 2, "z_loss": 0.001},
    "hash": {},
    "sinkhorn": {"top_k": 2},
}
LEARNED = [kind for kind in KINDS if kind != "hash"]
TOKEN_CHOICE = [kind for kind in KINDS if kind != "expert_choice"]


def config(kind: str, **changes: Any) -> AnyRouterConfig:
    """The usual one of that kind, changed."""
    given = {"kind": kind} | KINDS[kind] | changes
    return TypeAdapter(AnyRouterConfig).validate_python(given)  # type: ignore[no-any-return]


def dropless(kind: str) -> dict[str, Any]:
    """The changes that turn a capacity off, where the kind has one."""
    return {"capacity_factor": None} if kind in ("switch", "gshard") else {}


def router(kind: str, experts: int = 4, **changes: Any) -> Router:
    """In double, its weights from N(0, 1), in training."""
    made = new_router(WIDTH, experts, config(kind, **changes), VOCAB).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def given(tokens: int, **more: Any) -> RouterInput:
    """A RouterInput with ids of tokens."""
    return RouterInput(token_T=torch.arange(tokens) * 7 % VOCAB, **more)


def listed(routing: Routing) -> list[tuple[int, int, float]]:
    """The assignments as (expert, token, weight), in the order in which they lie."""
    token_S, weight_S = routing.assignments.token_S.tolist(), routing.assignments.weight_S.tolist()
    offsets = routing.assignments.expert_offsets
    return [
        (expert, token_S[s], weight_S[s])
        for expert in range(len(offsets) - 1)
        for s in range(offsets[expert], offsets[expert + 1])
    ]


def unscaled_losses(made: Router, sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """The router's losses without their coefficients."""
    return {name: value / made.coefficients[name] for name, value in made.losses(sums).items()}


def make_shaky(router: Router, shake: np.random.Generator) -> None:
    """All logits tie but for the last bits, which differ at every call.

    shake: not torch's random numbers, which a checkpoint puts back.
    """
    plain = router.logits

    def logits(x_TD: Tensor) -> Tensor:
        logits_TE = plain(x_TD)
        return logits_TE * 0.0 + 1.0 + torch.from_numpy(shake.normal(scale=1e-14, size=tuple(logits_TE.shape)))

    router.logits = logits  # type: ignore[method-assign]
