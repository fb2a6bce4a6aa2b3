"""The routers of the literature, each a class that states its equation and its source."""

from moekit.config import (
    AnyRouterConfig,
    ExpertChoiceConfig,
    GShardConfig,
    HashConfig,
    NoisyTopKConfig,
    SigmoidBiasConfig,
    SinkhornConfig,
    SoftmaxTopKConfig,
    SwitchConfig,
)
from moekit.moe.routers.expert_choice import ExpertChoice
from moekit.moe.routers.hashed import HashRouter
from moekit.moe.routers.noisy import NoisyTopK
from moekit.moe.routers.router import Router, without_capacity
from moekit.moe.routers.sigmoid import SigmoidBias
from moekit.moe.routers.sinkhorn import Sinkhorn
from moekit.moe.routers.softmax import GShard, SoftmaxTopK, Switch

__all__ = [
    "ExpertChoice",
    "GShard",
    "HashRouter",
    "NoisyTopK",
    "Router",
    "SigmoidBias",
    "Sinkhorn",
    "SoftmaxTopK",
    "Switch",
    "new_router",
    "without_capacity",
]


def new_router(width: int, experts: int, config: AnyRouterConfig, vocab_size: int) -> Router:
    """Make the router that `config` describes.

    Args:
        width: the width of the model, D.
        experts: the number of experts, E.
        config: the kind of router and its settings.
        vocab_size: the model's vocabulary, for the router that hashes token ids.
    """
    match config:
        case SoftmaxTopKConfig():
            return SoftmaxTopK(width, experts, config)
        case NoisyTopKConfig():
            return NoisyTopK(width, experts, config)
        case SwitchConfig():
            return Switch(width, experts, config)
        case GShardConfig():
            return GShard(width, experts, config)
        case ExpertChoiceConfig():
            return ExpertChoice(width, experts, config)
        case SigmoidBiasConfig():
            return SigmoidBias(width, experts, config)
        case HashConfig():
            return HashRouter(width, experts, config, vocab_size)
        case SinkhornConfig():
            return Sinkhorn(width, experts, config)
