"""The wire format: every message between a device and the server is one frame.

All integers are unsigned and little-endian. A frame is, from its first byte to its last:

| Part | Field | Type | Meaning |
|---|---|---|---|
| prefix | magic | 4 bytes | `TSFL` |
| | version | u8 | 1 |
| | kind | u8 | 1 activations, 2 labels, 3 gradients, 4 adapters, 5 images |
| | sections | u16 | number of sections, at least 1 |
| table, once per section | format | u8 | 1 packed codes, 2 IEEE float16, 3 IEEE float32 |
| | flags | u8 | 1 side information (ranges and the like), 0 payload |
| | bits | u8 | bits per entry: 1 to 16 (packed), 16 (float16), 32 (float32) |
| | dimensions | u8 | 0 (a scalar) to 4 |
| | shape | u32 each | none is 0 |
| body, once per section | entries | | C order, ceil(entries * bits / 8) bytes; little-endian floats, codes as `bits` |
| checksum | crc | u32 | CRC-32 (zlib) of everything before it |

There is one frame for given sections and no slack in it: a reader refuses what a writer would not have written.
Payload is the bodies of the sections that are not side information; everything else counts as header.
"""

import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from jaxtyping import Float, UInt

from tsflora.errors import FrameError
from tsflora.wire.bits import MAX_BITS, pack, packed_bytes, unpack

MAGIC = b"TSFL"
VERSION = 1
MAX_DIMENSIONS = 4

_PREFIX = struct.Struct("<4sBBH")
_ENTRY = struct.Struct("<BBBB")
_CHECKSUM = struct.Struct("<I")
_MAX_SECTIONS = 2**16 - 1
_MAX_SIZE = 2**32 - 1


class Kind(IntEnum):
    """What a frame carries."""

    ACTIVATIONS = 1
    LABELS = 2
    GRADIENTS = 3
    ADAPTERS = 4
    IMAGES = 5


class Format(IntEnum):
    """How a section's entries are written."""

    PACKED = 1
    FLOAT16 = 2
    FLOAT32 = 3


_FLOATS: dict[Format, np.dtype[np.floating]] = {Format.FLOAT16: np.dtype("<f2"), Format.FLOAT32: np.dtype("<f4")}


@dataclass(frozen=True)
class Layout:
    """One section's entry in the table: all that its size depends on.

    Raises:
        ValueError: an entry that the format has no room for.
    """

    shape: tuple[int, ...]
    format: Format
    bits: int
    side: bool = False
    """Side information, such as a quantiser's ranges: counted as header, not as payload."""

    def __post_init__(self) -> None:
        if len(self.shape) > MAX_DIMENSIONS:
            raise ValueError(f"a section has at most {MAX_DIMENSIONS} dimensions, given: {len(self.shape)}")
        if not all(1 <= size <= _MAX_SIZE for size in self.shape):
            raise ValueError(f"a section's dimensions are 1 to 2^32 - 1, given: {self.shape}")
        allowed = [8 * _FLOATS[self.format].itemsize] if self.format in _FLOATS else range(1, MAX_BITS + 1)
        if self.bits not in allowed:
            raise ValueError(f"a {self.format.name.lower()} section cannot have {self.bits} bits per entry")

    @property
    def entries(self) -> int:
        """Number of entries; exact, however large the shape."""
        return math.prod(self.shape)

    @property
    def body_bytes(self) -> int:
        """Bytes of the section's body."""
        return packed_bytes(self.entries, self.bits)

    @property
    def header_bytes(self) -> int:
        """Bytes that the section adds to the header: its table entry, and its body if that is side information."""
        return _ENTRY.size + 4 * len(self.shape) + (self.body_bytes if self.side else 0)


@dataclass(frozen=True, eq=False)
class Section:
    """One array in a frame: unsigned codes of `bits` bits, or floats. Build it with `codes`, `float16` or `float32`."""

    values: UInt[np.ndarray, "..."] | Float[np.ndarray, "..."]
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

    def body(self) -> bytes:
        """The section's bytes on the wire."""
        if self.layout.format in _FLOATS:
            return self.values.astype(_FLOATS[self.layout.format], copy=False).tobytes()
        return pack(self.values, self.layout.bits)


@dataclass(frozen=True)
class FrameSize:
    """Where a frame's bytes go; `payload_bytes + header_bytes` is its length."""

    kind: Kind
    payload_bytes: int
    header_bytes: int


def header_bytes(layouts: Iterable[Layout]) -> int:
    """Bytes that a frame with these sections has beside its payload: prefix, table, side information, checksum."""
    return _PREFIX.size + sum(layout.header_bytes for layout in layouts) + _CHECKSUM.size


def write_frame(kind: Kind, sections: Sequence[Section]) -> bytes:
    """One frame; its length is `header_bytes` of the layouts plus ceil(entries * bits / 8) per payload section.

    Raises:
        ValueError: no section or more than 65535, or a code that does not fit its bits.
    """
    if not 1 <= len(sections) <= _MAX_SECTIONS:
        raise ValueError(f"a frame has 1 to {_MAX_SECTIONS} sections, given: {len(sections)}")
    parts = [_PREFIX.pack(MAGIC, VERSION, kind, len(sections))]
    for section in sections:
        layout = section.layout
        parts.append(_ENTRY.pack(layout.format, layout.side, layout.bits, len(layout.shape)))
        parts.append(struct.pack(f"<{len(layout.shape)}I", *layout.shape))
    parts.extend(section.body() for section in sections)
    content = b"".join(parts)
    return content + _CHECKSUM.pack(zlib.crc32(content))


def read_frame(data: bytes, expected: Kind) -> list[Section]:
    """The sections of a frame of the `expected` kind; their arrays are fresh and may be written to.

    Nothing is allocated on the strength of a claim: the sizes that the table claims must first add up to `len(data)`.

    Raises:
        FrameError: the bytes are truncated, extended, damaged, of another format, version or kind.
    """
    kind, layouts, position = _read_table(data)
    if kind != expected:
        raise FrameError(f"expected a frame of {expected.name.lower()}, given: {kind.name.lower()}")
    checksum = zlib.crc32(memoryview(data)[: -_CHECKSUM.size])
    if checksum != _CHECKSUM.unpack_from(data, len(data) - _CHECKSUM.size)[0]:
        raise FrameError("the frame is damaged: its checksum does not match its content; send it again")
    return list(_read_bodies(memoryview(data), layouts, position))


def measure(data: bytes) -> FrameSize:
    """How many of a frame's bytes are payload and how many are header.

    Raises:
        FrameError: the table is not that of a frame of this length (the checksum is left to `read_frame`).
    """
    kind, layouts, _ = _read_table(data)
    header = header_bytes(layouts)
    return FrameSize(kind, len(data) - header, header)


def _read_table(data: bytes) -> tuple[Kind, list[Layout], int]:
    """Kind, layouts and where the bodies begin, once the claimed sizes add up to the length of `data`."""
    if len(data) < _PREFIX.size:
        raise FrameError(f"the frame is cut short: {len(data)} bytes, the prefix alone has {_PREFIX.size}")
    magic, version, kind, count = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise FrameError(f"not a frame: it starts with {magic!r}, a frame with {MAGIC!r}")
    if version != VERSION:
        raise FrameError(f"frame version {version} cannot be read; allowed: {VERSION}")
    if kind not in list(Kind):
        raise FrameError(f"unknown frame kind {kind}; allowed: {_numbers(Kind)}")
    if count == 0:
        raise FrameError("the frame has no sections, at least 1 is needed")
    layouts = []
    position = _PREFIX.size
    for index in range(count):
        try:
            layout = _read_layout(data, position)
        except struct.error:
            raise FrameError(f"the frame is cut short in the table entry of section {index}") from None
        except ValueError as error:
            raise FrameError(f"section {index}: {error}") from None
        layouts.append(layout)
        position += _ENTRY.size + 4 * len(layout.shape)
    claimed = position + sum(layout.body_bytes for layout in layouts) + _CHECKSUM.size
    if claimed != len(data):
        raise FrameError(f"the frame's table claims {claimed} bytes, given: {len(data)} bytes")
    return Kind(kind), layouts, position


def _read_layout(data: bytes, position: int) -> Layout:
    code, flags, bits, dimensions = _ENTRY.unpack_from(data, position)
    if code not in list(Format):
        raise ValueError(f"unknown format {code}; allowed: {_numbers(Format)}")
    if flags > 1:
        raise ValueError(f"unknown flags {flags}; allowed: 0, 1")
    shape = struct.unpack_from(f"<{dimensions}I", data, position + _ENTRY.size)
    return Layout(shape, Format(code), bits, side=bool(flags))


def _numbers(allowed: Iterable[IntEnum]) -> str:
    return ", ".join(f"{member.value} ({member.name.lower()})" for member in allowed)


def _read_bodies(data: memoryview, layouts: Sequence[Layout], position: int) -> Iterator[Section]:
    for layout in layouts:
        body = data[position : position + layout.body_bytes]
        if layout.format in _FLOATS:
            dtype = _FLOATS[layout.format]
            # A copy in native byte order, because torch takes neither read-only nor foreign-endian memory.
            values = np.frombuffer(body, dtype).astype(dtype.newbyteorder("="))
        else:
            values = unpack(body, layout.entries, layout.bits)
        yield Section(values.reshape(layout.shape), layout)
        position += layout.body_bytes
