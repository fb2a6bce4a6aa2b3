"""The environment of a measurement: what its record must say of where it was taken."""

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from moekit.core.hardware import hardware


def environment(*packages: str) -> dict[str, Any]:
    """Describe date, machine and versions of moekit, torch and `packages` (None: not installed), for JSON."""
    machine = hardware()
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": machine.cpu,
            "logical_cores": machine.cores,
            "torch_threads": torch.get_num_threads(),
            "isa": torch.backends.cpu.get_cpu_capability(),
            "load_average_1min": os.getloadavg()[0],
            "openmp": {name: value for name, value in sorted(os.environ.items()) if name.startswith(("OMP_", "GOMP_"))},
            "system": machine.system,
        },
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in ("moekit", "torch", *packages)},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
