"""A matrix whose rows are packed blocks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moekit.kernels.packed.block_types import BlockType

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix of (rows, columns) numbers as it lies in a file: data_RB, uint8, a row's bytes one after the other.

    Several matrices of one shape, such as the experts of a layer, are one matrix with their rows on end.
    """

    data_RB: Bytes
    type: BlockType
    columns: int

    def __post_init__(self) -> None:
        if self.data_RB.shape[1] != self.type.row_bytes(self.columns):
            raise ValueError(f"{self.columns} numbers of {self.type.name} do not take {self.data_RB.shape[1]} bytes")

    @property
    def rows(self) -> int:
        """The number of rows, R."""
        return len(self.data_RB)
