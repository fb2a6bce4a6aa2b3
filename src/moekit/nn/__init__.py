"""The parts that models share: norm, rotary positions, attention, feed-forward. Each idea once."""

from moekit.config import AnyAttentionConfig, AttentionConfig
from moekit.nn.attention import Attention, KeyValueCache
from moekit.nn.feed_forward import FeedForward
from moekit.nn.latent_attention import LatentAttention
from moekit.nn.norm import RMSNorm, new_norm
from moekit.nn.rotary import Rotary, Turn
from moekit.nn.scores import Scores, plain_attention, visible


def new_attention(
    width: int, config: AnyAttentionConfig, window: int | None, norm_eps: float
) -> Attention | LatentAttention:
    """The attention that `config` describes, for a layer that looks `window` tokens back (None: everything)."""
    if isinstance(config, AttentionConfig):
        return Attention(width, config, window, norm_eps)
    return LatentAttention(width, config)


def new_rotary(config: AnyAttentionConfig) -> Rotary | None:
    """The rotary positions of all layers' attention, or None where it has others."""
    if isinstance(config, AttentionConfig):
        return Rotary(config.head_width, config) if config.positions == "rotary" else None
    return Rotary(config.rotary_width, config)


__all__ = [
    "Attention",
    "FeedForward",
    "KeyValueCache",
    "LatentAttention",
    "RMSNorm",
    "Rotary",
    "Scores",
    "Turn",
    "new_attention",
    "new_norm",
    "new_rotary",
    "plain_attention",
    "visible",
]
