"""The Python side of what `native/training` compiles for training steps on a CPU: a file an operation.

Each function takes contiguous tensors on the CPU and allocates what it gives; none of them is differentiable by itself.
How an operation is added is said in `native/training/tables.h`.
"""
