"""Sections: the arrays that a frame is made of, and their entries in its table (see `tsflora.wire.frames`)."""

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from jaxtyping import Float, UInt

from tsflora.wire.bits import MAX_BITS, pack, packed_bytes, unpack

MAX_DIMENSIONS = 4
_ENTRY = struct.Struct("<BBBB")
_LENGTH = struct.Struct("<I")
_MAX_SIZE = 2**32 - 1
_CODED_BITS = 8


class Format(IntEnum):
    """How a section's entries are written."""

    PACKED = 1
    FLOAT16 = 2
    FLOAT32 = 3
    CODED = 4


_FLOATS: dict[Format, np.dtype[np.floating]] = {Format.FLOAT16: np.dtype("<f2"), Format.FLOAT32: np.dtype("<f4")}


def numbers(allowed: Iterable[IntEnum]) -> str:
    """The members of an enumeration for an error line: `1 (packed), 2 (float16), ...`."""
    return ", ".join(f"{member.value} ({member.name.lower()})" for member in allowed)


@dataclass(frozen=True)
class Layout:
    """One section's entry in the table: all that its size depends on.

    A coded section has no `length` before there is data; see `expected`.

    Raises:
        ValueError: an entry that the format has no room for.
    """

    shape: tuple[int, ...]
    format: Format
    bits: int
    side: bool = False
    """Side information, such as a quantiser's ranges: counted as header, not as payload."""
    length: int | None = None
    """Bytes of a coded body; None for other formats, whose length follows from the shape."""

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"a section has at most {MAX_DIMENSIONS} dimensions, given: {len(self.shape)}")
        if not all(1 <= size <= _MAX_SIZE for size in self.shape):
            raise ValueError(f"a section's dimensions are 1 to 2^32 - 1, given: {self.shape}")
        if self.bits not in _allowed_bits(self.format):
            raise ValueError(f"a {self.format.name.lower()} section cannot have {self.bits} bits per entry")
        if self.length is not None and self.format != Format.CODED:
            raise ValueError(f"the length of a {self.format.name.lower()} section follows from its shape")
        if self.length is not None and not 1 <= self.length <= _MAX_SIZE:
            raise ValueError(f"a coded section has 1 to 2^32 - 1 bytes, given: {self.length}")

    @classmethod
    def coded(cls, shape: tuple[int, ...] = (), side: bool = False, length: int | None = None) -> "Layout":
        """The layout of a coded section, by default as it is known before there is data."""
        return cls(shape, Format.CODED, _CODED_BITS, side, length)

    @classmethod
    def read(cls, data: bytes, position: int) -> "Layout":
        """The layout whose table entry begins at `position`.

        Raises:
            ValueError: an entry that no writer writes.
            struct.error: `data` ends before the entry does.
        """
        code, flags, bits, dimensions = _ENTRY.unpack_from(data, position)
        if code not in list(Format):
            raise ValueError(f"unknown format {code}; allowed: {numbers(Format)}")
        if flags > 1:
            raise ValueError(f"unknown flags {flags}; allowed: 0, 1")
        shape = struct.unpack_from(f"<{dimensions}I", data, position + _ENTRY.size)
        after = position + _ENTRY.size + 4 * dimensions
        length = _LENGTH.unpack_from(data, after)[0] if code == Format.CODED else None
        return cls(shape, Format(code), bits, bool(flags), length)

    def written(self) -> bytes:
        """The section's entry in the table."""
        entry = _ENTRY.pack(self.format, self.side, self.bits, len(self.shape))
        entry += struct.pack(f"<{len(self.shape)}I", *self.shape)
        return entry + _LENGTH.pack(self.body_bytes) if self.format == Format.CODED else entry

    @property
    def entries(self) -> int:
        """Number of entries; exact, however large the shape. Of a coded section, those that it decodes to."""
        return math.prod(self.shape)

    @property
    def body_bytes(self) -> int:
        """Bytes of the section's body.

        Raises:
            ValueError: a coded section without data.
        """
        if self.format != Format.CODED:
            return packed_bytes(self.entries, self.bits)
        if self.length is None:
            raise ValueError(f"a coded section of shape {self.shape} has no length before there is data")
        return self.length

    @property
    def table_bytes(self) -> int:
        """Length of the section's entry in the table."""
        return _ENTRY.size + 4 * len(self.shape) + (_LENGTH.size if self.format == Format.CODED else 0)

    @property
    def header_bytes(self) -> int:
        """Bytes that the section adds to the header: its table entry, and its body if that is side information."""
        return self.table_bytes + (self.body_bytes if self.side else 0)

    @property
    def expected(self) -> "Layout":
        """This layout as it is known before there is data: without a coded section's length."""
        return replace(self, length=None)


def _allowed_bits(format_: Format) -> Iterable[int]:
    if format_ in _FLOATS:
        return (8 * _FLOATS[format_].itemsize,)
    return (_CODED_BITS,) if format_ == Format.CODED else range(1, MAX_BITS + 1)


@dataclass(frozen=True, eq=False)
class Section:
    """One array in a frame. Build it with `codes`, `float16`, `float32` or `coded`."""

    values: UInt[np.ndarray, "..."] | Float[np.ndarray, "..."]
    """Unsigned codes or floats in the layout's shape; of a coded section its bytes, uint8."""
    layout: Layout

    @classmethod
    def codes(cls, values: UInt[np.ndarray, "..."], bits: int) -> "Section":
        """Unsigned codes below 2^bits."""
        return cls(values, Layout(values.shape, Format.PACKED, bits))

    @classmethod
    def float16(cls, values: Float[np.ndarray, "..."]) -> "Section":
        """Half-precision floats."""
        return cls(values, Layout(values.shape, Format.FLOAT16, 16))

    @classmethod
    def float32(cls, values: Float[np.ndarray, "..."], side: bool = False) -> "Section":
        """Single-precision floats; `side` marks side information."""
        return cls(values, Layout(values.shape, Format.FLOAT32, 32, side))

    @classmethod
    def coded(cls, body: bytes, shape: tuple[int, ...] = (), side: bool = False) -> "Section":
        """Bytes that decode to an array of `shape`, or that say their own size."""
        return cls(np.frombuffer(body, np.uint8), Layout.coded(shape, side, len(body)))

    def body(self) -> bytes:
        """The section's bytes on the wire."""
        if self.layout.format in _FLOATS:
            return self.values.astype(_FLOATS[self.layout.format], copy=False).tobytes()
        if self.layout.format == Format.CODED:
            return self.values.tobytes()
        return pack(self.values, self.layout.bits)

    @classmethod
    def read(cls, body: memoryview, layout: Layout) -> "Section":
        """Undo `body`, into fresh memory.

        Raises:
            FrameError: padding bits that are not zero.
        """
        if layout.format == Format.CODED:
            return cls(np.frombuffer(body, np.uint8).copy(), layout)
        if layout.format in _FLOATS:
            dtype = _FLOATS[layout.format]
            # A copy in native byte order, because torch takes neither read-only nor foreign-endian memory.
            values = np.frombuffer(body, dtype).astype(dtype.newbyteorder("="))
        else:
            values = unpack(body, layout.entries, layout.bits)
        return cls(values.reshape(layout.shape), layout)
