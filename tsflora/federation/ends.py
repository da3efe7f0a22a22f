"""The ends of codecs that one side holds, by codec: a scheduler may give a device another codec for a round."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from torch import Tensor

from tsflora.config import Component, Registry
from tsflora.federation.state import nest, under


@runtime_checkable
class Remembers(Protocol):
    """An end of a codec, as far as its memory goes."""

    def state(self) -> dict[str, Tensor]:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


CodecT = TypeVar("CodecT", bound=Component)
EndT = TypeVar("EndT", bound=Remembers)


class Ends(Generic[CodecT, EndT]):
    """One end for each codec that was ever asked for; what they remember, together."""

    def __init__(self, registry: Registry[Any], make: Callable[[CodecT], EndT]) -> None:
        self._registry = registry
        self._make = make
        self._ends: dict[str, EndT] = {}

    def of(self, codec: CodecT) -> EndT:
        """The end of this codec."""
        key = codec.model_dump_json()
        if key not in self._ends:
            self._ends[key] = self._make(codec)
        return self._ends[key]

    def state(self) -> dict[str, Tensor]:
        """What all of them remember."""
        return {
            name: tensor
            for key, end in self._ends.items()
            for name, tensor in nest(key.encode().hex(), end.state()).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        for key in sorted({name.split(".", 1)[0] for name in state}):
            codec = self._registry.build(json.loads(bytes.fromhex(key)))
            self.of(codec).restore(under(key, state))
