"""Checkpoint folders of Hugging Face's layout: where their tensors lie, reading them, writing them."""

from moekit.checkpoint.layout import Part, Stored, View, stored, whole
from moekit.checkpoint.loading import check_weights, dtype_of, read_weights
from moekit.checkpoint.parts import LayoutError
from moekit.checkpoint.tensors import StoredTensors, TensorInfo
from moekit.checkpoint.writing import check_replaceable, write_folder, write_weights

__all__ = [
    "LayoutError",
    "Part",
    "Stored",
    "StoredTensors",
    "TensorInfo",
    "View",
    "check_replaceable",
    "check_weights",
    "dtype_of",
    "read_weights",
    "stored",
    "whole",
    "write_folder",
    "write_weights",
]
