"""Packing below one byte: unsigned codes to a most-significant-bit-first bit stream and back.

Code `i` of width `bits` fills bits `i * bits` to `(i + 1) * bits - 1` of the stream, its highest bit first; bit 0 of
the stream is the highest bit of byte 0. The last byte is filled up with zero bits.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt

from tsflora.errors import FrameError

MAX_BITS = 16

# Eight codes fill exactly `bits` bytes, so whatever holds for one group of eight holds for all of them at once.
_GROUP = 8


def code_dtype(bits: int) -> type[np.unsignedinteger]:
    """The narrowest unsigned type that holds codes of `bits` bits."""
    return np.uint8 if bits <= 8 else np.uint16


def packed_bytes(count: int, bits: int) -> int:
    """Length of the stream of `count` codes: ceil(count * bits / 8)."""
    return -(-count * bits // 8)


def pack(codes: UInt[np.ndarray, "..."], bits: int) -> bytes:
    """Pack unsigned codes, in C order, at `bits` (1 to 16) bits each into `packed_bytes(codes.size, bits)` bytes.

    Raises:
        ValueError: a code needs more than `bits` bits, or `bits` is outside 1 to 16.
    """
    _check_bits(bits)
    if codes.size and int(codes.max()) >> bits:
        raise ValueError(f"code {int(codes.max())} does not fit in {bits} bits")
    if bits % 8 == 0:
        return codes.astype(f">u{bits // 8}").tobytes()
    grouped = np.zeros((-(-codes.size // _GROUP), _GROUP), np.uint16)
    grouped.ravel()[: codes.size] = codes.ravel()
    stream = np.zeros((len(grouped), bits), np.uint8)
    for code, byte, shift in _overlaps(bits):
        part = grouped[:, code] << shift if shift >= 0 else grouped[:, code] >> -shift
        stream[:, byte] |= part.astype(np.uint8)  # the cast drops the bits of the byte before
    return stream.tobytes()[: packed_bytes(codes.size, bits)]


def unpack(data: bytes | memoryview, count: int, bits: int) -> UInt[np.ndarray, " count"]:
    """Undo `pack`: `count` codes as a fresh uint8 array (uint16 above 8 bits).

    Raises:
        FrameError: `data` is not `packed_bytes(count, bits)` long, or its padding bits are not zero.
        ValueError: `bits` is outside 1 to 16.
    """
    _check_bits(bits)
    expected = packed_bytes(count, bits)
    if len(data) != expected:
        raise FrameError(f"{count} codes of {bits} bits fill {expected} bytes, given: {len(data)} bytes")
    padding = 8 * expected - count * bits
    if padding and data[-1] & ((1 << padding) - 1):
        raise FrameError(f"the {padding} padding bits after {count} codes of {bits} bits must be zero")
    if bits % 8 == 0:
        return np.frombuffer(data, f">u{bits // 8}").astype(code_dtype(bits))
    stream = np.zeros((-(-count // _GROUP), bits), np.uint8)
    stream.ravel()[:expected] = np.frombuffer(data, np.uint8)
    codes = np.zeros((len(stream), _GROUP), np.uint16)
    for code, byte, shift in _overlaps(bits):
        part = stream[:, byte].astype(np.uint16)
        codes[:, code] |= part >> shift if shift >= 0 else part << -shift
    codes &= (1 << bits) - 1  # drops the neighbours' bits that came along in the shared bytes
    return codes.ravel()[:count].astype(code_dtype(bits))


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= MAX_BITS:
        raise ValueError(f"bits must be 1 to {MAX_BITS}, given: {bits}")


def _overlaps(bits: int) -> Iterator[tuple[int, int, int]]:
    """Which code of a group shares bits with which byte, and the left shift that brings the code into place there."""
    for code in range(_GROUP):
        for byte in range(code * bits // 8, ((code + 1) * bits - 1) // 8 + 1):
            yield code, byte, 8 * (byte + 1) - (code + 1) * bits
