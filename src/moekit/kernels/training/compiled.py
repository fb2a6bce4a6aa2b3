"""The compiled operations of training steps, where the package was built with them."""

import ctypes
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from moekit.kernels.native import available, instruction_set
from moekit.kernels.native.module import native


@lru_cache(maxsize=1)
def trains() -> bool:
    """Tell whether the compiled operations are there and this torch hands them its tensors (since 2.10)."""
    return available() and hasattr(native(), "training") and hasattr(torch.Tensor, "__dlpack_c_exchange_api__")


def multiplies_bf16() -> bool:
    """Tell whether the compiled operations multiply bf16 numbers by the fastest instructions that the processor has.

    They have no products of AMX's tiles, which torch's have.
    """
    return trains() and instruction_set() == "avx512_bf16"


def takes(tensor: Tensor, *dtypes: torch.dtype) -> bool:
    """Tell whether the compiled operations compute with that tensor: a contiguous one of such a dtype on a CPU."""
    return (
        trains()
        and type(tensor) in (Tensor, Parameter)  # others stand for tensors that are traced or not there
        and tensor.is_cpu
        and tensor.dtype in dtypes
        and tensor.is_contiguous()
    )


def takes_bf16(*tensors: Tensor) -> bool:
    """Tell whether the compiled operations compute with those tensors, all in bf16."""
    return all(takes(tensor, torch.bfloat16) for tensor in tensors)


def takes_floats(*tensors: Tensor) -> bool:
    """Tell whether the compiled operations compute with those tensors, each in fp32 or bf16."""
    return all(takes(tensor, torch.float32, torch.bfloat16) for tensor in tensors)


def training() -> Any:
    """Give the module of compiled operations, as many threads wide as torch is at the time."""
    module = _module()
    module.set_threads(min(_cores(), torch.get_num_threads()))
    return module.training


@lru_cache(maxsize=1)
def _module() -> Any:
    """Give the compiled module, whose regions run on torch's own threads from now on, where those are OpenMP's."""
    module = native()
    if team := _team():
        module.borrow_team(*team)
    return module


def _team() -> tuple[int, int, int] | None:
    """Find the entries of the OpenMP runtime that torch is linked with; None where it has another, or none."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    loaded = dict.fromkeys(re.findall(r"(/\S*torch\S*/lib(?:gomp|iomp5|omp)\S*\.so\S*)$", maps, re.MULTILINE))
    if len(loaded) != 1:
        return None
    library = ctypes.CDLL(next(iter(loaded)))  # it is loaded already
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    if not all(hasattr(library, name) for name in names):
        return None
    parallel, thread, threads = (ctypes.cast(getattr(library, name), ctypes.c_void_p).value or 0 for name in names)
    return parallel, thread, threads


@lru_cache(maxsize=1)
def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
