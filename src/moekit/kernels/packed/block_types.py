"""The types of GGUF files that moekit computes with as they are or writes: numbers packed into blocks of bytes.

This is the one list of them. It imports neither torch nor NumPy, so that the command line can name the types at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """A way to pack `numbers` numbers into a block of `size` bytes.

    code: the type's number in a GGUF file.
    """

    name: str
    code: int
    numbers: int
    size: int

    @property
    def bits(self) -> float:
        """Bits per number."""
        return 8 * self.size / self.numbers

    def row_bytes(self, columns: int) -> int:
        """Give the bytes of a row of `columns` numbers; raise ValueError where these are not whole blocks."""
        if columns % self.numbers:
            raise ValueError(f"rows of {columns} numbers are not whole blocks of {self.numbers} ({self.name})")
        return columns // self.numbers * self.size


Q4_0 = BlockType("q4_0", 2, 32, 18)
Q3_K = BlockType("q3_k", 11, 256, 110)
Q4_K = BlockType("q4_k", 12, 256, 144)
Q5_K = BlockType("q5_k", 13, 256, 176)
Q6_K = BlockType("q6_k", 14, 256, 210)
Q8_0 = BlockType("q8_0", 8, 32, 34)
BF16 = BlockType("bf16", 30, 1, 2)
F16 = BlockType("f16", 1, 1, 2)
F32 = BlockType("f32", 0, 1, 4)

BLOCK_TYPES = (Q4_0, Q4_K, Q6_K, Q8_0, BF16, F16, F32)
"""Those that are computed with, from the smallest to the largest."""

WRITTEN_TYPES = (Q3_K, Q4_0, Q4_K, Q5_K, Q6_K, Q8_0, BF16, F16, F32)
"""The types that moekit packs numbers into: q3_k and q5_k for other programs, since it unpacks them to run them."""

BLOCK_TYPES_BY_NAME: Mapping[str, BlockType] = {block_type.name: block_type for block_type in BLOCK_TYPES}
"""Those that are computed with by the names that users know."""

_OTHER_SPELLINGS = {
    **dict.fromkeys(("fp32", "float32", "float"), "f32"),
    **dict.fromkeys(("fp16", "float16", "half"), "f16"),
    "bfloat16": "bf16",
    **dict.fromkeys(("q8", "int8", "8bit"), "q8_0"),
    **dict.fromkeys(("q4", "int4", "4bit"), "q4_k"),
    "q6": "q6_k",
}


def block_type_name(text: str) -> str:
    """Give our name of a type that is spelt in another way: `Q4_K`, `q8-0`, `fp16`; other texts in lower case."""
    name = text.strip().lower().replace("-", "_")
    return _OTHER_SPELLINGS.get(name, name)
