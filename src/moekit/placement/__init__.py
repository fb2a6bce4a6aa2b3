"""What of a model lies in memory, and what on disk, so that it stays within a budget."""

from moekit.placement.placed_model import MemoryOptions, PlacedModel, fits, place
from moekit.placement.placed_weights import placed_weights
from moekit.placement.solver import Placement
from moekit.placement.speed import Bandwidths, PredictedSpeed

__all__ = [
    "Bandwidths",
    "MemoryOptions",
    "PlacedModel",
    "Placement",
    "PredictedSpeed",
    "fits",
    "place",
    "placed_weights",
]
