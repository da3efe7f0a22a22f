"""Models of integer codes that both ends can build to the bit: three bytes for each bell-shaped distribution.

A bell is a Student t density on the codes 0 to 2^bits - 1 with 2^(shape + 1) - 1 degrees of freedom,

    p(k) ~ (1 + ((k - location) / scale)^2 / (2^(shape + 1) - 1))^-(2^shape),

near a Gaussian for the largest shape and with heavy tails for the smallest. A power of two as exponent leaves nothing
to compute but sums, products and quotients, which IEEE 754 rounds in the same way on every machine; exponentials it
does not. Weights are integers, so that no sum of them depends on its order.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from tsflora.errors import FrameError

SHAPES = (1, 2, 4)
_PEAK = 2.0**20
_LOCATIONS = 2**16
_SCALES = np.array([(16 + code % 16) * 2.0 ** (code // 16 - 8) for code in range(256)])
"""What the byte of a scale stands for: 1/16 to 3968 codes, in steps of at most 1/16 of it."""
_NEAREST = (_SCALES[1:] + _SCALES[:-1]) / 2
_EM_STEPS = 3
_SMALL_ALPHABET = 16
_SEARCH = (8, 4, 2, 1)

Weights = Int64[np.ndarray, "bells alphabet"]


@dataclass(frozen=True)
class Bells:
    """Distributions of one shape over one alphabet."""

    shape: int
    locations: Int64[np.ndarray, " bells"]
    """In units of alphabet / 2^16."""
    scales: Int64[np.ndarray, " bells"]
    """Indices of the 256 scales that there are."""

    @staticmethod
    def written_bytes(count: int) -> int:
        """Length of `written` for this number of bells."""
        return 1 + 3 * count

    def written(self) -> bytes:
        """Shape, locations (u16, little-endian) and scales (u8)."""
        return bytes([self.shape]) + self.locations.astype("<u2").tobytes() + self.scales.astype("u1").tobytes()

    @classmethod
    def read(cls, data: bytes) -> "Bells":
        """Undo `written`; `data` has a length that it can have.

        Raises:
            FrameError: a shape that there is none of.
        """
        if data[0] not in SHAPES:
            raise FrameError(f"unknown shape {data[0]} of a model; allowed: {', '.join(map(str, SHAPES))}")
        count = len(data) // 3
        locations = np.frombuffer(data, "<u2", count, offset=1).astype(np.int64)
        return cls(data[0], locations, np.frombuffer(data, "u1", count, offset=1 + 2 * count).astype(np.int64))

    def weights(self, alphabet: int) -> Weights:
        """Each code's probability up to a common factor, at least 1 and at most 2^20 + 1."""
        location = (self.locations / (_LOCATIONS // alphabet))[:, None]
        power = np.square((np.arange(alphabet) - location) / _SCALES[self.scales, None])
        power = power / (2 ** (self.shape + 1) - 1) + 1
        for _ in range(self.shape):
            np.square(power, out=power)
        return 1 + np.floor(power.min(axis=1, keepdims=True) / power * _PEAK).astype(np.int64)

    def bits(self, counts: Int64[np.ndarray, "bells alphabet"]) -> Float64[np.ndarray, " bells"]:
        """What an ideal coder needs for codes that occur this often, without the bells themselves."""
        weights = self.weights(counts.shape[1])
        return counts.sum(axis=1) * np.log2(weights.sum(axis=1)) - (counts * np.log2(weights)).sum(axis=1)


def fit_bells(counts: Int64[np.ndarray, "bells alphabet"]) -> Bells:
    """Bells that are good for codes that occur this often; all have the shape that suits them best in sum."""
    alphabet = counts.shape[1]
    codes = np.arange(alphabet)
    totals = counts.sum(axis=1)
    mean = counts @ codes / totals
    squares = np.square(codes - mean[:, None])
    locations = np.rint(mean * (_LOCATIONS // alphabet)).astype(np.int64).clip(0, _LOCATIONS - 1)

    def fitted(shape: int) -> tuple[float, Bells]:
        freedom = 2 ** (shape + 1) - 1
        variance = (counts * squares).sum(axis=1) / totals
        for _ in range(_EM_STEPS):  # the t distribution's, as a Gaussian whose precision varies
            variance = np.maximum(variance, _SCALES[0] ** 2)
            shares = counts * (freedom + 1) / (freedom + squares / variance[:, None])
            variance = (shares * squares).sum(axis=1) / totals
        bells = Bells(shape, locations, np.searchsorted(_NEAREST, np.sqrt(variance)))
        bits = bells.bits(counts)
        # The density is taken at the codes alone, which is no integral where a bell spans only a few of them.
        for step in _SEARCH if alphabet <= _SMALL_ALPHABET else ():
            for moved in (-step, step):
                other = Bells(shape, locations, (bells.scales + moved).clip(0, len(_SCALES) - 1))
                other_bits = other.bits(counts)
                bells = Bells(shape, locations, np.where(other_bits < bits, other.scales, bells.scales))
                bits = np.minimum(bits, other_bits)
        return float(bits.sum()), bells

    return min((fitted(shape) for shape in SHAPES), key=lambda found: found[0])[1]
