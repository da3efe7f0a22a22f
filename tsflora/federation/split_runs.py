"""Runs in which the model is cut: devices hold the first blocks, the server the others."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from tsflora.federation.device import SplitDevice, Step
from tsflora.federation.evaluation import evaluate
from tsflora.federation.exchange import InProcessExchange
from tsflora.federation.runs import Run
from tsflora.federation.server import SplitServer
from tsflora.federation.setup import Setup
from tsflora.federation.state import nest, optimizer_tensors, restore_optimizer, under
from tsflora.federation.training import Order, turns
from tsflora.models import DevicePart, own_copy, read_adapter, set_adapter
from tsflora.seeding import numpy_generator


class SplitRun(Run):
    """What all split methods share: the server with its optimiser, and the judged device part."""

    def __init__(self, setup: Setup, copies: bool = False) -> None:
        super().__init__(setup)
        self.judged = own_copy(setup.device_part)
        self.server = SplitServer(setup, read_adapter(self.judged), copies)
        self.exchange = InProcessExchange(self.server)
        self.parts: list[DevicePart] = []
        """Device parts, lent to the participants of each round."""

    def devices(self, numbers: Sequence[int], round_: int) -> list[SplitDevice]:
        """The round's participants, with lent parts."""
        while len(self.parts) < len(numbers):
            self.parts.append(own_copy(self.setup.device_part))
        parts = self.parts[: len(numbers)]
        return [SplitDevice(n, round_, self.setup, part) for n, part in zip(numbers, parts, strict=True)]

    def step(self, device: SplitDevice) -> Step:
        """One mini-batch of a device, at both ends."""
        n_images = device.train_step(self.exchange)
        return Step(self.server.loss, n_images)

    def evaluate(self) -> tuple[float, float]:
        """See `Run`."""
        set_adapter(self.judged, self.server.adapter)
        return evaluate(self.setup, self.judged, self.server.part)

    def state(self) -> dict[str, Tensor]:
        """See `Run`."""
        return {
            **nest("device", self.server.adapter),
            **nest("server", read_adapter(self.server.part)),
            **nest("optimizer", optimizer_tensors(self.server.optimizer)),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        self.server.adapter = under("device", state)
        set_adapter(self.server.part, under("server", state))
        restore_optimizer(self.server.optimizer, under("optimizer", state))


class SplitFedRun(SplitRun):
    """Devices in parallel, their adapters averaged at the end of the round."""

    def __init__(self, setup: Setup, order: Order, copies: bool) -> None:
        super().__init__(setup, copies)
        self.order = order

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
        self.server.begin_round(round_)
        devices = self.devices(participants, round_)
        for device in devices:
            device.fetch_adapter(self.exchange)
        steps = [device.remaining for device in devices]
        for index in turns(steps, self.order, self.setup.dataset, self.setup.seed, round_):
            yield self.step(devices[index])
        for device in devices:
            device.push_adapter(self.exchange)
        self.server.aggregate()
        self.server.end_round()


class RelayRun(SplitRun):
    """The device adapter goes from participant to participant."""

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
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


class PeriodicRun(SplitRun):
    """Participants take turns batch by batch; adapters are averaged every so many server steps."""

    def __init__(self, setup: Setup, average_every: int) -> None:
        super().__init__(setup)
        self.average_every = average_every

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
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
