"""The machine that a comparison runs on, as it stands in the plan and in the results."""

import platform
from typing import Annotated, Literal

from pydantic import Field

from moekit.config import Config
from moekit.core import hardware


class Machine(Config):
    """What computed, and with which precision."""

    cpu: str
    cores: int
    memory_bytes: int
    system: str
    python: str
    torch: str
    precision: Annotated[Literal["float32", "bfloat16"], Field(description="of matrix products in training")]


def this_machine(precision: hardware.Precision) -> Machine:
    """Describe the machine that this runs on."""
    import torch

    found = hardware.hardware()
    return Machine(
        cpu=found.cpu,
        cores=found.cores,
        memory_bytes=found.memory_bytes,
        system=found.system,
        python=platform.python_version(),
        torch=str(torch.__version__),
        precision=precision,
    )
