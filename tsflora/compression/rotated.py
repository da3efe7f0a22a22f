"""Rotation before quantisation: it spreads outlier channels over all entries, so that few levels fit all of them."""

import hashlib
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from tsflora.compression.codes import Rounding, as_codes, as_rows, describe, rounded
from tsflora.compression.quantizers import Quantizer, quantizers
from tsflora.errors import FrameError, NumericsError
from tsflora.wire import Format, Layout, Section
from tsflora.wire.bits import MAX_BITS

_SCALE_BITS = 16
_INFINITE_SCALE = 0x7F80

_GAUSSIAN_RANGE = {1: 0.798, 2: 1.494, 3: 2.051, 4: 2.514, 5: 2.916}
"""Highest level, in standard deviations, of the uniform quantizer with the least squared error for a Gaussian (J. Max,
Quantizing for minimum distortion, 1960, table II). With more bits the largest entry of a token is about as good."""


@quantizers.register
class Rotated(Quantizer):
    """Uniform levels after a random rotation, with one scale for each token; after QuaRot (arXiv 2404.00456).

    A token z, a vector along the last dimension, becomes y = H (s * z): s are signs, and H applies the orthonormal
    Hadamard matrix to blocks of the largest power of two that divides the dimension (192 = 3 x 64; an odd dimension is
    not rotated). The entries of y are near Gaussian whatever channels stick out in z (QuIP#, arXiv 2402.04396, lemma
    3.1), so 2^bits levels from -scale to scale serve them all; what arrives is s * H y^.

    The signs are a fixed function of the dimension and `seed`: both ends know them, and nothing of them is sent. The
    scale is sent as a bfloat16, rounded up, in 16 bits of side information per token. With stochastic rounding it is
    the token's largest |y|, and the result is unbiased; with rounding to nearest it is at most what is best for
    Gaussian entries, beyond which y is clipped. Zero arrives as zero; another constant arrives with an error, as
    everything does.
    """

    name = "rotated"
    examples = (
        {"bits": 4},
        {"bits": 1, "rounding": "nearest"},
        {"bits": 3, "seed": 7},
        {"bits": 8, "rounding": "nearest"},
        {"bits": 16},
    )

    bits: Annotated[int, Field(ge=1, le=MAX_BITS)]
    rounding: Rounding = "stochastic"
    seed: Annotated[int, Field(ge=0)] = 0
    """Another seed is another rotation."""

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        tokens = math.prod(shape[:-1])
        return Layout(shape, Format.PACKED, self.bits), Layout((tokens,), Format.PACKED, _SCALE_BITS, side=True)

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        rows = as_rows(x.detach().to(torch.float32))
        signs, block = _signs(rows.shape[1], self.seed).to(x.device), _block(rows.shape[1])
        rotated = _hadamard(rows * signs, block)
        sent = _rounded_up(self._scale(rotated))
        scale = _scales(sent)
        if not _representable(scale, block):
            raise NumericsError(f"{describe(x)} holds NaN, infinity, or values too large for float32")
        # Where the scale is 0 so is every entry, and every level.
        position = rotated.div_(torch.where(scale > 0, scale, 1)).add_(1).mul_(self._levels / 2)
        codes = rounded(position.clamp_(0, self._levels), self.rounding, generator)
        arrays = as_codes(codes, self.bits), as_codes(sent, _SCALE_BITS)
        layouts = self.layouts(tuple(x.shape))
        return [Section(array.reshape(layout.shape), layout) for array, layout in zip(arrays, layouts, strict=True)]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        codes = torch.from_numpy(sections[0].values.astype(np.float32))
        rows = as_rows(codes)
        scale = _scales(torch.from_numpy(sections[1].values.astype(np.int32)).unsqueeze(1))
        signs, block = _signs(rows.shape[1], self.seed), _block(rows.shape[1])
        if not _representable(scale, block):
            raise FrameError("the scale of a token must be finite and not negative")
        rotated = rows.mul_(2).sub_(self._levels).mul_(scale / self._levels)
        return (_hadamard(rotated, block) * signs).reshape(codes.shape)

    @property
    def _levels(self) -> int:
        """Number of steps between the lowest and the highest level."""
        return 2**self.bits - 1

    def _scale(self, rotated: Float[Tensor, "rows channels"]) -> Float[Tensor, "rows 1"]:
        largest = rotated.abs().amax(dim=1, keepdim=True)
        if self.rounding == "stochastic" or self.bits not in _GAUSSIAN_RANGE:
            return largest
        # Relative to the largest, so that no square leaves float32.
        relative = rotated / torch.where(largest > 0, largest, 1)
        deviation = relative.square().mean(dim=1, keepdim=True).sqrt()
        return largest * (_GAUSSIAN_RANGE[self.bits] * deviation).clamp(max=1)


def _block(dim: int) -> int:
    """The largest power of two that divides `dim`."""
    return dim & -dim


@lru_cache
def _signs(dim: int, seed: int) -> Float[Tensor, " dim"]:
    digest = hashlib.shake_256(f"signs of rotation {seed} in {dim} dimensions".encode()).digest(-(-dim // 8))
    bits = np.unpackbits(np.frombuffer(digest, np.uint8))[:dim]
    return torch.from_numpy(1 - 2 * bits.astype(np.float32))


def _hadamard(rows: Float[Tensor, "rows channels"], block: int) -> Float[Tensor, "rows channels"]:
    """Each block of each row times the orthonormal Hadamard matrix, which is its own inverse.

    Sums and differences in a fixed order, so that every machine gets the same bits.
    """
    # Blocks as columns: each step then adds long stretches of memory.
    blocks = (rows.reshape(-1, block).t() * block**-0.5).contiguous()
    following = torch.empty_like(blocks)
    width = blocks.shape[1]
    while width < blocks.numel():
        one, other = blocks.view(-1, 2, width).unbind(1)
        into = following.view(-1, 2, width)
        torch.add(one, other, out=into[:, 0])
        torch.sub(one, other, out=into[:, 1])
        blocks, following = following, blocks
        width *= 2
    return blocks.t().reshape(rows.shape)


def _rounded_up(scale: Float[Tensor, "rows 1"]) -> Tensor:
    """The bits of the smallest bfloat16 that is not below; infinity and NaN have bits that `_scales` keeps so."""
    return (scale.contiguous().view(torch.int32) + 0xFFFF).bitwise_right_shift(16)


def _scales(sent: Tensor) -> Float[Tensor, "rows 1"]:
    """The scales of these bits; NaN for those that no scale has."""
    scale = (sent << 16).view(torch.float32)
    return torch.where((sent >= 0) & (sent < _INFINITE_SCALE), scale, torch.nan)


def _representable(scale: Float[Tensor, "rows 1"], block: int) -> bool:
    """Whether every sum on the way back is finite: entries of at most `scale` add up to at most sqrt(block) of it."""
    return bool((scale * block**0.5).isfinite().all())
