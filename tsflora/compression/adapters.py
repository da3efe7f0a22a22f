"""What carries adapters between server and devices: the configuration of both ends, and the ends.

Both ends of a device start from the adapter that its seed gives. The server publishes, a device adopts; the device
submits what it trained, and the server collects it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from typing_extensions import override

from tsflora.compression.codec import Memory
from tsflora.compression.quantizers import AnyQuantizer, Quantizer, quantizers
from tsflora.compression.tensors import TensorCodec
from tsflora.config import Component, Registry
from tsflora.wire import Kind, Layout

Adapter = dict[str, Tensor]
"""Trained tensors by name, in the order in which they travel; their names do not."""


@runtime_checkable
class AdapterEnd(Protocol):
    """One end of one device's adapters: the server has one for each device, the device has one."""

    def publish(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """Server: the frame from which the device adopts `adapter`."""

    def adopt(self, frame: bytes) -> Adapter:
        """Device: the adapter that the server published, on the CPU.

        Raises:
            FrameError: damaged bytes, or other shapes.
        """

    def submit(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """Device: the frame with the adapter that it trained."""

    def collect(self, frame: bytes) -> Adapter:
        """Server: the adapter that the device submitted, on the CPU.

        Raises:
            FrameError: damaged bytes, or other shapes.
        """

    def state(self) -> Memory:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


class AdapterCodec(Component, ABC):
    """Configuration of both ends of what carries adapters."""

    @abstractmethod
    def layouts(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Layout, ...]:
        """The sections of a frame with tensors of these shapes, in either direction."""

    @abstractmethod
    def end(self, start: Adapter) -> AdapterEnd:
        """One end, where both have the adapter `start`."""


adapter_codecs = Registry[AdapterCodec]("adapter codec", "tsflora.adapter_codecs", AdapterCodec)

AnyAdapterCodec = Annotated[SerializeAsAny[AdapterCodec], BeforeValidator(adapter_codecs.build)]


class _Values:
    """Adapters as they are."""

    def __init__(self, quantizer: Quantizer, start: Adapter) -> None:
        self.codec = TensorCodec(quantizer, Kind.ADAPTERS)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in start.items()}

    def publish(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """See `AdapterEnd`."""
        return self.codec.encode_all(list(adapter.values()), generator)

    def adopt(self, frame: bytes) -> Adapter:
        """See `AdapterEnd`."""
        return dict(zip(self.shapes, self.codec.decode_all(frame, list(self.shapes.values())), strict=True))

    def submit(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """See `AdapterEnd`."""
        return self.publish(adapter, generator)

    def collect(self, frame: bytes) -> Adapter:
        """See `AdapterEnd`."""
        return self.adopt(frame)

    def state(self) -> Memory:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""


class _Changes:
    """Adapters as changes to what the device was last given, which both ends hold.

    Downward, whatever a frame loses is part of the next one's change by itself: the server's adapter stays exact.
    Upward the device adds what its last frame lost.
    """

    def __init__(self, quantizer: Quantizer, start: Adapter, feedback: bool) -> None:
        self.codec = TensorCodec(quantizer, Kind.ADAPTERS)
        self.feedback = feedback
        self.held = {name: tensor.cpu() for name, tensor in start.items()}
        self.lost: Adapter = {}

    def publish(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """See `AdapterEnd`."""
        frame = self.codec.encode_all([adapter[name].cpu() - held for name, held in self.held.items()], generator)
        self.held = self._added(frame)
        return frame

    def adopt(self, frame: bytes) -> Adapter:
        """See `AdapterEnd`."""
        self.held = self._added(frame)
        return self.held

    def submit(self, adapter: Adapter, generator: torch.Generator) -> bytes:
        """See `AdapterEnd`."""
        wanted = {name: adapter[name].cpu() + self.lost.get(name, 0) for name in self.held}
        frame = self.codec.encode_all([wanted[name] - held for name, held in self.held.items()], generator)
        if self.feedback:
            sent = self._added(frame)
            self.lost = {name: wanted[name] - sent[name] for name in wanted}
        return frame

    def collect(self, frame: bytes) -> Adapter:
        """See `AdapterEnd`."""
        return self._added(frame)

    def _added(self, frame: bytes) -> Adapter:
        changes = self.codec.decode_all(frame, [tuple(tensor.shape) for tensor in self.held.values()])
        return {name: held + change for (name, held), change in zip(self.held.items(), changes, strict=True)}

    def state(self) -> Memory:
        """What the device was last given and what its last frame lost."""
        lost = {f"lost.{name}": tensor for name, tensor in self.lost.items()}
        return {**{f"held.{name}": tensor for name, tensor in self.held.items()}, **lost}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `AdapterEnd`."""
        self.held = {name: state[f"held.{name}"] for name in self.held}
        self.lost = {name: state[f"lost.{name}"] for name in self.held if f"lost.{name}" in state}


@adapter_codecs.register
class AdapterValues(AdapterCodec):
    """The adapter's tensors themselves, each quantised on its own."""

    name = "values"
    examples = ({}, {"quantizer": {"name": "uniform", "bits": 6}})
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))

    @override
    def layouts(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Layout, ...]:
        return tuple(layout for shape in shapes for layout in self.quantizer.layouts(shape))

    @override
    def end(self, start: Adapter) -> AdapterEnd:
        return _Values(self.quantizer, start)


@adapter_codecs.register
class AdapterChanges(AdapterCodec):
    """The change since what the device was last given, with error feedback at both ends (arXiv 1901.09847).

    A change is small where the adapter is not, so few bits lose little; one range for each row of a factor by default.
    It costs one adapter of memory for each device at the server, and two at the device.
    """

    name = "change"
    examples = ({}, {"quantizer": {"name": "uniform", "bits": 2, "range": "token"}}, {"feedback": False})
    quantizer: AnyQuantizer = Field(
        default_factory=lambda: quantizers.build({"name": "uniform", "bits": 4, "range": "token"})
    )
    feedback: bool = True
    """Whether a device adds to its next change what the last frame lost."""

    @override
    def layouts(self, shapes: Sequence[tuple[int, ...]]) -> tuple[Layout, ...]:
        return tuple(layout for shape in shapes for layout in self.quantizer.layouts(shape))

    @override
    def end(self, start: Adapter) -> AdapterEnd:
        return _Changes(self.quantizer, start, self.feedback)
