"""Parameters and FLOPs of a model, counted from its configuration alone.

FLOPs are those of matrix products, a multiply-add counted as two: 2 per weight and token, and 4 H C per token and key
for attention, every one of the `context` keys counted although half of them are masked (PaLM, arXiv 2204.02311,
appendix B, so that figures compare). Training costs three times the forward pass: each product has two in its gradient.
Nothing is added for recomputed activations or the optimiser.
"""

from collections import Counter
from dataclasses import dataclass

from moekit.config import (
    AnyAttentionConfig,
    AttentionConfig,
    DenseConfig,
    FeedForwardConfig,
    LSTMConfig,
    ModelConfig,
    MoEConfig,
)


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """The number of a model's parameters.

    Attributes:
        total: all of them.
        active: those that take part in one token's forward pass, embedding tables included.
        by_part: the numbers by the part of the model.
    """

    total: int
    active: int
    by_part: dict[str, int]


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Count parameters by part: embedding, attention, norm, dense, router, experts, branch, head (0 where tied)."""
    width = config.width
    parts: Counter[str] = Counter(
        embedding=(config.vocab_size + (config.context if config.learned_positions else 0)) * width,
        attention=sum(_attention(width, layer.attention) for layer in config.layers),
        norm=_norms(config),
        head=0 if config.tie_embeddings else config.vocab_size * width,
        dense=0,
        router=0,
        experts=0,
        branch=0,
    )
    idle = 0
    for layer in config.feed_forwards:
        match layer:
            case DenseConfig():
                parts["dense"] += _parameters(width, layer)
            case MoEConfig():
                expert = _parameters(width, _expert(layer))
                parts["router"] += (_projections(layer) + _noise_projections(layer)) * width * layer.experts
                parts["experts"] += expert * layer.experts
                parts["branch"] += _branch(width, layer)
                idle += expert * (layer.experts - layer.router.experts_per_token)
    total = sum(parts.values())
    return ParameterCount(total=total, active=total - idle, by_part=dict(parts))


def inference_flops_per_token(config: ModelConfig, context: int) -> int:
    """Count FLOPs of the forward pass for one token that attends to `context` keys, its prediction included."""
    layers = sum(
        2 * _attention_weights(config.width, layer.attention)
        + _scores(layer.attention) * min(context, layer.attention.window or context)
        + _feed_forward_flops(config.width, layer.feed_forward)
        for layer in config.layers
    )
    return layers + 2 * config.width * config.vocab_size


def training_flops_per_token(config: ModelConfig, context: int) -> int:
    """Count FLOPs of the forward and backward pass for one token in sequences of `context` tokens.

    Where a capacity drops assignments, it is what they would have cost: a bound from above.
    """
    noise = sum(
        2 * config.width * layer.experts * _noise_projections(layer)
        for layer in config.feed_forwards
        if isinstance(layer, MoEConfig)
    )
    return 3 * (inference_flops_per_token(config, context) + noise)


def cached_values_per_token(config: ModelConfig) -> int:
    """Count the numbers that the KV caches of all layers hold for one token; a window bounds the tokens, not this."""
    return sum(layer.attention.cached_values_per_token for layer in config.layers)


def count_lstm_parameters(config: LSTMConfig) -> ParameterCount:
    """Count parameters by part: embedding, layers, head (its bias alone where the matrices are tied)."""
    layers = sum(4 * width * (inputs + width) + 8 * width for inputs, width in config.layer_shapes)
    matrix = 0 if config.tie_embeddings else config.vocab_size * config.widths[-1]
    parts = {
        "embedding": config.vocab_size * config.embedding_width,
        "layers": layers,
        "head": config.vocab_size + matrix,
    }
    return ParameterCount(total=sum(parts.values()), active=sum(parts.values()), by_part=parts)


def lstm_forward_flops_per_token(config: LSTMConfig) -> int:
    """Count FLOPs of the forward pass for one token, its prediction included; training costs three times that.

    The gates' own arithmetic, some operations a unit, is not counted.
    """
    layers = sum(4 * width * (inputs + width) for inputs, width in config.layer_shapes)
    return 2 * (layers + config.widths[-1] * config.vocab_size)


def _attention_weights(width: int, attention: AnyAttentionConfig) -> int:
    """Count the weights of the matrices that every token passes."""
    heads = attention.heads
    if isinstance(attention, AttentionConfig):
        return width * attention.head_width * (2 * heads + 2 * attention.kv_heads)
    queries, values = attention.head_width + attention.rotary_width, attention.value_width
    query = width * attention.query_rank if attention.query_rank else 0
    query += (attention.query_rank or width) * heads * queries
    latent = width * (attention.kv_rank + attention.rotary_width)
    return query + latent + attention.kv_rank * heads * (attention.head_width + values) + heads * values * width


def _attention(width: int, attention: AnyAttentionConfig) -> int:
    """Count all of a layer's parameters, biases and norms of queries, keys and latents included."""
    count = _attention_weights(width, attention)
    if isinstance(attention, AttentionConfig):
        heads, kv_heads, head_width = attention.heads, attention.kv_heads, attention.head_width
        if attention.query_key_norm != "none":
            count += head_width * (heads + kv_heads if attention.query_key_norm == "all" else 2)
        biases = (heads + 2 * kv_heads) * head_width if attention.qkv_bias else 0
        return count + biases + (width if attention.output_bias else 0)
    ranks = attention.kv_rank + (attention.query_rank or 0)
    return count + ranks + ((ranks + attention.rotary_width + width) if attention.bias else 0)


def _scores(attention: AnyAttentionConfig) -> int:
    """Count FLOPs of one token's scores with one key and of mixing in its value."""
    if isinstance(attention, AttentionConfig):
        return 4 * attention.heads * attention.head_width
    return 2 * attention.heads * (attention.head_width + attention.rotary_width + attention.value_width)


def _norms(config: ModelConfig) -> int:
    per_layer = {"pre": 2, "sandwich": 4, "parallel": 2, "parallel_shared": 1}
    vectors = {"rms": 1, "layer": 2}
    layers = sum(per_layer[layer.block] * vectors[layer.norm.kind] for layer in config.layers)
    return (layers + vectors[config.norm.kind]) * config.width


def _feed_forward_flops(width: int, layer: FeedForwardConfig) -> int:
    if isinstance(layer, DenseConfig):
        return 2 * _network(width, layer)
    active = layer.router.experts_per_token * _network(width, _expert(layer))
    # The bias of the residual branch's coefficients is an addition, not a product.
    mixing = {"none": 0, "shared": 0, "gated_shared": width, "residual": 2 * width}[layer.branch]
    branch = _network(width, layer.dense_branch) if layer.branch != "none" else 0
    return 2 * (active + branch + mixing + _projections(layer) * width * layer.experts)


def _expert(layer: MoEConfig) -> DenseConfig:
    """Describe one of the experts as a dense network."""
    return DenseConfig(width=layer.expert_width, activation=layer.activation, gated=layer.gated, bias=layer.bias)


def _network(width: int, layer: DenseConfig) -> int:
    """Count the weights of its matrices."""
    return (3 if layer.gated else 2) * width * layer.width


def _parameters(width: int, layer: DenseConfig) -> int:
    """Count all of a network's parameters, biases included."""
    biases = ((2 if layer.gated else 1) * layer.width + width) if layer.bias else 0
    return _network(width, layer) + biases


def _branch(width: int, layer: MoEConfig) -> int:
    if layer.branch == "none":
        return 0
    mixing = {"shared": 0, "gated_shared": width, "residual": 2 * width + 2}[layer.branch]
    return _parameters(width, layer.dense_branch) + mixing


def _projections(layer: MoEConfig) -> int:
    """Count the router's matrices that a forward pass multiplies with: a hash needs none."""
    return 0 if layer.router.kind == "hash" else 1


def _noise_projections(layer: MoEConfig) -> int:
    """Count the router's matrices that only training needs."""
    return 1 if layer.router.kind == "noisy_top_k" else 0
