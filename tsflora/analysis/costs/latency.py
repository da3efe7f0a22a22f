"""How long a round takes, which phase takes it, what energy a device spends, and which devices can hold a method.

Assumptions. Devices work in parallel, each on its own link. One server serves batches in turn (SplitFed-v2), so a
participant waits for the server's work on all participants' batches. The phases of a participant do not overlap:
device compute, uplink, server, downlink follow each other, which makes a latency an upper bound of a pipelined one.
Propagation, queues, retransmissions, averaging of adapters and (de)quantising are taken as free.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from tsflora.analysis.costs.radio import Link
from tsflora.config import Config
from tsflora.errors import ConfigError

MEMORY_LINE_BYTES = 4 * 10**9
"""The memory limit drawn in Fig. 4a of arXiv 2605.23988, printed as 4 GB."""


class Accelerator(Config):
    """A processor with its memory, as data."""

    name: str
    peak_flop_per_s: float = Field(gt=0, allow_inf_nan=False)
    """Of the data sheet, at the precision of training."""
    utilisation: float = Field(default=0.4, gt=0, le=1)
    """Reached share of the peak. 0.4 is a round number for transformer training, not a measurement."""
    memory_bytes: int = Field(gt=0)

    @property
    def flop_per_s(self) -> float:
        """Reached rate."""
        return self.peak_flop_per_s * self.utilisation


REFERENCE = Accelerator(name="A100 40 GB, fp32", peak_flop_per_s=19.5e12, memory_bytes=40 * 10**9)
"""Stands for the testbed's accelerator, which arXiv 2605.23988 does not name: our choice. A tenth of its memory, the
share of Table II's middle devices, is the 4 GB of Fig. 4a."""


class DeviceClass(Config):
    """A device as a share of an accelerator's speed and memory."""

    name: str
    compute_fraction: float = Field(gt=0, le=1)
    memory_fraction: float = Field(gt=0, le=1)
    compute_power_w: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """While it computes; None: not known, and then no compute energy is given."""

    def flop_per_s(self, accelerator: Accelerator = REFERENCE) -> float:
        """Its reached rate."""
        return self.compute_fraction * accelerator.flop_per_s

    def memory_bytes(self, accelerator: Accelerator = REFERENCE) -> float:
        """Its memory."""
        return self.memory_fraction * accelerator.memory_bytes

    def holds(self, memory_bytes: int | float, accelerator: Accelerator = REFERENCE) -> bool:
        """Whether a method with this peak memory runs on it; one that some participant cannot hold is infeasible."""
        return memory_bytes <= self.memory_bytes(accelerator)


SLOW = DeviceClass(name="slow", compute_fraction=0.05, memory_fraction=0.08)
MIDDLE = DeviceClass(name="middle", compute_fraction=0.10, memory_fraction=0.10)
FAST = DeviceClass(name="fast", compute_fraction=0.15, memory_fraction=0.12)
TESTBED = (SLOW,) * 3 + (MIDDLE,) * 4 + (FAST,) * 3
"""Devices 0 to 9 of arXiv 2605.23988, Table II; the classes' names are ours."""


@dataclass(frozen=True)
class Work:
    """What one device's round takes. A multiply-accumulate is 2 FLOP; bytes are those of all kinds together.

    Raises:
        ConfigError: a number that is negative or not finite.
    """

    device_flop: int | float
    server_flop: int | float
    """On this device's batches."""
    uplink_bytes: int | float
    downlink_bytes: int | float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"work.{name}: given {value}; allowed: a finite number of at least 0")


@dataclass(frozen=True)
class Participant:
    """A device in a round: what it is, how it is connected, what it has to do."""

    device: DeviceClass
    link: Link
    work: Work


@dataclass(frozen=True)
class Latency:
    """One participant's round by phase, and the energy that the device spends."""

    device_s: float
    uplink_s: float
    server_s: float
    """The server's work on every participant's batches: it serves them in turn."""
    downlink_s: float
    radio_joule: float
    """For sending."""
    compute_joule: float | None
    """None where the device's power is not known."""

    @property
    def total_s(self) -> float:
        """The four phases, one after the other."""
        return self.device_s + self.uplink_s + self.server_s + self.downlink_s


@dataclass(frozen=True)
class RoundLatency:
    """A round lasts as long as its slowest participant."""

    participants: tuple[Latency, ...]

    @property
    def slowest(self) -> Latency:
        """The participant that everyone waits for; its phases are the round's."""
        return max(self.participants, key=lambda latency: latency.total_s)

    @property
    def total_s(self) -> float:
        """The round's latency."""
        return self.slowest.total_s


def round_latency(
    participants: Sequence[Participant], accelerator: Accelerator = REFERENCE, server: Accelerator = REFERENCE
) -> RoundLatency:
    """Latency and energy of one round, under the assumptions above.

    `accelerator` is what device classes are fractions of; `server` is the server's own, used alone and whole.

    Raises:
        ConfigError: no participant.
    """
    if not participants:
        raise ConfigError("participants: given none; allowed: at least one")
    server_s = math.fsum(participant.work.server_flop for participant in participants) / server.flop_per_s
    return RoundLatency(tuple(_latency(participant, accelerator, server_s) for participant in participants))


def _latency(participant: Participant, accelerator: Accelerator, server_s: float) -> Latency:
    device, link, work = participant.device, participant.link, participant.work
    device_s = work.device_flop / device.flop_per_s(accelerator)
    return Latency(
        device_s=device_s,
        uplink_s=link.uplink_s(work.uplink_bytes),
        server_s=server_s,
        downlink_s=link.downlink_s(work.downlink_bytes),
        radio_joule=link.uplink_joule(work.uplink_bytes),
        compute_joule=None if device.compute_power_w is None else device.compute_power_w * device_s,
    )
