"""Whole models, each built from its configuration."""

from moekit.models.base import LanguageModel
from moekit.models.decoder import Decoder
from moekit.models.loading import MODELS, build, find, load

__all__ = ["MODELS", "Decoder", "LanguageModel", "build", "find", "load"]
