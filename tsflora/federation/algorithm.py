"""What a method is: which plan its devices follow, and how the server conducts a round.

An algorithm is a component with its options; `start` gives a run, which holds the state. All runs see the same shards,
participants and sample order, and start every participant's optimiser fresh.
"""

from abc import ABC, abstractmethod

from tsflora.compression import AdapterCodec, Codec, GradientCodec
from tsflora.config import Component, Registry
from tsflora.federation.link import Fleet
from tsflora.federation.plan import Plan
from tsflora.federation.rounds import Run
from tsflora.federation.schedulers import Scheduler
from tsflora.federation.sides import ServerSide


class Algorithm(Component, ABC):
    """Base of all algorithms."""

    @abstractmethod
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        """What each device does, of these codecs with those that the method uses."""

    @abstractmethod
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        """A run at round zero, which conducts `fleet`."""


algorithms: Registry[Algorithm] = Registry("algorithm", "tsflora.algorithms", Algorithm)
