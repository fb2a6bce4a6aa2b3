"""Products with packed matrices, computed on the packed numbers themselves.

B rows of activations (a few), T tokens (many), D columns, R rows of the matrix.
"""

from typing import Any

import numpy as np

from moekit.kernels.native.module import native
from moekit.kernels.packed import Numbers, PackedMatrix


def native_matrix(module: Any, matrix: PackedMatrix) -> Any:
    """Give a matrix as the compiled module takes it, without a copy where its rows lie one after another."""
    return module.Matrix(data=np.ascontiguousarray(matrix.data_RB), type=matrix.type.code, columns=matrix.columns)


def multiply(matrix: PackedMatrix, x_BD: Numbers) -> Numbers:
    """Compute y_BR = x @ matrix^T in fp32 for few rows; what takes time is to read the matrix, once for all of them.

    With F32 and F16 matrices the activations stay fp32, with BF16 they are rounded to bf16. With the block types they
    are rounded to 8 bits, in blocks of 32 with the scale amax / 127, and the products are exact whole numbers: an
    activation moves by at most amax / 254, a result by at most the sum over its columns of |weight| * amax / 254.
    A scale that is not finite, of weights or activations, makes a result that is not. Raises ValueError for other
    widths.
    """
    return _product("multiply", matrix, x_BD)


def multiply_many(matrix: PackedMatrix, x_TD: Numbers) -> Numbers:
    """Compute y_TR = x @ matrix^T for many rows, sums in fp32. Raises ValueError for other widths.

    Where the processor multiplies bf16 numbers and the matrix is not F32, x and the matrix are rounded to them; else
    both are fp32. The matrix is unpacked piece by piece, each of which is used while it is in a core's own cache.
    """
    return _product("multiply_many", matrix, x_TD)


def dequantize(matrix: PackedMatrix, begin: int = 0, end: int | None = None) -> Numbers:
    """Unpack rows begin to end: fp32 numbers with the bits that the format says (as the `gguf` package has them).

    Raises ValueError for rows that the matrix does not have.
    """
    end = matrix.rows if end is None else end
    if not 0 <= begin <= end <= matrix.rows:
        raise ValueError(f"the matrix has {matrix.rows} rows, not {begin} to {end}")
    out_RD = np.empty((end - begin, matrix.columns), np.float32)
    module = native()
    module.dequantize(native_matrix(module, matrix), begin, end, out_RD)
    return out_RD


def read_bandwidth(size: int = 2**30, rounds: int = 5) -> float:
    """Measure the bytes a second that all threads read from memory: the best of `rounds` passes over `size` bytes."""
    return float(native().read_bandwidth(size, rounds))


def _product(name: str, matrix: PackedMatrix, x_BD: Numbers) -> Numbers:
    """Multiply by the native function of that name."""
    if x_BD.ndim != 2 or x_BD.shape[1] != matrix.columns:
        raise ValueError(f"a matrix of {matrix.columns} columns does not go with activations of {x_BD.shape}")
    x_BD = np.ascontiguousarray(x_BD, np.float32)
    y_BR = np.zeros((len(x_BD), matrix.rows), np.float32)
    if y_BR.size and x_BD.size:
        module = native()
        getattr(module, name)(native_matrix(module, matrix), x_BD, y_BR)
    return y_BR
