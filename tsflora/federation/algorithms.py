"""Who talks to whom in a round: LocalLoRA, FedLoRA, SplitLoRA and SFLora. TSFLora is SFLora with a token codec.

An algorithm is a component with its options; `start` gives a run, which holds the state. All runs see the same
shards, participants and sample order, and start every participant's optimiser fresh.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from tsflora.config import Component, Registry
from tsflora.federation.device import SplitDevice, Step, WholeDevice
from tsflora.federation.evaluation import evaluate
from tsflora.federation.exchange import InProcessExchange
from tsflora.federation.server import AdapterServer, SplitServer
from tsflora.federation.setup import Setup
from tsflora.federation.state import nest, optimizer_tensors, restore_optimizer, under
from tsflora.models import Adapter, DevicePart, WholeModel, own_copy, read_adapter, set_adapter
from tsflora.seeding import numpy_generator


class Run(ABC):
    """One run in progress."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.exchange: InProcessExchange

    @abstractmethod
    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """Train one round, yielding after every optimiser step."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """Accuracy of the judged model, with compression on and off."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """All that the next round depends on."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


class Algorithm(Component):
    """Base of all algorithms."""

    splits: ClassVar[bool]
    """Whether activations cross the wire, so that a token reducer and quantizers apply."""

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
    splits = False

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return _LocalRun(setup)


@algorithms.register
class FedLoRA(Algorithm):
    """Federated averaging of LoRA factors and head; every device runs the whole model."""

    name = "fed_lora"
    splits = False

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return _FedRun(setup)


@algorithms.register
class SplitLoRA(Algorithm):
    """Sequential split learning with LoRA: one server adapter, stepped at every batch.

    `relay` hands the device adapter from participant to participant, without averaging. `periodic` is the published
    SplitLoRA code's way (arXiv 2407.00952, there with 100 steps): participants take turns batch by batch, and their
    adapters are averaged every `average_every` server steps of a round and at its end.
    """

    name = "split_lora"
    splits = True
    mode: Literal["relay", "periodic"] = "relay"
    average_every: int = Field(default=100, ge=1)

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return _RelayRun(setup) if self.mode == "relay" else _PeriodicRun(setup, self.average_every)


@algorithms.register
class SFLora(Algorithm):
    """SplitFed with LoRA: devices in parallel, device adapters averaged at the end of the round.

    `order` is how batches arrive at the server: `interleaved` (one batch per active device, in a fresh random order
    each time) or `sequential` (device by device, in random order, as in SplitFed). `server` is `shared` (SplitFed-v2:
    one adapter stepped at each batch) or `averaged` (SplitFed-v1: one copy per device, averaged each round).
    """

    name = "sflora"
    splits = True
    order: Literal["interleaved", "sequential"] = "interleaved"
    server: Literal["shared", "averaged"] = "shared"

    def start(self, setup: Setup) -> Run:
        """See `Algorithm`."""
        return _SplitFedRun(setup, self.order, copies=self.server == "averaged")


def _whole(setup: Setup) -> WholeModel:
    return WholeModel(own_copy(setup.device_part), own_copy(setup.server_part))


class _LocalRun(Run):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.model = _whole(setup)
        self.initial = read_adapter(self.model)
        self.exchange = InProcessExchange(AdapterServer(setup, self.initial))
        self.adapters: dict[int, Adapter] = {}
        self.accuracies: dict[int, tuple[float, float]] = {}
        """By device; a device that trained since is missing, so each is evaluated once per change."""

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        for number in participants:
            device = WholeDevice(number, round_, self.setup, self.model, self.adapters.get(number, self.initial))
            yield from device.train()
            self.adapters[number] = device.adapter
            self.accuracies.pop(number, None)

    def evaluate(self) -> tuple[float, float]:
        untrained: tuple[float, float] | None = None
        for number in range(self.setup.training.n_devices):
            if number in self.accuracies:
                continue
            if number not in self.adapters and untrained is not None:
                self.accuracies[number] = untrained
                continue
            set_adapter(self.model, self.adapters.get(number, self.initial))
            self.accuracies[number] = evaluate(self.setup, self.model.device, self.model.server)
            if number not in self.adapters:
                untrained = self.accuracies[number]
        mean = torch.tensor(list(self.accuracies.values()), dtype=torch.float64).mean(dim=0)
        return float(mean[0]), float(mean[1])

    def state(self) -> dict[str, Tensor]:
        adapters = [nest(f"device.{number}", adapter) for number, adapter in self.adapters.items()]
        known = {f"accuracy.{n}": torch.tensor(pair, dtype=torch.float64) for n, pair in self.accuracies.items()}
        return {name: tensor for part in (*adapters, known) for name, tensor in part.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        for number in range(self.setup.training.n_devices):
            if adapter := under(f"device.{number}", state):
                self.adapters[number] = adapter
            if f"accuracy.{number}" in state:
                on, off = state[f"accuracy.{number}"].tolist()
                self.accuracies[number] = on, off


class _FedRun(Run):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.model = _whole(setup)
        self.server = AdapterServer(setup, read_adapter(self.model))
        self.exchange = InProcessExchange(self.server)

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        self.server.begin_round(round_)
        for number in participants:
            start = self.setup.decode_adapter(self.exchange.fetch_adapter(number), self.server.adapter)
            device = WholeDevice(number, round_, self.setup, self.model, start)
            yield from device.train()
            frame = self.setup.encode_adapter(device.adapter, "uplink", round_, number)
            self.exchange.push_adapter(number, frame)
        self.server.aggregate()

    def evaluate(self) -> tuple[float, float]:
        set_adapter(self.model, self.server.adapter)
        return evaluate(self.setup, self.model.device, self.model.server)

    def state(self) -> dict[str, Tensor]:
        return nest("adapter", self.server.adapter)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.server.adapter = under("adapter", state)


class _SplitRun(Run):
    """What all split methods share: the server with its optimiser, and the judged device part."""

    def __init__(self, setup: Setup, copies: bool = False) -> None:
        super().__init__(setup)
        self.judged = own_copy(setup.device_part)
        self.server = SplitServer(setup, read_adapter(self.judged), copies)
        self.exchange = InProcessExchange(self.server)
        self.parts: list[DevicePart] = []
        """Device parts, lent to the participants of each round."""

    def devices(self, numbers: Sequence[int], round_: int) -> list[SplitDevice]:
        while len(self.parts) < len(numbers):
            self.parts.append(own_copy(self.setup.device_part))
        parts = self.parts[: len(numbers)]
        return [SplitDevice(n, round_, self.setup, part) for n, part in zip(numbers, parts, strict=True)]

    def step(self, device: SplitDevice) -> Step:
        n_images = device.train_step(self.exchange)
        return Step(self.server.loss, n_images)

    def evaluate(self) -> tuple[float, float]:
        set_adapter(self.judged, self.server.adapter)
        return evaluate(self.setup, self.judged, self.server.part)

    def state(self) -> dict[str, Tensor]:
        return {
            **nest("device", self.server.adapter),
            **nest("server", read_adapter(self.server.part)),
            **nest("optimizer", optimizer_tensors(self.server.optimizer)),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.server.adapter = under("device", state)
        set_adapter(self.server.part, under("server", state))
        restore_optimizer(self.server.optimizer, under("optimizer", state))


class _SplitFedRun(_SplitRun):
    def __init__(self, setup: Setup, order: str, copies: bool) -> None:
        super().__init__(setup, copies)
        self.order = order

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        self.server.begin_round(round_)
        devices = self.devices(participants, round_)
        for device in devices:
            device.fetch_adapter(self.exchange)
        for device in self._turns(devices, round_):
            yield self.step(device)
        for device in devices:
            device.push_adapter(self.exchange)
        self.server.aggregate()
        self.server.end_round()

    def _turns(self, devices: list[SplitDevice], round_: int) -> Iterator[SplitDevice]:
        rng = numpy_generator("order", self.setup.dataset, self.setup.seed, round_)
        while devices:
            for index in rng.permutation(len(devices)):
                for _ in range(1 if self.order == "interleaved" else devices[index].remaining):
                    yield devices[index]
            devices = [device for device in devices if device.remaining]


class _RelayRun(_SplitRun):
    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        self.server.begin_round(round_)
        rng = numpy_generator("order", self.setup.dataset, self.setup.seed, round_)
        for number in rng.permutation(participants).tolist():
            (device,) = self.devices([number], round_)
            device.fetch_adapter(self.exchange)
            while device.remaining:
                yield self.step(device)
            device.push_adapter(self.exchange)
            # The mean of the one adapter collected: the next participant starts where this one stopped.
            self.server.aggregate()


class _PeriodicRun(_SplitRun):
    def __init__(self, setup: Setup, average_every: int) -> None:
        super().__init__(setup)
        self.average_every = average_every

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        self.server.begin_round(round_)
        devices = self.devices(participants, round_)
        for device in devices:
            device.fetch_adapter(self.exchange)
        active, steps = devices, 0
        while active:
            for device in active:
                yield self.step(device)
                steps += 1
                if steps % self.average_every == 0:
                    self._average(devices)
                    for participant in devices:
                        participant.fetch_adapter(self.exchange)
            active = [device for device in active if device.remaining]
        self._average(devices)

    def _average(self, devices: list[SplitDevice]) -> None:
        for device in devices:
            device.push_adapter(self.exchange)
        self.server.aggregate()
