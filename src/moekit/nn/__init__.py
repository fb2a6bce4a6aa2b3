"""The parts that models share: norm, rotary positions, attention, feed-forward. Each idea once."""

from moekit.nn.attention import Attention, KeyValueCache
from moekit.nn.feed_forward import GatedFeedForward
from moekit.nn.norm import RMSNorm
from moekit.nn.rotary import Rotary

__all__ = ["Attention", "GatedFeedForward", "KeyValueCache", "RMSNorm", "Rotary"]
