"""What of a model lies in memory, and what on disk, so that it stays within a budget."""

from moekit.placement.placed_model import MemoryOptions, PlacedModel, place
from moekit.placement.placed_weights import LoadedWeights, load_weights
from moekit.placement.solver import Placement
from moekit.placement.speed import Bandwidths, PredictedSpeed

__all__ = [
    "Bandwidths",
    "LoadedWeights",
    "MemoryOptions",
    "PlacedModel",
    "Placement",
    "PredictedSpeed",
    "load_weights",
    "place",
]
