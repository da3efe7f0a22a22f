"""Bytes: what every message between a device and the server is made of, whatever it means.

The format is written down in `tsflora.wire.frames`. Nothing here knows of `tsflora.compression`, which gives the arrays
in a frame their meaning.
"""

from tsflora.wire.frames import MAX_CODED_ENTRIES, FrameSize, Kind, header_bytes, measure, read_frame, write_frame
from tsflora.wire.labels import decode_labels, encode_labels, label_bits
from tsflora.wire.sections import Format, Layout, Section

__all__ = [
    "MAX_CODED_ENTRIES",
    "Format",
    "FrameSize",
    "Kind",
    "Layout",
    "Section",
    "decode_labels",
    "encode_labels",
    "header_bytes",
    "label_bits",
    "measure",
    "read_frame",
    "write_frame",
]
