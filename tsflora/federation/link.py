"""One device, counted, wherever it is: messages, and the links and fleets that they go over.

The server conducts and devices answer. A message is a verb, named frames and a few numbers; nothing else crosses the
seam, and every byte of a frame that does is counted here.
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from tsflora.compression import measure
from tsflora.errors import FrameError

Fact = int | float | tuple[int | float, ...]

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True)
class Message:
    """What the server asks of a device, or what the device answers."""

    verb: str
    frames: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def pack(self) -> bytes:
        """One string of bytes, for a transport: the length of a JSON header, the header, the frames one by one."""
        lengths = {name: len(frame) for name, frame in self.frames.items()}
        header = json.dumps({"verb": self.verb, "frames": lengths, "facts": dict(self.facts)}).encode()
        return b"".join([_LENGTH.pack(len(header)), header, *self.frames.values()])

    @classmethod
    def unpack(cls, data: bytes) -> "Message":
        """The message in what `pack` made.

        Raises:
            FrameError: anything else.
        """
        try:
            start = _LENGTH.size + _LENGTH.unpack_from(data)[0]
            header = json.loads(data[_LENGTH.size : start])
            verb, lengths, facts = header["verb"], header["frames"], header["facts"]
            frames = {}
            for name, length in lengths.items():
                if type(length) is not int or length < 0:
                    raise ValueError(f"a frame of length {length!r}")
                frames[name] = data[start : start + length]
                start += length
            numbers = {name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()}
            values = [x for value in numbers.values() for x in (value if isinstance(value, tuple) else (value,))]
            if start != len(data) or not isinstance(verb, str) or not all(type(x) in (int, float) for x in values):
                raise ValueError("it does not add up")
        except (struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise FrameError(f"not a message: {error}") from None
        return cls(verb, frames, numbers)


class Traffic:
    """Bytes by kind and direction, read off the frames themselves."""

    def __init__(self) -> None:
        self.uplink: Counter[str] = Counter()
        self.downlink: Counter[str] = Counter()

    def count(self, direction: Counter[str], message: Message) -> None:
        """Add a message's frames."""
        for frame in message.frames.values():
            size = measure(frame)
            direction[size.kind.name.lower()] += size.payload_bytes
            direction["headers"] += size.header_bytes

    @property
    def total_bytes(self) -> int:
        """Both directions, headers included."""
        return self.uplink.total() + self.downlink.total()


class Link:
    """The server's link to one device. Messages arrive, and are answered, in the order in which they were sent."""

    def __init__(self, ask: Callable[[Message], Future[Message]]) -> None:
        self._ask = ask
        self.traffic = Traffic()

    def reset(self) -> None:
        """Count from zero: a new round."""
        self.traffic = Traffic()

    def send(self, message: Message) -> Future[Message]:
        """Send a message; its answer is counted before anybody sees it.

        The future raises what the device raised: NumericsError, FrameError.
        """
        self.traffic.count(self.traffic.downlink, message)
        counted: Future[Message] = Future()

        def arrived(answer: Future[Message]) -> None:
            try:
                message = answer.result()
                self.traffic.count(self.traffic.uplink, message)
            except BaseException as error:  # handed on, whatever it is
                counted.set_exception(error)
            else:
                counted.set_result(message)

        self._ask(message).add_done_callback(arrived)
        return counted


@runtime_checkable
class Fleet(Protocol):
    """All devices of a run, wherever they are."""

    side_by_side: bool
    """Whether devices compute while the server works on others' frames, so that it pays to ask them ahead of time."""

    def link(self, device: int) -> Link:
        """The link to a device, the same one each time."""

    def state(self) -> dict[str, Tensor]:
        """All that devices remember from round to round."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
