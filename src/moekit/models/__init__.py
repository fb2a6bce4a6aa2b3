"""Whole models, each built from its configuration."""

from moekit.models.decoder import Decoder

__all__ = ["Decoder"]
