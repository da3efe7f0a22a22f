"""A device: it answers the server's messages with what it has, its shard and its module, and with nothing else."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from tsflora.compression import (
    Codec,
    GradientCodec,
    GradientReceiver,
    Sender,
    codecs,
    encode_labels,
    gradient_codecs,
)
from tsflora.errors import FrameError
from tsflora.federation.ends import Ends
from tsflora.federation.link import Message
from tsflora.federation.plan import Plan
from tsflora.federation.sides import DeviceSide
from tsflora.federation.state import nest, under
from tsflora.federation.training import check_adapter, check_finite, minibatches, precision, step
from tsflora.models import Adapter, Front, read_adapter, set_adapter


@runtime_checkable
class Lender(Protocol):
    """Where a device gets its module for a round."""

    initial: Adapter
    """The adapter that everybody starts from."""

    def borrow(self) -> nn.Module:
        """A module with the initial adapter."""

    def give_back(self, module: nn.Module) -> None:
        """The round is over."""


class Device:
    """One device. Its optimiser starts fresh in each round; adapters, and what its codecs remember, outlive a round.

    A training step has two halves: `forward` up to the frames, and `backward` from the gradient's frame. A round is
    `begin`, any number of steps (or `train`, where the device has the whole model), `hand_in` and `end`.
    """

    def __init__(self, number: int, side: DeviceSide, loan: Lender) -> None:
        self.number = number
        self.side = side
        self.terms = side.terms
        self.shard = side.shards[number]
        self.loan = loan
        self.plan = side.terms.plan
        self.module: nn.Module | None = None
        """Lent from `begin` to `end`."""
        self.optimizer: torch.optim.Optimizer | None = None
        self._waiting: Tensor | None = None
        self.adapter: Adapter | None = None
        """Of a device that trains for itself; None: the initial one, or what the server publishes."""
        self.senders: Ends[Codec, Sender] = Ends(codecs, lambda codec: codec.sender())
        self.receivers: Ends[GradientCodec, GradientReceiver] = Ends(gradient_codecs, lambda codec: codec.receiver())
        self.adapters = None if self.plan.adapter is None else self.plan.adapter.end(loan.initial)
        self._verbs: dict[str, Callable[[Message], Message]] = {
            "begin": self.begin,
            "adopt": self.adopt,
            "forward": self.forward,
            "backward": self.backward,
            "train": self.train,
            "upload": self.upload,
            "hand_in": self.hand_in,
            "end": self.end,
        }

    def answer(self, message: Message) -> Message:
        """What the device has to say to a message.

        Raises:
            FrameError: a verb, fact or frame that it does not know, or damaged bytes.
            NumericsError: NaN or infinity on this device.
        """
        if message.verb not in self._verbs:
            raise FrameError(f"device {self.number}: unknown verb {message.verb!r}; allowed: {', '.join(self._verbs)}")
        try:
            return self._verbs[message.verb](message)
        except KeyError as error:
            raise FrameError(f"device {self.number}: {message.verb!r} came without {error}") from None

    def begin(self, message: Message) -> Message:
        """Start a round from what the server says: its number, a plan of its own, news, the adapter."""
        frames = message.frames
        self.round = int(_number(message, "round"))
        base = self.terms.plan
        self.plan = Plan.decode(frames["plan"], base) if "plan" in frames else base
        names = (self.terms.dataset, self.terms.seed, self.round, self.number)
        self._batches = list(minibatches(self.shard, self.terms.training, *names))
        self._done = 0
        self.module = self.loan.borrow()
        if isinstance(self.module, Front):
            self.module.merge_by(self.plan.merging)
        if self.adapter is not None:
            set_adapter(self.module, self.adapter)
        if "news" in frames and self.plan.codec is not None:
            self.senders.of(self.plan.codec).absorb(frames["news"])
        if "adapter" in frames:
            self.adopt(message)
        trained = [p for p in self.module.parameters() if p.requires_grad] if self.plan.trains else []
        self.optimizer = self.terms.training.optimizer.build(trained) if trained else None
        return Message("begun", facts={"n_samples": len(self.shard), "n_steps": len(self._batches)})

    def adopt(self, message: Message) -> Message:
        """Go on from the adapter that the server published."""
        if self.adapters is None:
            raise FrameError(f"device {self.number}: got an adapter, and the plan has none that travels")
        adapter = self.adapters.adopt(message.frames["adapter"])
        set_adapter(self._module(), adapter)
        return Message("adopted")

    def forward(self, message: Message | None = None) -> Message:
        """One mini-batch, from its samples to the frames of tokens and labels."""
        del message
        terms, plan, module = self.terms, self.plan, self._module()
        if plan.codec is None:
            raise FrameError(f"device {self.number}: asked for tokens, and the plan sends none")
        batch, stream = self._next_batch()
        inputs, draw = self.inputs(batch, stream[-1]), terms.draw(*stream)
        with precision(terms.where, terms.training), torch.set_grad_enabled(plan.gradient is not None):
            seen = module(inputs, draw).float()
        check_finite(seen.tokens.values, "the activations", self.round, self.number)
        tokens, frame = self.senders.of(plan.codec).send(seen, batch, draw)
        self._waiting = tokens.rows() if plan.gradient is not None else None
        return Message("tokens", {"tokens": frame, "labels": self._labels(batch)}, {"n_samples": len(batch)})

    def backward(self, message: Message) -> Message:
        """The gradient's way back through the codec and the front, and one step of the optimiser."""
        waiting, optimizer = self._waiting, self.optimizer
        if waiting is None or self.plan.gradient is None or optimizer is None:
            raise FrameError(f"device {self.number}: got a gradient that it does not wait for")
        self._waiting = None
        receiver = self.receivers.of(self.plan.gradient)
        gradient = receiver.receive(message.frames["gradient"], tuple(waiting.shape)).to(self.terms.where)
        check_finite(gradient, "the returned gradient", self.round, self.number)
        optimizer.zero_grad()
        waiting.backward(gradient)
        step(optimizer, self.terms.training)
        return Message("stepped")

    def train(self, message: Message | None = None) -> Message:
        """This round's local epochs on the whole model."""
        del message
        terms, module, optimizer = self.terms, self._module(), self.optimizer
        if self.plan.runs != "everything" or optimizer is None:
            raise FrameError(f"device {self.number}: asked to train alone, and the plan gives it the front only")
        losses, sizes = [], []
        while self._done < len(self._batches):
            batch, stream = self._next_batch()
            inputs, targets = (
                self.inputs(batch, stream[-1]),
                terms.task.targets(self.side.data.labels[batch], terms.where),
            )
            with precision(terms.where, terms.training):
                outputs = module(inputs)
            loss = terms.task.loss(outputs, targets)
            check_finite(loss, "the loss", self.round, self.number)
            optimizer.zero_grad()
            loss.backward()
            step(optimizer, terms.training)
            losses.append(loss.item())
            sizes.append(len(batch))
        check_adapter(read_adapter(module), self.round, self.number)
        return Message("trained", facts={"losses": tuple(losses), "n_samples": tuple(sizes)})

    def upload(self, message: Message | None = None) -> Message:
        """Hand the whole shard over."""
        del message
        if self.terms.plan.images is None:
            raise FrameError(f"device {self.number}: asked for its samples, and the plan keeps them here")
        frame = self.terms.plan.images.encode(self.side.data.images[self.shard])
        return Message("samples", {"images": frame, "labels": self._labels(self.shard)}, {"n_samples": len(self.shard)})

    def hand_in(self, message: Message | None = None) -> Message:
        """The adapter as it stands."""
        del message
        if self.adapters is None:
            raise FrameError(f"device {self.number}: asked for its adapter, and the plan has none that travels")
        adapter = read_adapter(self._module())
        check_adapter(adapter, self.round, self.number)
        # A device that runs everything hands in once a round; one behind a cut may do so between steps.
        step_ = () if self.plan.runs == "everything" else (self._done,)
        generator = self.terms.generator("adapter", "uplink", self.round, self.number, *step_)
        return Message("adapter", {"adapter": self.adapters.submit(adapter, generator)})

    def end(self, message: Message | None = None) -> Message:
        """The round is over."""
        del message
        module = self._module()
        if self.plan.trains and self.adapters is None:
            self.adapter = read_adapter(module)
        self.module = self.optimizer = self._waiting = None
        self.loan.give_back(module)
        return Message("ended")

    def inputs(self, batch: np.ndarray, step_: int) -> Tensor:
        """The module's input of these samples, as step `step_` of this round sees them."""
        augment = None
        if self.terms.spec.augment is not None:
            augment = self.terms.generator("augment", self.round, self.number, step_)
        return self.terms.task.inputs(self.side.data.images[batch], self.terms.spec, self.terms.where, augment)

    def state(self) -> dict[str, Tensor]:
        """All that this device remembers from round to round."""
        return {
            **nest("senders", self.senders.state()),
            **nest("receivers", self.receivers.state()),
            **nest("adapters", {} if self.adapters is None else self.adapters.state()),
            **nest("adapter", self.adapter or {}),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        self.senders.restore(under("senders", state))
        self.receivers.restore(under("receivers", state))
        if self.adapters is not None and (memory := under("adapters", state)):
            self.adapters.restore(memory)
        self.adapter = under("adapter", state) or None

    def _next_batch(self) -> tuple[np.ndarray, tuple[int, int, int]]:
        """The next mini-batch of the round, and the names of its random streams: round, device, step."""
        if self._done >= len(self._batches):
            raise FrameError(f"device {self.number}: asked for a step after the last of round {self.round}")
        stream = (self.round, self.number, self._done)
        self._done += 1
        return self._batches[stream[-1]], stream

    def _labels(self, rows: np.ndarray) -> bytes:
        return encode_labels(torch.from_numpy(self.side.data.labels[rows]), self.terms.n_classes)

    def _module(self) -> nn.Module:
        if self.module is None:
            raise FrameError(f"device {self.number}: no round has begun")
        return self.module


def _number(message: Message, name: str) -> int | float:
    value = message.facts[name]
    if isinstance(value, tuple):
        raise FrameError(f"{message.verb!r}: {name} is one number; given: {value}")
    return value
