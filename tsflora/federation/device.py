"""Edge devices. A split device runs the first blocks and talks frames; a whole device trains everything by itself."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.nn.functional import cross_entropy

from tsflora.compression import encode_labels
from tsflora.federation.exchange import Exchange
from tsflora.federation.setup import Setup
from tsflora.federation.training import check_finite, precision
from tsflora.models import Adapter, DevicePart, WholeModel, read_adapter, set_adapter


@dataclass(frozen=True)
class Step:
    """One optimiser step: its mean loss over `n_images`."""

    loss: float
    n_images: int


class SplitDevice:
    """A participant of one round. Its optimiser starts fresh: nothing but the adapter outlives a round.

    `part` is only lent for the round, so that a population of any size costs as many copies as there are participants.
    """

    def __init__(self, number: int, round_: int, setup: Setup, part: DevicePart) -> None:
        self.number = number
        self.round = round_
        self.setup = setup
        self.part = part
        self.optimizer = setup.training.optimizer.build(p for p in self.part.parameters() if p.requires_grad)
        self._batches = setup.batches(round_, number)
        self._done = 0

    @property
    def remaining(self) -> int:
        """Mini-batches of this round that are still to come."""
        return len(self._batches) - self._done

    @property
    def adapter(self) -> Adapter:
        """The adapter as it stands."""
        return read_adapter(self.part)

    def fetch_adapter(self, exchange: Exchange) -> None:
        """Start from the server's adapter."""
        set_adapter(self.part, self.setup.decode_adapter(exchange.fetch_adapter(self.number), self.adapter))

    def push_adapter(self, exchange: Exchange) -> None:
        """Hand the trained adapter in."""
        adapter = self.adapter
        check_adapter(adapter, self.round, self.number)
        frame = self.setup.encode_adapter(adapter, "uplink", self.round, self.number, self._done)
        exchange.push_adapter(self.number, frame)

    def train_step(self, exchange: Exchange) -> int:
        """One mini-batch: forward, compress, upload; then the gradient's way back. Returns its number of images."""
        setup, codec = self.setup, self.setup.token_codec
        stream = (self.round, self.number, self._done)
        batch: np.ndarray = self._batches[self._done]
        self._done += 1
        images, labels = setup.inputs(batch, *stream)
        with precision(setup.where, setup.training):
            activations, cls_attention = self.part(images)
        activations = activations.float()
        check_finite(activations, "the activations", self.round, self.number)
        reduced = codec.reduce(activations, cls_attention, setup.generator("tokens", *stream))
        frame = codec.encode(reduced.tokens.detach(), setup.generator("quantizer", *stream))
        reply = exchange.train_step(self.number, frame, encode_labels(labels.cpu(), setup.train.n_classes))
        gradient = setup.gradient_codec.decode(reply, tuple(reduced.tokens.shape)).to(setup.where)
        check_finite(gradient, "the returned gradient", self.round, self.number)
        self.optimizer.zero_grad()
        # Straight through the quantiser; the chain rule through selection and merge is autograd's.
        reduced.tokens.backward(gradient)
        self.optimizer.step()
        return len(batch)


class WholeDevice:
    """A participant that fine-tunes the whole model on its own images (LocalLoRA, FedLoRA)."""

    def __init__(self, number: int, round_: int, setup: Setup, model: WholeModel, adapter: Adapter) -> None:
        self.number = number
        self.round = round_
        self.setup = setup
        self.model = model
        set_adapter(model, adapter)
        self.optimizer = setup.training.optimizer.build(p for p in model.parameters() if p.requires_grad)

    @property
    def adapter(self) -> Adapter:
        """The adapter as it stands."""
        return read_adapter(self.model)

    def train(self) -> Iterator[Step]:
        """This round's local epochs, step by step."""
        for number, batch in enumerate(self.setup.batches(self.round, self.number)):
            images, labels = self.setup.inputs(batch, self.round, self.number, number)
            with precision(self.setup.where, self.setup.training):
                logits = self.model(images)
            loss = cross_entropy(logits.float(), labels)
            check_finite(loss, "the loss", self.round, self.number)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            yield Step(loss.item(), len(batch))
        check_adapter(self.adapter, self.round, self.number)


def check_adapter(adapter: Adapter, round_: int, device: int) -> None:
    """Stop on NaN or infinity in an adapter (see `check_finite`)."""
    for name, tensor in adapter.items():
        check_finite(tensor, f"the adapter's {name}", round_, device)
