"""The parts that models share: norm, rope, attention, feed-forward. Each idea once."""

from moekit.config import AnyAttentionConfig, AttentionConfig, NormConfig
from moekit.nn.attention import Attention, KeyValueCache
from moekit.nn.feed_forward import FeedForward
from moekit.nn.latent_attention import LatentAttention
from moekit.nn.norm import LayerNorm, Norm, RMSNorm, new_norm
from moekit.nn.rope import Rope, RopeAngles
from moekit.nn.scores import Scores, plain_attention, visible
from moekit.nn.token_loss import token_loss


def new_attention(width: int, config: AnyAttentionConfig, norm: NormConfig) -> Attention | LatentAttention:
    """Build the attention that `config` describes. norm: of queries and keys, where grouped attention norms them."""
    if isinstance(config, AttentionConfig):
        return Attention(width, config, norm)
    return LatentAttention(width, config)


def new_rope(config: AnyAttentionConfig) -> Rope | None:
    """Build the rotary positions of that attention; None where it has others."""
    if isinstance(config, AttentionConfig):
        return Rope(config.head_width, config) if config.positions == "rotary" else None
    return Rope(config.rotary_width, config)


__all__ = [
    "Attention",
    "FeedForward",
    "KeyValueCache",
    "LatentAttention",
    "LayerNorm",
    "Norm",
    "RMSNorm",
    "Rope",
    "RopeAngles",
    "Scores",
    "new_attention",
    "new_norm",
    "new_rope",
    "plain_attention",
    "token_loss",
    "visible",
]
