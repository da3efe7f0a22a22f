"""The one seam between device and server: bytes in, bytes out, every one of them counted."""

from collections import Counter
from typing import Protocol, runtime_checkable

from tsflora.compression import measure


@runtime_checkable
class Exchange(Protocol):
    """What a device can ask of the server. In-process here; a network transport offers the same calls."""

    def train_step(self, device: int, activations: bytes, labels: bytes) -> bytes:
        """Upload a batch's frames, get its gradient frame."""

    def fetch_adapter(self, device: int) -> bytes:
        """Download the adapter that devices start from."""

    def push_adapter(self, device: int, frame: bytes) -> None:
        """Upload this device's adapter."""

    def push_images(self, device: int, images: bytes, labels: bytes) -> None:
        """Hand this device's images over, with their labels (central training only)."""


class Traffic:
    """Bytes by kind and direction, read off the frames themselves."""

    def __init__(self) -> None:
        self.uplink: Counter[str] = Counter()
        self.downlink: Counter[str] = Counter()

    def count(self, direction: Counter[str], frame: bytes) -> bytes:
        """Add a frame and hand it on."""
        size = measure(frame)
        direction[size.kind.name.lower()] += size.payload_bytes
        direction["headers"] += size.header_bytes
        return frame

    @property
    def total_bytes(self) -> int:
        """Both directions, headers included."""
        return self.uplink.total() + self.downlink.total()


class InProcessExchange:
    """Calls the server directly and counts what passes."""

    def __init__(self, server: Exchange) -> None:
        self.server = server
        self.traffic = Traffic()

    def reset_traffic(self) -> Traffic:
        """A fresh count, which fills up from now on."""
        self.traffic = Traffic()
        return self.traffic

    def train_step(self, device: int, activations: bytes, labels: bytes) -> bytes:
        """See `Exchange`."""
        up, down = self.traffic.uplink, self.traffic.downlink
        reply = self.server.train_step(device, self.traffic.count(up, activations), self.traffic.count(up, labels))
        return self.traffic.count(down, reply)

    def fetch_adapter(self, device: int) -> bytes:
        """See `Exchange`."""
        return self.traffic.count(self.traffic.downlink, self.server.fetch_adapter(device))

    def push_adapter(self, device: int, frame: bytes) -> None:
        """See `Exchange`."""
        self.server.push_adapter(device, self.traffic.count(self.traffic.uplink, frame))

    def push_images(self, device: int, images: bytes, labels: bytes) -> None:
        """See `Exchange`."""
        up = self.traffic.uplink
        self.server.push_images(device, self.traffic.count(up, images), self.traffic.count(up, labels))
