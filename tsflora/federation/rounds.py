"""A run in progress, round by round: what all methods share of conducting a fleet."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from torch import Tensor

from tsflora.errors import FrameError
from tsflora.federation.link import Fleet, Link, Message
from tsflora.federation.plan import DeviceRound, Dropped, Plan
from tsflora.federation.schedulers import Scheduler
from tsflora.federation.sides import ServerSide
from tsflora.federation.state import nest, under
from tsflora.models import Adapter


@dataclass(frozen=True)
class Step:
    """One optimiser step: its mean loss over `n_samples` of a device."""

    device: int
    loss: float
    n_samples: int


@dataclass
class Participant:
    """A device in a round, as the server knows it."""

    number: int
    plan: Plan
    link: Link
    n_samples: int = 0
    """Of its shard, as it says; the same for `n_steps`, its mini-batches of this round."""
    n_steps: int = 0
    asked: int = 0
    """Mini-batches asked for so far."""
    _pending: list[Future[Message]] = field(default_factory=list)
    _ahead: Future[Message] | None = None

    def tell(self, message: Message) -> None:
        """Send what needs no answer. What goes wrong with it is raised with the next thing that is asked."""
        self._pending.append(self.link.send(message))
        if self._pending[0].done():
            self._settle()

    def ask(self, message: Message) -> Message:
        """Send a message and wait for the answer."""
        answer = self.link.send(message)
        self._settle()
        return answer.result()

    def ask_ahead(self) -> None:
        """Have the device start on its next mini-batch, if it has one and is not at it already."""
        if self._ahead is None and self.asked < self.n_steps:
            self._ahead = self.link.send(Message("forward"))
            self.asked += 1

    def tokens(self) -> Message:
        """The frames of the next mini-batch."""
        self.ask_ahead()
        answer, self._ahead = self._ahead, None
        assert answer is not None, "asked for more mini-batches than there are"
        self._settle()
        return answer.result()

    def _settle(self) -> None:
        for told in self._pending:
            told.result()
        self._pending.clear()


class Run(ABC):
    """One run in progress."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> None:
        self.side = side
        self.terms = side.terms
        self.fleet = fleet
        self.scheduler = scheduler
        self.devices: tuple[DeviceRound, ...] = ()
        """What devices did in the round that is finished, or that a checkpoint ended with."""
        self._links: dict[int, Link] = {}

    @abstractmethod
    def train(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """Train one round with these devices, yielding after every optimiser step."""

    @abstractmethod
    def evaluate(self) -> tuple[float, float]:
        """The metric of the judged model, with compression on and off."""

    @abstractmethod
    def judged(self) -> Sequence[Adapter]:
        """The adapter of the model that `evaluate` judges, of the front and of the back, as it stands.

        One; or one for each device, in order, where each has a model of its own. Names are those in `Front`, `Back` or
        `WholeModel`; `unsplit_names` makes them the backbone's.
        """

    @abstractmethod
    def server_state(self) -> dict[str, Tensor]:
        """All of the server's that the next round depends on."""

    @abstractmethod
    def restore_server(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `server_state`."""

    def train_round(self, round_: int, drawn: Sequence[int]) -> Iterator[Step]:
        """Plan and train one round with the devices that were drawn, yielding after every optimiser step."""
        base = self.terms.plan
        plans = self.scheduler.plan(self.terms, round_, drawn, self.devices)
        taking_part = {device: plan for device in drawn if isinstance(plan := plans[device], Plan)}
        self._links = {device: self.fleet.link(device) for device in taking_part}
        for link in self._links.values():
            link.reset()
        seen: Counter[int] = Counter()
        for step in self.train(round_, taking_part):
            seen[step.device] += step.n_samples
            yield step
        self.devices = tuple(self._told(device, plans[device], base, seen[device]) for device in drawn)

    def _told(self, device: int, plan: Plan | Dropped, base: Plan, n_samples: int) -> DeviceRound:
        if isinstance(plan, Dropped):
            return DeviceRound(device=device, dropped=plan.why)
        traffic = self._links[device].traffic
        return DeviceRound(
            device=device,
            plan=plan.changes(base) or None,
            n_samples=n_samples,
            uplink_bytes=traffic.uplink.total(),
            downlink_bytes=traffic.downlink.total(),
        )

    def uplink(self) -> Counter[str]:
        """Bytes of this round so far by kind, over all devices; `downlink` likewise."""
        return sum((link.traffic.uplink for link in self._links.values()), Counter())

    def downlink(self) -> Counter[str]:
        """See `uplink`."""
        return sum((link.traffic.downlink for link in self._links.values()), Counter())

    def state(self) -> dict[str, Tensor]:
        """All that the next round depends on, at both ends."""
        return {**nest("server", self.server_state()), **nest("fleet", self.fleet.state())}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        self.fleet.restore(under("fleet", state))
        self.restore_server(under("server", state))

    def begin(
        self,
        round_: int,
        plans: Mapping[int, Plan],
        adapter: Callable[[int], bytes] | None = None,
        news: Callable[[Plan], bytes | None] | None = None,
    ) -> list[Participant]:
        """Start the round on these devices: each is told its plan, where that is its own, news and the adapter."""
        base = self.terms.plan
        begun = []
        for device, plan in plans.items():
            frames = {} if plan == base else {"plan": plan.encode(base)}
            if news is not None and (told := news(plan)):
                frames["news"] = told
            if adapter is not None and plan.adapter is not None:
                frames["adapter"] = adapter(device)
            link = self.fleet.link(device)
            begun.append((Participant(device, plan, link), link.send(Message("begin", frames, {"round": round_}))))
        for participant, answer in begun:
            facts = answer.result().facts
            participant.n_samples, participant.n_steps = (count(facts, name) for name in ("n_samples", "n_steps"))
        return [participant for participant, _ in begun]


def count(facts: Mapping[str, object], name: str) -> int:
    """A fact that counts something.

    Raises:
        FrameError: it is missing, or no whole number of at least 1.
    """
    value = facts.get(name)
    if type(value) is not int or value < 1:
        raise FrameError(f"a device answered with {name}: {value!r}; allowed: a whole number of at least 1")
    return value
