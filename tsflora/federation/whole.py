"""Methods in which every device trains the whole model."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from tsflora.compression import AdapterCodec, Codec, GradientCodec
from tsflora.errors import FrameError
from tsflora.federation.algorithm import Algorithm, algorithms
from tsflora.federation.evaluation import evaluate
from tsflora.federation.link import Fleet, Message
from tsflora.federation.plan import Plan
from tsflora.federation.rounds import Participant, Run, Step
from tsflora.federation.schedulers import Scheduler
from tsflora.federation.server import Adapters
from tsflora.federation.sides import ServerSide
from tsflora.federation.state import nest, under
from tsflora.models import Adapter, WholeModel, own_copy, read_adapter, set_adapter


@algorithms.register
class LocalLoRA(Algorithm):
    """Every device fine-tunes the whole model on its own images; nothing is exchanged.

    Judged by the mean over all devices of their accuracy on the global test set (methods 2.7).
    """

    name = "local_lora"

    @override
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        return Plan(runs="everything", uploads="nothing")

    @override
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        return LocalRun(side, fleet, scheduler)


@algorithms.register
class FedLoRA(Algorithm):
    """Federated averaging of LoRA factors and head; every device runs the whole model."""

    name = "fed_lora"

    @override
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        return Plan(runs="everything", uploads="nothing", adapter=adapter)

    @override
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        return FedRun(side, fleet, scheduler)


def _whole(side: ServerSide) -> WholeModel:
    return WholeModel(own_copy(side.front), own_copy(side.back))


def _groups(fleet: Fleet, plans: Mapping[int, Plan]) -> list[Mapping[int, Plan]]:
    """Who trains at the same time: all, where they are side by side; else each alone, so that one module serves all."""
    return [plans] if fleet.side_by_side else [{device: plan} for device, plan in plans.items()]


def _trained(present: list[Participant]) -> Iterator[Step]:
    """Have these devices train their round; their steps, device by device."""
    answers = [(participant, participant.link.send(Message("train"))) for participant in present]
    for participant, answer in answers:
        losses, sizes = (answer.result().facts.get(name) for name in ("losses", "n_samples"))
        if not isinstance(losses, tuple) or not isinstance(sizes, tuple) or len(losses) != len(sizes):
            raise FrameError(f"device {participant.number} trained without saying its losses")
        for loss, n_samples in zip(losses, sizes, strict=True):
            yield Step(participant.number, loss, int(n_samples))


class LocalRun(Run):
    """Every device on its own, from the same start."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> None:
        super().__init__(side, fleet, scheduler)
        self.model = _whole(side)
        self.initial = read_adapter(self.model)
        self.scores: dict[int, tuple[float, float]] = {}
        """By device; a device that trained since is missing, so each is evaluated once per change."""

    def train(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `Run`."""
        for group in _groups(self.fleet, plans):
            present = self.begin(round_, group)
            yield from _trained(present)
            for participant in present:
                participant.ask(Message("end"))
                self.scores.pop(participant.number, None)

    def evaluate(self) -> tuple[float, float]:
        """See `Run`."""
        untrained: tuple[float, float] | None = None
        for number, adapter in enumerate(self.judged()):
            if number in self.scores:
                continue
            if adapter is self.initial and untrained is not None:
                self.scores[number] = untrained
                continue
            set_adapter(self.model, adapter)
            self.scores[number] = evaluate(self.side, self.model.front, self.model.rest)
            if adapter is self.initial:
                untrained = self.scores[number]
        mean = torch.tensor(list(self.scores.values()), dtype=torch.float64).mean(dim=0)
        return float(mean[0]), float(mean[1])

    def judged(self) -> Sequence[Adapter]:
        """See `Run`. What devices trained is looked at where a checkpoint would find it: no message would carry it."""
        memories = self.fleet.state()
        devices = range(self.terms.training.n_devices)
        return [under(f"{number}.adapter", memories) or self.initial for number in devices]

    def server_state(self) -> dict[str, Tensor]:
        """See `Run`."""
        return {str(number): torch.tensor(pair, dtype=torch.float64) for number, pair in self.scores.items()}

    def restore_server(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        self.scores = {int(number): (pair[0].item(), pair[1].item()) for number, pair in state.items()}


class FedRun(Run):
    """Federated averaging of the whole adapter."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> None:
        super().__init__(side, fleet, scheduler)
        self.model = _whole(side)
        assert side.terms.plan.adapter is not None
        self.adapters = Adapters(side.terms, side.terms.plan.adapter, read_adapter(self.model))

    def train(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `Run`."""
        self.adapters.begin_round(round_)
        for group in _groups(self.fleet, plans):
            present = self.begin(round_, group, self.adapters.publish)
            yield from _trained(present)
            for participant in present:
                frame = participant.ask(Message("hand_in")).frames["adapter"]
                self.adapters.collect(participant.number, frame, participant.n_samples)
                participant.ask(Message("end"))
        self.adapters.aggregate()

    def evaluate(self) -> tuple[float, float]:
        """See `Run`."""
        set_adapter(self.model, self.adapters.adapter)
        return evaluate(self.side, self.model.front, self.model.rest)

    def judged(self) -> Sequence[Adapter]:
        """See `Run`."""
        return [self.adapters.adapter]

    def server_state(self) -> dict[str, Tensor]:
        """See `Run`."""
        return nest("adapters", self.adapters.state())

    def restore_server(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        self.adapters.restore(under("adapters", state))
