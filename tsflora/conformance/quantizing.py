"""What holds for every quantizer."""

from collections.abc import Mapping
from typing import Any

import torch

from tsflora.compression import Kind, Quantizer, TensorCodec, measure, quantizers
from tsflora.config import Registry
from tsflora.conformance.claims import check_component, holds, refused
from tsflora.errors import FrameError, NumericsError
from tsflora.seeding import torch_generator
from tsflora.wire import Format

_SHAPES: tuple[tuple[int, ...], ...] = ((), (1,), (7,), (3, 5), (2, 4, 6), (2, 1, 3, 2))


def check_quantizer(name: str, options: Mapping[str, Any], registry: Registry[Any] = quantizers) -> None:
    """The contract of `Quantizer`.

    What is exact on any constant is a matter of ranges, so that only zero has to arrive as it is.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    quantizer: Quantizer = check_component(registry, name, options)
    for shape in _SHAPES:
        _check_shape(quantizer, shape)
    x = torch.zeros(2, 3)
    arrived = quantizer.dequantize(quantizer.quantize(x, torch_generator("q")))
    holds(torch.equal(arrived, x), f"zero is not exact: it arrives as {arrived.tolist()}")
    for bad in (float("nan"), float("inf")):
        with refused(NumericsError, f"quantize of {bad}"):
            quantizer.quantize(torch.tensor([0.0, bad]), torch_generator("q"))


def _check_shape(quantizer: Quantizer, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch_generator("x", shape))
    before = x.clone()
    sections = quantizer.quantize(x, torch_generator("q"))
    holds(torch.equal(x, before), "quantize writes into the tensor that it is given")
    sent, layouts = tuple(section.layout.expected for section in sections), quantizer.layouts(shape)
    holds(sent == layouts, f"layouts are what is sent: for {shape} they say {layouts}, and sent is {sent}")
    for section, layout in zip(sections, layouts, strict=True):
        coded = layout.format == Format.CODED
        sentence = "sizes follow from the shape alone, but of coded sections; given"
        holds((section.layout == layout) != coded, f"{sentence}: {section.layout} for {layout}")
    holds(layouts[0].shape == shape, f"the first section has the shape {layouts[0].shape}, not the tensor's {shape}")
    holds(
        len(sections) == quantizer.n_sections, f"{len(sections)} sections for {shape}, {quantizer.n_sections} for (1,)"
    )

    restored = quantizer.dequantize(sections)
    found, wanted = (restored.shape, restored.dtype, restored.device.type), (x.shape, torch.float32, "cpu")
    holds(found == wanted, f"restore gives {found} where {wanted} is expected")
    holds(restored.isfinite().all(), f"restore gives NaN or infinity for a tensor of shape {shape}")
    codec = TensorCodec(quantizer, Kind.ACTIVATIONS)
    frame = codec.encode(x, torch_generator("q"))
    decoded = codec.decode(frame, shape)
    holds(torch.equal(decoded, restored), "what a frame holds is not what its sections are restored to")
    payload = sum(section.layout.body_bytes for section in sections if not section.layout.side)
    holds(measure(frame).payload_bytes == payload, "a frame's payload is not that of its sections")
    if (bits := quantizer.bits_per_entry) is not None:
        own = [layout for layout in layouts if not layout.side]
        holds(sum(layout.bits for layout in own) == bits, f"bits_per_entry is {bits}, and layouts have others")
        expected = sum(-(-x.numel() * layout.bits // 8) for layout in own)
        holds(payload == expected, f"bits_per_entry is what is sent: {expected} bytes of {bits} bits; sent: {payload}")

    x.requires_grad_()
    value = quantizer.forward(x, torch_generator("q"))
    holds(torch.equal(value, restored), "training does not see what the peer decodes: forward differs from restore")
    upstream = torch.randn(shape, generator=torch_generator("g"))
    (gradient,) = torch.autograd.grad(value, x, upstream)
    holds(torch.equal(gradient, upstream), "the gradient is not passed straight through")

    for wrong in (sections[:-1], [*sections, sections[-1]]):
        with refused(FrameError, f"dequantize of {len(wrong)} sections in place of {len(sections)}"):
            quantizer.dequantize(wrong)
    with refused(FrameError, f"dequantize of sections of shape {shape} where another is expected"):
        quantizer.dequantize(sections, (*shape, 1))
