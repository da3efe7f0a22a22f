"""The wire format: every message between a device and the server is one frame.

All integers are unsigned and little-endian. A frame is, from its first byte to its last:

| Part | Field | Type | Meaning |
|---|---|---|---|
| prefix | magic | 4 bytes | `TSFL` |
| | version | u8 | 1 |
| | kind | u8 | 1 activations, 2 labels, 3 gradients, 4 adapters, 5 images, 6 control |
| | sections | u16 | number of sections, at least 1 |
| table, once per section | format | u8 | 1 packed codes, 2 IEEE float16, 3 IEEE float32, 4 coded bytes |
| | flags | u8 | 1 side information (ranges and the like), 0 payload |
| | bits | u8 | bits per entry: 1 to 16 (packed), 16 (float16), 32 (float32); 8 (coded) |
| | dimensions | u8 | 0 (a scalar) to 4 |
| | shape | u32 each | none is 0 |
| | length | u32 | only coded: bytes of the body, at least 1 |
| body, once per section | entries | | C order, ceil(entries * bits / 8) bytes; little-endian floats, codes as `bits` |
| | bytes | | coded: `length` bytes, whose meaning is up to who wrote them |
| checksum | crc | u32 | CRC-32 (zlib) of everything before it |

A coded section is for data whose length depends on the data. Its shape is that of the array that the body decodes to;
a string of bytes that says its own size, such as a file, has none (dimensions 0). An entropy coder can put any number
of entries into one bit, so the length bounds nothing: all coded shapes of a frame together may claim at most
`MAX_CODED_ENTRIES`, which is what a reader has to be ready to allocate.

There is one frame for given sections and no slack in it: a reader refuses what a writer would not have written.
Payload is the bodies of the sections that are not side information; everything else counts as header.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

from tsflora.errors import FrameError
from tsflora.wire.sections import Format, Layout, Section, numbers

MAGIC = b"TSFL"
VERSION = 1
MAX_CODED_ENTRIES = 2**28
"""Entries that the coded sections of one frame may decode to: 1024 images of 197 tokens of 1024 dimensions and more."""

_PREFIX = struct.Struct("<4sBBH")
_CHECKSUM = struct.Struct("<I")
_MAX_SECTIONS = 2**16 - 1


class Kind(IntEnum):
    """What a frame carries."""

    ACTIVATIONS = 1
    LABELS = 2
    GRADIENTS = 3
    ADAPTERS = 4
    IMAGES = 5
    CONTROL = 6


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
    """One frame; its length is `header_bytes` of the layouts plus `body_bytes` of each payload section.

    Raises:
        ValueError: no section or more than 65535, a code that does not fit its bits, or coded sections that decode to
            more than `MAX_CODED_ENTRIES`.
    """
    if not 1 <= len(sections) <= _MAX_SECTIONS:
        raise ValueError(f"a frame has 1 to {_MAX_SECTIONS} sections, given: {len(sections)}")
    layouts = [section.layout for section in sections]
    _check_coded_entries(layouts)
    prefix = _PREFIX.pack(MAGIC, VERSION, kind, len(sections))
    table = (layout.written() for layout in layouts)
    content = b"".join([prefix, *table, *(section.body() for section in sections)])
    return content + _CHECKSUM.pack(zlib.crc32(content))


def read_frame(data: bytes, expected: Kind) -> list[Section]:
    """The sections of a frame of the `expected` kind; their arrays are fresh and may be written to.

    Nothing is allocated on the strength of a claim: the sizes that the table claims must first add up to `len(data)`.
    A coded section is handed on as its bytes; its shape is at most `MAX_CODED_ENTRIES` large.

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
        raise FrameError(f"unknown frame kind {kind}; allowed: {numbers(Kind)}")
    if count == 0:
        raise FrameError("the frame has no sections, at least 1 is needed")
    layouts = []
    position = _PREFIX.size
    for index in range(count):
        try:
            layout = Layout.read(data, position)
        except struct.error:
            raise FrameError(f"the frame is cut short in the table entry of section {index}") from None
        except ValueError as error:
            raise FrameError(f"section {index}: {error}") from None
        layouts.append(layout)
        position += layout.table_bytes
    try:
        _check_coded_entries(layouts)
    except ValueError as error:
        raise FrameError(str(error)) from None
    claimed = position + sum(layout.body_bytes for layout in layouts) + _CHECKSUM.size
    if claimed != len(data):
        raise FrameError(f"the frame's table claims {claimed} bytes, given: {len(data)} bytes")
    return Kind(kind), layouts, position


def _check_coded_entries(layouts: Iterable[Layout]) -> None:
    entries = sum(layout.entries for layout in layouts if layout.format == Format.CODED)
    if entries > MAX_CODED_ENTRIES:
        raise ValueError(f"coded sections claim to decode to {entries} entries; allowed: {MAX_CODED_ENTRIES} a frame")


def _read_bodies(data: memoryview, layouts: Sequence[Layout], position: int) -> Iterator[Section]:
    for layout in layouts:
        yield Section.read(data[position : position + layout.body_bytes], layout)
        position += layout.body_bytes
