"""Runs in which every device trains the whole model."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tsflora.federation.device import Step, WholeDevice
from tsflora.federation.evaluation import evaluate
from tsflora.federation.exchange import InProcessExchange
from tsflora.federation.runs import Run
from tsflora.federation.server import AdapterServer
from tsflora.federation.setup import Setup
from tsflora.federation.state import nest, under
from tsflora.models import Adapter, WholeModel, own_copy, read_adapter, set_adapter


def _whole(setup: Setup) -> WholeModel:
    return WholeModel(own_copy(setup.device_part), own_copy(setup.server_part))


class LocalRun(Run):
    """Every device on its own, from the same start."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.model = _whole(setup)
        self.initial = read_adapter(self.model)
        self.exchange = InProcessExchange(AdapterServer(setup, self.initial))
        self.adapters: dict[int, Adapter] = {}
        self.accuracies: dict[int, tuple[float, float]] = {}
        """By device; a device that trained since is missing, so each is evaluated once per change."""

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
        for number in participants:
            device = WholeDevice(number, round_, self.setup, self.model, self.adapters.get(number, self.initial))
            yield from device.train()
            self.adapters[number] = device.adapter
            self.accuracies.pop(number, None)

    def evaluate(self) -> tuple[float, float]:
        """See `Run`."""
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
        """See `Run`."""
        adapters = [nest(f"device.{number}", adapter) for number, adapter in self.adapters.items()]
        known = {f"accuracy.{n}": torch.tensor(pair, dtype=torch.float64) for n, pair in self.accuracies.items()}
        return {name: tensor for part in (*adapters, known) for name, tensor in part.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        for number in range(self.setup.training.n_devices):
            if adapter := under(f"device.{number}", state):
                self.adapters[number] = adapter
            if f"accuracy.{number}" in state:
                on, off = state[f"accuracy.{number}"].tolist()
                self.accuracies[number] = on, off


class FedRun(Run):
    """Federated averaging of the whole adapter."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.model = _whole(setup)
        self.server = AdapterServer(setup, read_adapter(self.model))
        self.exchange = InProcessExchange(self.server)

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
        self.server.begin_round(round_)
        for number in participants:
            start = self.setup.decode_adapter(self.exchange.fetch_adapter(number), self.server.adapter)
            device = WholeDevice(number, round_, self.setup, self.model, start)
            yield from device.train()
            frame = self.setup.encode_adapter(device.adapter, "uplink", round_, number)
            self.exchange.push_adapter(number, frame)
        self.server.aggregate()

    def evaluate(self) -> tuple[float, float]:
        """See `Run`."""
        set_adapter(self.model, self.server.adapter)
        return evaluate(self.setup, self.model.device, self.model.server)

    def state(self) -> dict[str, Tensor]:
        """See `Run`."""
        return nest("adapter", self.server.adapter)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        self.server.adapter = under("adapter", state)
