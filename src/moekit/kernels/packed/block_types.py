"""How numbers are packed into blocks: the types of GGUF files that moekit computes with as they are."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """`numbers` numbers a block, in `size` bytes; `code` is the type's number in a GGUF file."""

    name: str
    code: int
    numbers: int
    size: int

    @property
    def bits(self) -> float:
        """Per weight."""
        return 8 * self.size / self.numbers

    def row_bytes(self, columns: int) -> int:
        """Of a row; ValueError where the columns are not whole blocks."""
        if columns % self.numbers:
            raise ValueError(f"rows of {columns} numbers are not whole blocks of {self.numbers} ({self.name})")
        return columns // self.numbers * self.size


F32 = BlockType("f32", 0, 1, 4)
F16 = BlockType("f16", 1, 1, 2)
Q4_0 = BlockType("q4_0", 2, 32, 18)
Q8_0 = BlockType("q8_0", 8, 32, 34)
Q4_K = BlockType("q4_k", 12, 256, 144)
Q6_K = BlockType("q6_k", 14, 256, 210)
BF16 = BlockType("bf16", 30, 1, 2)

BLOCK_TYPES = (F32, F16, Q4_0, Q8_0, Q4_K, Q6_K, BF16)


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
        """R."""
        return len(self.data_RB)
