"""The compiled kernels: products with packed matrices, and what is built on them. Not there without a compiler."""

from moekit.kernels.native.module import available, instruction_set, threads
from moekit.kernels.native.products import dequantize, multiply, multiply_many, read_bandwidth

__all__ = ["available", "dequantize", "instruction_set", "multiply", "multiply_many", "read_bandwidth", "threads"]
