"""What carries the gradient at the cut back to the device: the configuration of both ends, and the ends.

The server's end serves all devices and may remember something of each; a device's end may remember too.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from typing_extensions import override

from tsflora.compression.codec import Forgetful, Memory
from tsflora.compression.quantizers import AnyQuantizer, Quantizer, quantizers
from tsflora.compression.tensors import TensorCodec
from tsflora.config import Component, Registry
from tsflora.wire import Kind, Layout


@runtime_checkable
class GradientSender(Protocol):
    """The server's end, for all devices."""

    def send(self, gradient: Tensor, device: int, generator: torch.Generator) -> bytes:
        """The frame with a device's gradient: of the tokens it sent, in their shape.

        Raises:
            NumericsError: NaN, infinity, or values beyond what the codec can hold.
        """

    def state(self) -> Memory:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


@runtime_checkable
class GradientReceiver(Protocol):
    """A device's end."""

    def receive(self, frame: bytes, shape: tuple[int, ...]) -> Tensor:
        """The gradient in a frame, on the CPU, of tokens of this shape.

        Raises:
            FrameError: a damaged frame, or not the gradient of such tokens.
        """

    def state(self) -> Memory:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


class GradientCodec(Component, ABC):
    """Configuration of both ends of what carries gradients."""

    @abstractmethod
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        """The sections of the frame of a gradient of this shape; a coded one has no length before there is data."""

    @abstractmethod
    def sender(self) -> GradientSender:
        """The server's end at the start of a run."""

    @abstractmethod
    def receiver(self) -> GradientReceiver:
        """A device's end at the start of a run."""


gradient_codecs = Registry[GradientCodec]("gradient codec", "tsflora.gradient_codecs", GradientCodec)

AnyGradientCodec = Annotated[SerializeAsAny[GradientCodec], BeforeValidator(gradient_codecs.build)]


class _Plain(Forgetful):
    """Both ends of a codec without memory, and the receiving end of one whose sender alone remembers."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.codec = TensorCodec(quantizer, Kind.GRADIENTS)

    def send(self, gradient: Tensor, device: int, generator: torch.Generator) -> bytes:
        """See `GradientSender`."""
        del device
        return self.codec.encode(gradient, generator)

    def receive(self, frame: bytes, shape: tuple[int, ...]) -> Tensor:
        """See `GradientReceiver`."""
        return self.codec.decode(frame, shape)


class _Compensating:
    """Adds to each gradient of a device what the frame before lost of the last one."""

    def __init__(self, quantizer: Quantizer) -> None:
        self.codec = TensorCodec(quantizer, Kind.GRADIENTS)
        self.lost: dict[int, Tensor] = {}

    def send(self, gradient: Tensor, device: int, generator: torch.Generator) -> bytes:
        """See `GradientSender`. What was lost of a batch of another shape is forgotten."""
        lost = self.lost.get(device)
        wanted = gradient if lost is None or lost.shape != gradient.shape else gradient + lost.to(gradient.device)
        frame = self.codec.encode(wanted, generator)
        self.lost[device] = wanted.cpu() - self.codec.decode(frame)
        return frame

    def state(self) -> Memory:
        """The loss of each device."""
        return {str(device): lost for device, lost in self.lost.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `GradientSender`."""
        self.lost = {int(device): lost for device, lost in state.items()}


@gradient_codecs.register
class QuantizedGradient(GradientCodec):
    """Each gradient on its own, quantised."""

    name = "values"
    examples = ({}, {"quantizer": {"name": "uniform", "bits": 4}})
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return self.quantizer.layouts(shape)

    @override
    def sender(self) -> GradientSender:
        return _Plain(self.quantizer)

    @override
    def receiver(self) -> GradientReceiver:
        return _Plain(self.quantizer)


@gradient_codecs.register
class CompensatedGradient(GradientCodec):
    """Quantised with error feedback (arXiv 1901.09847): what a frame loses is added to the device's next gradient.

    It costs the server one gradient of memory for each device that took part.
    """

    name = "feedback"
    examples = ({}, {"quantizer": {"name": "uniform", "bits": 2}})
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build({"name": "uniform", "bits": 4}))

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return self.quantizer.layouts(shape)

    @override
    def sender(self) -> GradientSender:
        return _Compensating(self.quantizer)

    @override
    def receiver(self) -> GradientReceiver:
        return _Plain(self.quantizer)
