"""Entropy coding: unsigned codes to as few bytes as their distribution allows, and back, without loss.

The coder is that of the constriction package (asymmetric numeral systems, 32-bit words), which comes within 0.001 bit
per code of the model. A string of coded codes is, all integers little-endian:

| Part | Type | Meaning |
|---|---|---|
| bits | u8 | of each code, 1 to 16 |
| models | u8 | 0 none, 1 one for all codes, 2 one for each column |
| bells | 1 + 3 bytes each | see `tsflora.wire.bells`; not with models 0 |
| low bits | packed | above 8 bits per code, the bits that are not modelled, row by row (see `tsflora.wire.bits`) |
| words | u32 each | the modelled bits, column by column; with models 0 instead the codes, packed row by row |
"""

from typing import Any

import constriction
import numpy as np
from jaxtyping import Int64, UInt

from tsflora.errors import FrameError
from tsflora.wire.bells import Bells, fit_bells
from tsflora.wire.bits import code_dtype, pack, packed_bytes, unpack

_Coder = constriction.stream.stack.AnsCoder
_Model = constriction.stream.model.Categorical

_NONE, _ONE, _COLUMNS = range(3)
_MODELLED_BITS = 8
_MIN_ROWS = 16
"""With fewer codes in a column, its three bytes of a model cost more than it could save."""
_MAX_TABLE = 2**22
"""Entries of all columns' probability tables together, above which columns have no models of their own."""

Codes = UInt[np.ndarray, "rows columns"]


def encode_codes(codes: Codes, bits: int) -> bytes:
    """Codes of `bits` bits (1 to 16), coded with a model for each column, or for all, or packed: what is shortest.

    Raises:
        ValueError: a code needs more than `bits` bits.
    """
    packed = pack(codes, bits)
    modelled = min(bits, _MODELLED_BITS)
    high, alphabet = codes >> (bits - modelled), 2**modelled
    counts = _counts(high, alphabet) if _can_have_columns(codes.shape, alphabet) else None
    total = np.bincount(high.ravel(), minlength=alphabet)[None]
    choices = [(how, fit_bells(each), each) for how, each in ((_ONE, total), (_COLUMNS, counts)) if each is not None]
    how, bells, _ = min(choices, key=lambda c: 8 * Bells.written_bytes(len(c[2])) + c[1].bits(c[2]).sum())
    low = pack(codes & (2 ** (bits - modelled) - 1), bits - modelled) if bits > modelled else b""
    words = encode_columns(high if how == _COLUMNS else high.reshape(-1, 1), bells.weights(alphabet))
    coded = bells.written() + low + words
    return bytes([bits, how]) + coded if len(coded) < len(packed) else bytes([bits, _NONE]) + packed


def decode_codes(data: bytes, shape: tuple[int, int], bits: int) -> Codes:
    """Undo `encode_codes` for an array of this shape (rows, columns).

    The shape decides how much is allocated and how long this takes; `data` cannot: callers bound it.

    Raises:
        FrameError: not what `encode_codes` writes for an array of this shape.
    """
    entries = shape[0] * shape[1]
    modelled = min(bits, _MODELLED_BITS)
    if len(data) < 2:
        raise FrameError(f"coded codes are cut short: {len(data)} bytes")
    (found, how), rest = data[:2], data[2:]
    if found != bits:
        raise FrameError(f"coded codes of {bits} bits are expected, given: {found} bits")
    if how == _NONE:
        return unpack(rest, entries, bits).reshape(shape)
    if how > _COLUMNS or (how == _COLUMNS and not _can_have_columns(shape, 2**modelled)):
        raise FrameError(f"coded codes of shape {shape} cannot have models of sort {how}")
    columns = shape[1] if how == _COLUMNS else 1
    low_at = Bells.written_bytes(columns)
    words_at = low_at + (packed_bytes(entries, bits - modelled) if bits > modelled else 0)
    if len(rest) < words_at:
        raise FrameError(f"coded codes of shape {shape} need {words_at} bytes beside the words, given: {len(rest)}")
    weights = Bells.read(rest[:low_at]).weights(2**modelled)
    codes = decode_columns(rest[words_at:], entries // columns, weights).reshape(shape)
    if bits == modelled:
        return codes
    low = unpack(rest[low_at:words_at], entries, bits - modelled).reshape(shape)
    return (codes.astype(code_dtype(bits)) << (bits - modelled)) | low


def encode_columns(codes: Codes, weights: Int64[np.ndarray, "columns alphabet"]) -> bytes:
    """Codes below `alphabet` as 32-bit little-endian words; `weights` (at least 1) are each column's distribution."""
    coder = _Coder()
    columns = codes.T.astype(np.int32, order="C")
    for column, model in zip(columns[::-1], _models(weights[::-1]), strict=True):  # the coder is a stack
        coder.encode_reverse(column, model)
    return coder.get_compressed().astype("<u4").tobytes()


def decode_columns(data: bytes, rows: int, weights: Int64[np.ndarray, "columns alphabet"]) -> Codes:
    """Undo `encode_columns`.

    Raises:
        FrameError: not whole words, or words that no array of this shape is coded to.
    """
    if len(data) % 4:
        raise FrameError(f"coded codes are words of 4 bytes, given: {len(data)} bytes")
    try:
        coder = _Coder(np.frombuffer(data, "<u4").astype(np.uint32))
    except ValueError as error:
        raise FrameError(f"these are no coded codes ({error})") from None
    columns = np.empty((len(weights), rows), code_dtype((weights.shape[1] - 1).bit_length()))
    for column, model in zip(columns, _models(weights), strict=True):
        column[:] = coder.decode(model, rows)
    # The coder is a bijection: only what was coded from nothing leaves nothing.
    if not coder.is_empty():
        raise FrameError("coded codes are damaged: something is left over after the last one")
    return np.ascontiguousarray(columns.T)


def _models(weights: Int64[np.ndarray, "columns alphabet"]) -> list[Any]:
    # Whole numbers and their sums are exact in float64, so both ends round to the same fixed-point table.
    return [_Model(row, perfect=False) for row in weights.astype(np.float64)]


def _can_have_columns(shape: tuple[int, ...], alphabet: int) -> bool:
    return shape[1] > 1 and shape[0] >= _MIN_ROWS and shape[1] * alphabet <= _MAX_TABLE


def _counts(codes: Codes, alphabet: int) -> Int64[np.ndarray, "columns alphabet"]:
    columns = codes.shape[1]
    places = codes + np.arange(columns) * alphabet
    return np.bincount(places.ravel(), minlength=columns * alphabet).reshape(columns, alphabet)
