"""Who talks to whom in a round: LocalLoRA, FedLoRA, SplitLoRA and SFLora. TSFLora is SFLora with a token codec.

An algorithm is a component with its options; `start` gives a run, which holds the state. All runs see the same
shards, participants and sample order, and start every participant's optimiser fresh.
"""

from abc import abstractmethod
from typing import ClassVar, Literal

from pydantic import Field

from tsflora.compression import JpegImages, RawImages
from tsflora.config import Component, Registry
from tsflora.federation.central import CentralRun
from tsflora.federation.runs import Run
from tsflora.federation.setup import Setup
from tsflora.federation.split_runs import PeriodicRun, RelayRun, SplitFedRun
from tsflora.federation.training import Order
from tsflora.federation.whole_runs import FedRun, LocalRun
from tsflora.models import Placement


class Algorithm(Component):
    """Base of all algorithms."""

    placement: ClassVar[Placement]
    """Who runs what; only in `split` do activations cross the wire, so that a token reducer and quantizers apply."""

    @abstractmethod
    def start(self, setup: Setup) -> Run:
        """A run at round zero."""


algorithms: Registry[Algorithm] = Registry("algorithm", "tsflora.algorithms")


@algorithms.register
class LocalLoRA(Algorithm):
    """Every device fine-tunes the whole model on its own images; nothing is exchanged.

    Judged by the mean over all devices of their accuracy on the global test set (methods 2.7).
    """

    name = "local_lora"
    placement = "local"

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return LocalRun(setup)


@algorithms.register
class FedLoRA(Algorithm):
    """Federated averaging of LoRA factors and head; every device runs the whole model."""

    name = "fed_lora"
    placement = "federated"

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return FedRun(setup)


@algorithms.register
class SplitLoRA(Algorithm):
    """Sequential split learning with LoRA: one server adapter, stepped at every batch.

    `relay` hands the device adapter from participant to participant, without averaging. `periodic` is the published
    SplitLoRA code's way (arXiv 2407.00952, there with 100 steps): participants take turns batch by batch, and their
    adapters are averaged every `average_every` server steps of a round and at its end.
    """

    name = "split_lora"
    placement = "split"
    mode: Literal["relay", "periodic"] = "relay"
    average_every: int = Field(default=100, ge=1)

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return RelayRun(setup) if self.mode == "relay" else PeriodicRun(setup, self.average_every)


@algorithms.register
class SFLora(Algorithm):
    """SplitFed with LoRA: devices in parallel, device adapters averaged at the end of the round.

    `order` is how batches arrive at the server: `interleaved` (one batch per active device, in a fresh random order
    each time) or `sequential` (device by device, in random order, as in SplitFed). `server` is `shared` (SplitFed-v2:
    one adapter stepped at each batch) or `averaged` (SplitFed-v1: one copy per device, averaged each round).
    """

    name = "sflora"
    placement = "split"
    order: Order = "interleaved"
    server: Literal["shared", "averaged"] = "shared"

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return SplitFedRun(setup, self.order, copies=self.server == "averaged")


@algorithms.register
class Central(Algorithm):
    """Devices hand their images over and the server trains the whole model: what split learning is measured against.

    A context baseline that the paper leaves out: no privacy, and each image travels once. `image` is `raw` (one byte
    per channel and pixel) or `jpeg` at `quality`, in which case training and judging see the decoded JPEG.
    """

    name = "central"
    placement = "central"
    image: Literal["raw", "jpeg"] = "raw"
    quality: int = Field(default=75, ge=1, le=95)
    """JPEG only."""

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return CentralRun(setup, RawImages() if self.image == "raw" else JpegImages(self.quality))
