"""Float tensors to frames of one kind and back, each quantised on its own: what gradients and adapters travel by."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from tsflora.compression.quantizers import Quantizer
from tsflora.errors import FrameError
from tsflora.wire import Kind, Section, read_frame, write_frame


class TensorCodec:
    """Float tensors to frames of one kind and back."""

    def __init__(self, quantizer: Quantizer, kind: Kind) -> None:
        self.quantizer = quantizer
        self.kind = kind

    def forward(self, x: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
        """What the other side decodes, as float32 on x's device, with an identity gradient."""
        return self.quantizer.forward(x, generator)

    def encode(self, x: Float[Tensor, "..."], generator: torch.Generator) -> bytes:
        """One frame that holds the tensor.

        Raises:
            NumericsError: NaN, infinity, or values beyond what the quantizer can hold.
        """
        return self.encode_all([x], generator)

    def decode(self, frame: bytes, shape: tuple[int, ...] | None = None) -> Float[Tensor, "..."]:
        """The tensor of a frame, as float32 on the CPU.

        Raises:
            FrameError: a damaged frame, of another kind or another quantizer, or of another shape than `shape`.
        """
        return self._restore(read_frame(frame, self.kind), shape)

    def encode_all(self, tensors: Sequence[Float[Tensor, "..."]], generator: torch.Generator) -> bytes:
        """One frame that holds all tensors in order, each quantised on its own."""
        return write_frame(self.kind, [section for x in tensors for section in self.quantizer.quantize(x, generator)])

    def decode_all(self, frame: bytes, shapes: Sequence[tuple[int, ...]]) -> list[Float[Tensor, "..."]]:
        """The tensors of a frame, which must have exactly these shapes.

        Raises:
            FrameError: as `decode`, or another number of tensors.
        """
        sections = read_frame(frame, self.kind)
        n = self.quantizer.n_sections
        if len(sections) != n * len(shapes):
            raise FrameError(f"expected {len(shapes)} tensors of {n} sections each, given: {len(sections)} sections")
        return [self._restore(sections[n * i : n * (i + 1)], shape) for i, shape in enumerate(shapes)]

    def _restore(self, sections: Sequence[Section], shape: tuple[int, ...] | None) -> Float[Tensor, "..."]:
        x = self.quantizer.dequantize(sections, shape)
        if shape is not None and x.shape != shape:
            raise FrameError(f"expected a tensor of shape {tuple(shape)}, given: {tuple(x.shape)}")
        return x
