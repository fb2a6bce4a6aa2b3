"""Tensors in aligned memory, so that products of matrices have the same bits wherever a tensor was stored."""

from torch import Tensor

ALIGNMENT = 64
"""Bytes. What torch takes of the CPU's memory begins at a multiple of it, and Intel's guide to MKL asks for it where
results have to be the same in every run (Developer Guide, "Obtaining Numerically Reproducible Results")."""


def aligned(tensor: Tensor) -> Tensor:
    """Return the tensor itself where it begins at a 64-byte boundary, and a contiguous copy that does where not.

    A tensor of a safetensors file that lies in memory as it lies in the file begins wherever the file's header ends. A
    product of one row of float32 or float64 (on some processors of two or three, too) then has other last bits than
    the same product of aligned memory, since MKL chooses its code by the address. What promises bits therefore takes
    every stored tensor that it multiplies through this function.
    """
    if tensor.data_ptr() % ALIGNMENT == 0:
        return tensor
    return tensor.contiguous().clone()
