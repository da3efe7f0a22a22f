"""How many bits each entry gets: tensors to sections of a frame and back.

Add one with a class that derives from `Quantizer` and `@quantizers.register`, or from an installed package under the
entry-point group `tsflora.quantizers`. The conformance suite (`tsflora.conformance`) holds for every one of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from typing_extensions import override

from tsflora.compression.codes import Rounding, as_codes, as_rows, describe, rounded
from tsflora.config import Component, Registry
from tsflora.errors import FrameError, NumericsError
from tsflora.wire import Format, Layout, Section
from tsflora.wire.bits import MAX_BITS

_ANY_SHAPE = (4, 6)


class Quantizer(Component, ABC):
    """Turns a tensor of any shape (at most four dimensions, not empty) into sections of a frame and back.

    The first section has the tensor's shape. Random draws come from the given generator, which lives on the tensor's
    device, and from nothing else.
    """

    @abstractmethod
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        """What the sections of a tensor of this shape look like: all that their size depends on.

        The first section has the tensor's own shape, so that a frame says what it holds. Where a section's length
        depends on the data, its layout is `Layout.coded(shape)`, without a length.
        """

    @abstractmethod
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        """The sections that travel, laid out as `layouts(x.shape)`; coded ones have their length.

        Raises:
            NumericsError: NaN, infinity, or values beyond what the format can hold.
        """

    @abstractmethod
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        """The float32 CPU tensor of sections whose layouts have been checked; callers use `dequantize`.

        Raises:
            FrameError: values that no quantizer sends.
        """

    @property
    def bits_per_entry(self) -> int | None:
        """Payload bits per entry of the tensor; side information comes on top.

        None where there is no such number: payload whose length depends on the data, or that is not entry by entry.
        """
        payload = [layout for layout in self.layouts(_ANY_SHAPE) if not layout.side]
        if any(layout.format == Format.CODED or layout.shape != _ANY_SHAPE for layout in payload):
            return None
        return sum(layout.bits for layout in payload)

    @property
    def n_sections(self) -> int:
        """Number of sections per tensor."""
        return len(self.layouts((1,)))

    def dequantize(self, sections: Sequence[Section], shape: tuple[int, ...] | None = None) -> Float[Tensor, "..."]:
        """The tensor that the sections stand for, as float32 on the CPU.

        A few coded bytes may claim a large shape: who knows the right one should say it, so that nothing is allocated
        for another.

        Raises:
            FrameError: sections of another number, shape, format or width than this quantizer's, or not finite; a
                tensor of another shape than `shape`.
        """
        found = tuple(section.layout.expected for section in sections)
        if not found or found != self.layouts(found[0].shape):
            given = ", ".join(f"{layout.bits} bits x {layout.shape}" for layout in found) or "none"
            raise FrameError(f"sections do not fit quantizer {self.model_dump()}; given: {given}")
        if shape is not None and found[0].shape != shape:
            raise FrameError(f"expected a tensor of shape {tuple(shape)}, given: {found[0].shape}")
        return self.restore(sections)

    def forward(self, x: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
        """What training sees: the float32 tensor that a peer would decode, on x's device, with an identity gradient.

        It takes the way over the sections, so that both agree to the bit by construction, on every device.
        """
        return _StraightThrough.apply(x, self.dequantize(self.quantize(x, generator)).to(x.device))


class _StraightThrough(torch.autograd.Function):
    """`value` in the forward direction, the identity with respect to `x` in the backward direction."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.to(ctx.dtype), None


quantizers = Registry[Quantizer]("quantizer", "tsflora.quantizers", Quantizer)

AnyQuantizer = Annotated[SerializeAsAny[Quantizer], BeforeValidator(quantizers.build)]
"""In a configuration: a name, or a mapping with a name and options."""


class _Cast(Quantizer):
    """Entries sent as IEEE floats of one width, to nearest."""

    sent_as: ClassVar[Format]
    dtype: ClassVar[torch.dtype]

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return (Layout(shape, self.sent_as, 8 * self.dtype.itemsize),)

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        # A copy, so that the section does not change with x.
        sent = x.detach().to(self.dtype, copy=True)
        if not sent.isfinite().all():
            largest = torch.finfo(self.dtype).max
            raise NumericsError(f"{describe(x)} holds NaN, infinity, or a magnitude above {largest:g} ({self.name})")
        return [Section(sent.cpu().numpy(), self.layouts(tuple(x.shape))[0])]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        tensor = torch.from_numpy(sections[0].values).to(torch.float32)
        if not tensor.isfinite().all():
            raise FrameError(f"a {self.name} section holds NaN or infinity, only finite values may be sent")
        return tensor


@quantizers.register
class Float32(_Cast):
    """No compression: 32 bits per entry, bit-exact."""

    name = "float32"
    sent_as = Format.FLOAT32
    dtype = torch.float32


@quantizers.register
class Float16(_Cast):
    """IEEE half precision: 16 bits per entry, magnitudes up to 65504."""

    name = "float16"
    sent_as = Format.FLOAT16
    dtype = torch.float16


@quantizers.register
class Uniform(Quantizer):
    """Uniform levels over the dynamic range; TSFLora (arXiv 2605.23988), eq. (6).

    With step = (highest - lowest) / (2^bits - 1), entry z lies between two neighbouring levels lowest + u * step.
    Stochastic rounding takes the upper one with probability (z - lower) / step: the result is unbiased with variance at
    most step^2 / 4 (Lemma 2). All arithmetic is float32.
    """

    name = "uniform"
    examples = (
        *({"bits": bits} for bits in (1, 3, 8, 16)),
        {"bits": 4, "variant": "magnitude"},
        {"bits": 16, "variant": "magnitude", "range": "token"},
        {"bits": 8, "range": "token", "rounding": "nearest"},
        {"bits": 5, "range": "channel"},
    )

    bits: Annotated[int, Field(ge=1, le=MAX_BITS)]
    variant: Literal["signed", "magnitude"] = "signed"
    """`signed` quantises z; `magnitude` quantises |z| and sends the sign beside it, in one more bit per entry."""
    range: Literal["tensor", "token", "channel"] = "tensor"
    """What shares one range: everything, each vector along the last dimension, or each index of the last dimension."""
    rounding: Rounding = "stochastic"

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        channels = shape[-1] if shape else 1
        ranges = {"tensor": 1, "token": math.prod(shape) // channels, "channel": channels}[self.range]
        codes = Layout(shape, Format.PACKED, self.bits)
        signs = (Layout(shape, Format.PACKED, 1),) if self.variant == "magnitude" else ()
        return codes, *signs, Layout((ranges, 2), Format.FLOAT32, 32, side=True)

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        rows = as_rows(x.detach().to(torch.float32))
        values = rows.abs() if self.variant == "magnitude" else rows
        lowest, highest = self._ranges(values)
        step = self._step(lowest, highest)
        if not self._representable(lowest, step):
            raise NumericsError(f"{describe(x)} holds NaN, infinity, or a range too wide for float32")
        # Where the range is one point the step is 0, and so is every position.
        position = (values - lowest).div_(torch.where(step > 0, step, 1)).clamp_(max=self._levels)
        arrays = [as_codes(rounded(position, self.rounding, generator), self.bits)]
        if self.variant == "magnitude":
            arrays.append(as_codes(rows < 0, 1))
        arrays.append(torch.stack([lowest.ravel(), highest.ravel()], dim=1).cpu().numpy())
        layouts = self.layouts(tuple(x.shape))
        return [Section(array.reshape(layout.shape), layout) for array, layout in zip(arrays, layouts, strict=True)]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        codes = torch.from_numpy(sections[0].values.astype(np.float32))
        ranges = torch.from_numpy(sections[-1].values)
        along = -1 if self.range == "channel" else 0
        lowest, highest = (bound.unsqueeze(1 + along) for bound in ranges.unbind(1))
        step = self._step(lowest, highest)
        floor = 0 if self.variant == "magnitude" else -math.inf
        if not (self._representable(lowest, step) and (floor <= lowest).all() and (lowest <= highest).all()):
            raise FrameError(
                "a quantisation range must be finite with lowest <= highest (and lowest >= 0 for magnitudes)"
            )
        rows = as_rows(codes).mul_(step).add_(lowest)
        if self.variant == "magnitude":
            rows.mul_(1 - 2 * as_rows(torch.from_numpy(sections[1].values.astype(np.float32))))
        return rows.reshape(codes.shape)

    @property
    def _levels(self) -> int:
        """Number of steps between the lowest and the highest level."""
        return 2**self.bits - 1

    def _ranges(self, rows: Float[Tensor, "rows channels"]) -> tuple[Float[Tensor, "r c"], Float[Tensor, "r c"]]:
        """Lowest and highest value of each group that shares a range, in a shape that broadcasts over `rows`."""
        if self.range == "tensor":
            lowest, highest = rows.aminmax()
            return lowest.reshape(1, 1), highest.reshape(1, 1)
        lowest, highest = rows.aminmax(dim=1 if self.range == "token" else 0, keepdim=True)
        return lowest, highest

    def _step(self, lowest: Float[Tensor, "r c"], highest: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        return (highest - lowest) / self._levels

    def _representable(self, lowest: Float[Tensor, "r c"], step: Float[Tensor, "r c"]) -> bool:
        """Whether every level is finite; NaN and infinity in the data show in their range."""
        return bool((lowest.isfinite() & (lowest + self._levels * step).isfinite()).all())
