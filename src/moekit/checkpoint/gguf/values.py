"""The metadata part of a GGUF file, read value by value; every length is compared with the bytes there are.

The format: ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import overload

import numpy as np

# By the number that stands before a value.
_SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_ARRAY_DTYPES = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


class Damaged(ValueError):
    """The bytes are not what the format says."""


class Strings(Sequence[str]):
    """An array of texts where it lies in the file; a text is decoded when it is asked for."""

    def __init__(self, data: memoryview, starts_N: np.ndarray, what: str) -> None:
        self._data, self._starts_N, self._what = data, starts_N, what

    def __len__(self) -> int:
        return len(self._starts_N)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._text(int(start)) for start in self._starts_N[index]]
        return self._text(int(self._starts_N[index]))

    def __iter__(self) -> Iterator[str]:
        return iter(self[:])

    def raw(self) -> list[bytes]:
        """Give the bytes of each text: old files may hold some that are no UTF-8."""
        if not len(self):
            return []
        # They lie one behind the other, so that each ends where the length of the next one stands.
        first, last = int(self._starts_N[0]), int(self._starts_N[-1])
        end = last + 8 + _U64.unpack_from(self._data, last)[0]
        block = bytes(self._data[first:end])
        begins, ends = self._starts_N - first + 8, np.append(self._starts_N[1:], end) - first
        return [block[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]

    def _text(self, start: int) -> str:
        (length,) = _U64.unpack_from(self._data, start)
        return _decoded(self._data[start + 8 : start + 8 + length], self._what)


Value = int | float | bool | str | Strings | np.ndarray
"""What metadata may be; arrays are views of the file."""


class Cursor:
    """A position in the file, which each value read moves on; `data` is all of the file."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.position = data, 0

    def u32(self) -> int:
        """Read an unsigned number of 4 bytes."""
        return int(self._scalar(_U32))

    def u64(self) -> int:
        """Read an unsigned number of 8 bytes."""
        return int(self._scalar(_U64))

    def text(self, what: str) -> str:
        """Read a text; `what` names it in the error where it is damaged."""
        length = self.u64()
        self._need(length, what)
        begin = self.position
        self.position += length
        return _decoded(self.data[begin : self.position], what)

    def value(self, key: str) -> Value:
        """Read the value of `key`, which begins with its type."""
        kind = self.u32()
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text(f"the text of {key!r}")
        if kind == _ARRAY:
            return self._array(f"the array {key!r}")
        raise Damaged(f"{key!r} has the unknown type {kind}")

    def _array(self, what: str) -> Value:
        kind, count = self.u32(), self.u64()
        if kind == _STRING:
            self._need(8 * count, what)
            return self._strings(count, what)
        # Arrays of arrays are in the format, and in no file there is.
        if kind not in _ARRAY_DTYPES:
            raise Damaged(f"{what} is of the unknown type {kind}")
        dtype = np.dtype(_ARRAY_DTYPES[kind])
        self._need(count * dtype.itemsize, what)
        array_N: np.ndarray = np.frombuffer(self.data, dtype, count, self.position)
        self.position += array_N.nbytes
        return array_N

    def _strings(self, count: int, what: str) -> Strings:
        """Pass over the texts by their lengths: hundreds of thousands take a few hundredths of a second."""
        starts = array("q")
        data, position, last = self.data, self.position, len(self.data) - 8
        unpack = _U64.unpack_from
        for _ in range(count):
            if position > last:
                raise Damaged(f"{what} is longer than the file")
            starts.append(position)
            position += 8 + unpack(data, position)[0]
        self.position = position
        self._need(0, what)
        return Strings(data, np.frombuffer(starts, np.int64), what)

    def _scalar(self, form: struct.Struct) -> int | float | bool:
        self._need(form.size, "its first part")
        (value,) = form.unpack_from(self.data, self.position)
        self.position += form.size
        return value  # type: ignore[no-any-return]

    def _need(self, size: int, what: str) -> None:
        if size > len(self.data) - self.position:
            raise Damaged(f"{what} is longer than the file")


def _decoded(raw: memoryview, what: str) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError as error:
        raise Damaged(f"{what} is not UTF-8") from error
