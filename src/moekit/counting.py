"""Parameters and FLOPs of a model, counted from its configuration alone.

FLOPs are those of matrix products, a multiply-add counted as two: 2 per weight and token, and 4 H C per token and key
for attention, every one of the `context` keys counted although half of them are masked (PaLM, arXiv 2204.02311,
appendix B, so that figures compare). Training costs three times the forward pass: each product has two in its gradient.
Nothing is added for recomputed activations or the optimiser.
"""

from collections import Counter
from dataclasses import dataclass

from moekit.config import DenseConfig, FeedForwardConfig, ModelConfig, MoEConfig


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """total: all of them. active: those that take part in one token's forward pass, embedding tables included."""

    total: int
    active: int
    by_part: dict[str, int]


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count by part: embedding, attention, norm, dense, router, experts, branch, head (0 where tied)."""
    width, attention = config.width, config.attention
    projections = width * attention.head_width * (2 * attention.heads + 2 * attention.kv_heads)
    parts: Counter[str] = Counter(
        embedding=config.vocab_size * width,
        attention=projections * len(config.layers),
        norm=(2 * len(config.layers) + 1) * width,
        head=0 if config.tie_embeddings else config.vocab_size * width,
        dense=0,
        router=0,
        experts=0,
        branch=0,
    )
    idle = 0
    for layer in config.layers:
        match layer:
            case DenseConfig():
                parts["dense"] += _gated(width, layer.width)
            case MoEConfig():
                expert = _gated(width, layer.expert_width)
                parts["router"] += (_projections(layer) + _noise_projections(layer)) * width * layer.experts
                parts["experts"] += expert * layer.experts
                parts["branch"] += _gated(width, layer.branch_width) + _mixing(width, layer)
                idle += expert * (layer.experts - layer.router.experts_per_token)
    total = sum(parts.values())
    return ParameterCount(total=total, active=total - idle, by_part=dict(parts))


def inference_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of the forward pass for one token that attends to `context` keys, its prediction included."""
    attention = config.attention
    projections = 2 * config.width * attention.head_width * (2 * attention.heads + 2 * attention.kv_heads)
    scores = 4 * attention.heads * attention.head_width * context
    feed_forward = sum(_feed_forward_flops(config.width, layer) for layer in config.layers)
    return len(config.layers) * (projections + scores) + feed_forward + 2 * config.width * config.vocab_size


def training_flops_per_token(config: ModelConfig, context: int) -> int:
    """FLOPs of the forward and backward pass for one token in sequences of `context` tokens.

    Where a capacity drops assignments, it is what they would have cost: a bound from above.
    """
    noise = sum(
        2 * config.width * layer.experts * _noise_projections(layer)
        for layer in config.layers
        if isinstance(layer, MoEConfig)
    )
    return 3 * (inference_flops_per_token(config, context) + noise)


def _feed_forward_flops(width: int, layer: FeedForwardConfig) -> int:
    if isinstance(layer, DenseConfig):
        return 2 * _gated(width, layer.width)
    active = layer.router.experts_per_token * layer.expert_width + layer.branch_width
    # The bias of the residual branch's coefficients is an addition, not a product.
    mixing = 2 * width if layer.branch == "residual" else 0
    return 2 * (_gated(width, active) + _projections(layer) * width * layer.experts + mixing)


def _gated(width: int, hidden: int) -> int:
    return 3 * width * hidden


def _mixing(width: int, layer: MoEConfig) -> int:
    return 2 * width + 2 if layer.branch == "residual" else 0


def _projections(layer: MoEConfig) -> int:
    """Matrices of the router's that a forward pass multiplies with: a hash needs none."""
    return 0 if layer.router.kind == "hash" else 1


def _noise_projections(layer: MoEConfig) -> int:
    """Those that only training needs."""
    return 1 if layer.router.kind == "noisy_top_k" else 0
