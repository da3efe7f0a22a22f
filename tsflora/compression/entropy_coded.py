"""Entropy coding on top of any quantizer that sends codes."""

from collections.abc import Sequence
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import BeforeValidator, SerializeAsAny, field_validator
from torch import Tensor
from typing_extensions import override

from tsflora.compression.quantizers import Quantizer, quantizers
from tsflora.wire import Format, Layout, Section
from tsflora.wire.entropy import decode_codes, encode_codes


@quantizers.register
class EntropyCoded(Quantizer):
    """What another quantizer sends, without loss in fewer bytes: as many as its codes turn out to need.

    Every packed section of the quantizer becomes a coded one, with the models that it takes inside (see
    `tsflora.wire.entropy`); a range in floats stays as it is. What arrives is the same to the bit, and so are the
    random draws.
    """

    name = "entropy_coded"
    examples = (
        {"quantizer": {"name": "uniform", "bits": 8}},
        {"quantizer": {"name": "uniform", "bits": 3, "variant": "magnitude", "range": "channel"}},
        {"quantizer": {"name": "uniform", "bits": 12, "rounding": "nearest"}},
        {"quantizer": {"name": "rotated", "bits": 4}},
    )

    quantizer: Annotated[SerializeAsAny[Quantizer], BeforeValidator(quantizers.build)]

    @field_validator("quantizer")
    @classmethod
    def _sends_codes(cls, quantizer: Quantizer) -> Quantizer:
        if not any(layout.format == Format.PACKED and not layout.side for layout in quantizer.layouts((1,))):
            raise ValueError(f"entropy coding is for quantizers that send packed codes, given: {quantizer.name!r}")
        return quantizer

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return tuple(
            Layout.coded(layout.shape, layout.side) if layout.format == Format.PACKED else layout
            for layout in self.quantizer.layouts(shape)
        )

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        return [_coded(section) for section in self.quantizer.quantize(x, generator)]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        layouts = self.quantizer.layouts(sections[0].layout.shape)
        return self.quantizer.restore([_decoded(*each) for each in zip(sections, layouts, strict=True)])


def _coded(section: Section) -> Section:
    layout = section.layout
    if layout.format != Format.PACKED:
        return section
    codes = section.values.reshape(_matrix(layout))
    return Section.coded(encode_codes(codes, layout.bits), layout.shape, layout.side)


def _decoded(section: Section, layout: Layout) -> Section:
    if layout.format != Format.PACKED:
        return section
    codes = decode_codes(section.body(), _matrix(layout), layout.bits)
    return Section(codes.reshape(layout.shape), layout)


def _matrix(layout: Layout) -> tuple[int, int]:
    """Rows and columns: what has the same index of the last dimension is alike."""
    columns = layout.shape[-1] if layout.shape else 1
    return layout.entries // columns, columns
