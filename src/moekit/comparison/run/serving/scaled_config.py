"""A contestant's plan at a larger size: the same proportions, so many times as wide and so many times as deep."""

from dataclasses import dataclass

from moekit.config import AnyAttentionConfig, AttentionConfig, DenseConfig, FeedForwardConfig, ModelConfig
from moekit.core.errors import UsageError
from moekit.counting import count_parameters


@dataclass(frozen=True)
class Growth:
    """How many times as wide, hidden networks and the number of heads included, and as deep a model becomes."""

    width: int
    depth: int


def growth_to(config: ModelConfig, parameters: float) -> Growth:
    """Find the growth after which the layers of `config` have about so many active parameters.

    Width and depth grow alike, as far as whole numbers allow: what is active grows with width squared times depth.
    """
    counted = count_parameters(config)
    active = counted.active - counted.by_part["embedding"] - counted.by_part["head"]
    times = parameters / active
    width = max(1, round(times ** (1 / 3)))
    return Growth(width, max(1, round(times / width**2)))


def scaled(config: ModelConfig, growth: Growth, context: int) -> ModelConfig:
    """Describe the same model grown: more heads, as wide as before, and experts as many as before, each wider.

    The plan of layers is repeated as a whole, so that kinds of layers keep their shares. The vocabulary stays.

    Raises:
        UsageError: where a layer's attention is not grouped.
    """
    layers = tuple(
        layer.model_copy(
            update={
                "attention": _attention(layer.attention, growth.width),
                "feed_forward": _feed_forward(layer.feed_forward, growth.width),
            }
        )
        for layer in config.layers
    )
    return config.model_copy(
        update={"width": config.width * growth.width, "layers": layers * growth.depth, "context": context}
    )


def _attention(attention: AnyAttentionConfig, times: int) -> AttentionConfig:
    if not isinstance(attention, AttentionConfig):
        raise UsageError(f"attention of kind {attention.kind} does not grow")
    return attention.model_copy(update={"heads": attention.heads * times, "kv_heads": attention.kv_heads * times})


def _feed_forward(layer: FeedForwardConfig, times: int) -> FeedForwardConfig:
    if isinstance(layer, DenseConfig):
        return layer.model_copy(update={"width": layer.width * times})
    return layer.model_copy(
        update={"expert_width": layer.expert_width * times, "branch_width": layer.branch_width * times}
    )
