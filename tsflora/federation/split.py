"""Methods in which the model is cut: devices hold the first blocks, the server the others."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor
from typing_extensions import override

from tsflora.compression import AdapterCodec, Codec, GradientCodec
from tsflora.federation.algorithm import Algorithm, algorithms
from tsflora.federation.evaluation import evaluate
from tsflora.federation.link import Fleet, Message
from tsflora.federation.plan import Plan
from tsflora.federation.rounds import Participant, Run, Step, count
from tsflora.federation.schedulers import Scheduler
from tsflora.federation.server import Adapters, SplitServer
from tsflora.federation.sides import ServerSide
from tsflora.federation.state import nest, under
from tsflora.federation.training import Order, turns
from tsflora.models import Adapter, own_copy, read_adapter, set_adapter
from tsflora.seeding import numpy_generator


@algorithms.register
class SplitLoRA(Algorithm):
    """Sequential split learning with LoRA: one server adapter, stepped at every batch.

    `relay` hands the device adapter from participant to participant, without averaging. `periodic` is the published
    SplitLoRA code's way (arXiv 2407.00952, there with 100 steps): participants take turns batch by batch, and their
    adapters are averaged every `average_every` server steps of a round and at its end.
    """

    name = "split_lora"
    mode: Literal["relay", "periodic"] = "relay"
    average_every: int = Field(default=100, ge=1)

    @override
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        return Plan(runs="front", uploads="tokens", codec=codec, gradient=gradient, adapter=adapter)

    @override
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        if self.mode == "relay":
            return RelayRun(side, fleet, scheduler)
        return PeriodicRun(side, fleet, scheduler, self.average_every)


@algorithms.register
class SFLora(Algorithm):
    """SplitFed with LoRA: devices in parallel, device adapters averaged at the end of the round.

    `order` is how batches arrive at the server: `interleaved` (one batch per active device, in a fresh random order
    each time) or `sequential` (device by device, in random order, as in SplitFed). `server` is `shared` (SplitFed-v2:
    one adapter stepped at each batch) or `averaged` (SplitFed-v1: one copy per device, averaged each round).
    """

    name = "sflora"
    order: Order = "interleaved"
    server: Literal["shared", "averaged"] = "shared"
    frozen: bool = False
    """Devices only run forward: nothing comes back to them, they train nothing and no adapter travels."""

    @override
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        if self.frozen:
            return Plan(runs="front", uploads="tokens", codec=codec)
        return Plan(runs="front", uploads="tokens", codec=codec, gradient=gradient, adapter=adapter)

    @override
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        return SplitFedRun(side, fleet, scheduler, self.order, copies=self.server == "averaged")


class SplitRun(Run):
    """What all split methods share: the server's blocks, the devices' adapter, and the judged front."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler, copies: bool = False) -> None:
        super().__init__(side, fleet, scheduler)
        self.front = own_copy(side.front)
        self.server = SplitServer(side, copies)
        codec = side.terms.plan.adapter
        self.adapters = None if codec is None else Adapters(side.terms, codec, read_adapter(self.front))

    @abstractmethod
    def exchange(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """The round between its beginning and its end at the server."""

    def train(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `Run`."""
        self.server.begin_round(round_)
        if self.adapters is not None:
            self.adapters.begin_round(round_)
        yield from self.exchange(round_, plans)
        self.server.end_round()

    def join(self, round_: int, plans: Mapping[int, Plan]) -> list[Participant]:
        """Start the round on these devices, from the adapter as it stands."""
        publish = None if self.adapters is None else self.adapters.publish
        return self.begin(round_, plans, publish, self.server.news)

    def ask_ahead(self, present: Sequence[Participant]) -> None:
        """Let these devices start on their next mini-batches, where they compute beside the server."""
        if self.fleet.side_by_side:
            for participant in present:
                participant.ask_ahead()

    def step(self, participant: Participant) -> Step:
        """One mini-batch of a device, at both ends."""
        answer = participant.tokens()
        number, plan = participant.number, participant.plan
        loss, gradient = self.server.step(number, participant.n_samples, plan, answer.frames)
        if gradient is not None:
            participant.tell(Message("backward", {"gradient": gradient}))
        return Step(number, loss, count(answer.facts, "n_samples"))

    def average(self, present: Sequence[Participant]) -> None:
        """Collect these devices' adapters and average them, where the plan has adapters that travel."""
        if self.adapters is None:
            return
        trained = [participant for participant in present if participant.plan.adapter is not None]
        answers = [(participant, participant.link.send(Message("hand_in"))) for participant in trained]
        for participant, answer in answers:
            frame = answer.result().frames["adapter"]
            self.adapters.collect(participant.number, frame, participant.n_samples)
        self.adapters.aggregate()

    def leave(self, present: Sequence[Participant]) -> None:
        """The round is over for these devices."""
        for participant in present:
            participant.ask(Message("end"))

    def evaluate(self) -> tuple[float, float]:
        """See `Run`. Judged is a device that never took part: with the adapter as it stands and the latest news."""
        if self.adapters is not None:
            set_adapter(self.front, self.adapters.adapter)
        plan = self.terms.plan
        assert plan.codec is not None
        sender = plan.codec.sender()
        if news := self.server.news(plan):
            sender.absorb(news)
        return evaluate(self.side, self.front, self.server.back, sender)

    def judged(self) -> Sequence[Adapter]:
        """See `Run`."""
        front = read_adapter(self.front) if self.adapters is None else self.adapters.adapter
        return [{**front, **read_adapter(self.server.back)}]

    def server_state(self) -> dict[str, Tensor]:
        """See `Run`."""
        adapters = {} if self.adapters is None else self.adapters.state()
        return {**nest("adapters", adapters), **nest("back", self.server.state())}

    def restore_server(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        if self.adapters is not None:
            self.adapters.restore(under("adapters", state))
        self.server.restore(under("back", state))


class SplitFedRun(SplitRun):
    """Devices in parallel, their adapters averaged at the end of the round."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler, order: Order, copies: bool) -> None:
        super().__init__(side, fleet, scheduler, copies)
        self.order = order

    def exchange(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `SplitRun`."""
        present = self.join(round_, plans)
        self.ask_ahead(present)
        steps = [participant.n_steps for participant in present]
        for index in turns(steps, self.order, self.terms.dataset, self.terms.seed, round_):
            yield self.step(present[index])
            self.ask_ahead([present[index]])
        self.average(present)
        self.leave(present)


class RelayRun(SplitRun):
    """The device adapter goes from participant to participant."""

    def exchange(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `SplitRun`."""
        rng = numpy_generator("order", self.terms.dataset, self.terms.seed, round_)
        for number in rng.permutation(list(plans)).tolist():
            (participant,) = present = self.join(round_, {number: plans[number]})
            for _ in range(participant.n_steps):
                yield self.step(participant)
                self.ask_ahead(present)
            # The mean of the one adapter collected: the next participant starts where this one stopped.
            self.average(present)
            self.leave(present)


class PeriodicRun(SplitRun):
    """Participants take turns batch by batch; adapters are averaged every so many server steps."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler, average_every: int) -> None:
        super().__init__(side, fleet, scheduler)
        self.average_every = average_every

    def exchange(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `SplitRun`."""
        present = self.join(round_, plans)
        active, left, n_steps = present, {p.number: p.n_steps for p in present}, 0
        while active:
            for participant in active:
                yield self.step(participant)
                left[participant.number] -= 1
                n_steps += 1
                if n_steps % self.average_every == 0:
                    self.average(present)
                    for one in present:
                        assert self.adapters is not None
                        one.tell(Message("adopt", {"adapter": self.adapters.publish(one.number)}))
            active = [participant for participant in active if left[participant.number]]
        self.average(present)
        self.leave(present)
