"""What the server works with: the adapters that it hands out and averages, and the blocks after the cut."""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor

from tsflora.compression import (
    AdapterCodec,
    AdapterEnd,
    Codec,
    GradientCodec,
    GradientSender,
    Receiver,
    Tokens,
    codecs,
    decode_labels,
    gradient_codecs,
)
from tsflora.errors import FrameError
from tsflora.federation.ends import Ends
from tsflora.federation.plan import Plan
from tsflora.federation.sides import ServerSide, Terms
from tsflora.federation.state import nest, optimizer_tensors, restore_optimizer, under
from tsflora.federation.training import check_finite, precision, step
from tsflora.models import Adapter, Back, average, own_copy, read_adapter, set_adapter


class Adapters:
    """Federated averaging of adapters: publishes one, collects the trained ones, averages them by shard size."""

    def __init__(self, terms: Terms, codec: AdapterCodec, initial: Adapter) -> None:
        self.terms = terms
        self.codec = codec
        self.initial = initial
        self.adapter = initial
        self.round = 0
        self._version = 0
        """Aggregations of this round so far: every adapter that is sent has its own random stream."""
        self._ends: dict[int, AdapterEnd] = {}
        self._collected: dict[int, tuple[Adapter, int]] = {}

    def begin_round(self, round_: int) -> None:
        """Name the round, for random streams."""
        self.round = round_
        self._version = 0

    def publish(self, device: int) -> bytes:
        """The frame with the adapter that this device goes on from."""
        generator = self.terms.generator("adapter", "downlink", self.round, self._version)
        return self._end(device).publish(self.adapter, generator)

    def collect(self, device: int, frame: bytes, n_samples: int) -> None:
        """Take a trained adapter in; it counts by the size of its device's shard.

        Raises:
            FrameError: damaged bytes, other shapes than the adapter's, or NaN or infinity in it.
        """
        adapter = self._end(device).collect(frame)
        self._collected[device] = {name: tensor.to(self.terms.where) for name, tensor in adapter.items()}, n_samples

    def aggregate(self) -> None:
        """Replace the adapter by the weighted mean of those collected, if there are any."""
        if self._collected:
            adapters, weights = zip(*self._collected.values(), strict=True)
            self.adapter = average(adapters, [float(weight) for weight in weights])
            self._collected.clear()
        self._version += 1

    def _end(self, device: int) -> AdapterEnd:
        if device not in self._ends:
            self._ends[device] = self.codec.end(self.initial)
        return self._ends[device]

    def state(self) -> dict[str, Tensor]:
        """The adapter, and what the ends of devices remember."""
        ends = [nest(f"end.{device}", end.state()) for device, end in self._ends.items()]
        return {**nest("adapter", self.adapter), **{name: tensor for part in ends for name, tensor in part.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        self.adapter = under("adapter", state)
        memories = under("end", state)
        for device in sorted({int(name.split(".", 1)[0]) for name in memories}):
            self._end(device).restore(under(str(device), memories))


class SplitServer:
    """The blocks after the cut: one shared adapter, stepped at every batch that arrives (SplitFed-v2).

    With `copies`, each participant has its own server copy for the round, and the copies are averaged at its end
    (SplitFed-v1; arXiv 2004.12088).
    """

    def __init__(self, side: ServerSide, copies: bool = False) -> None:
        self.terms = side.terms
        self.back = own_copy(side.back)
        self.optimizer = self._optimizer(self.back)
        n_patches = side.terms.n_patches
        self.receivers: Ends[Codec, Receiver] = Ends(codecs, lambda codec: codec.receiver(n_patches))
        self.senders: Ends[GradientCodec, GradientSender] = Ends(gradient_codecs, lambda codec: codec.sender())
        self.round = 0
        self._use_copies = copies
        self._copies: dict[int, tuple[Back, torch.optim.Optimizer, int]] = {}
        self._steps: Counter[int] = Counter()

    def begin_round(self, round_: int) -> None:
        """Name the round, for random streams and error messages."""
        self.round = round_
        self._steps.clear()

    def news(self, plan: Plan) -> bytes | None:
        """What a device under this plan is told at the start of a round."""
        return None if plan.codec is None else self.receivers.of(plan.codec).news()

    def step(self, device: int, n_samples: int, plan: Plan, frames: Mapping[str, bytes]) -> tuple[float, bytes | None]:
        """Forward, backward and step on one batch: the loss, and the frame with the gradient at the cut (Eq. 3).

        No gradient is computed, and none comes back, where the device's plan has none. `n_samples` is its shard's size.

        Raises:
            FrameError: a frame that is damaged, holds NaN or infinity, or does not fit this model.
            NumericsError: NaN or infinity in the loss or the gradient.
        """
        terms = self.terms
        received, targets = self._read(device, plan, frames)
        rows = received.rows().requires_grad_(plan.gradient is not None)
        back, optimizer = self._back_for(device, n_samples)
        with precision(terms.where, terms.training):
            outputs = back(received.like(rows))
        loss = terms.task.loss(outputs, targets)
        check_finite(loss, "the loss", self.round, device)
        optimizer.zero_grad()
        loss.backward()
        step(optimizer, terms.training)
        self._steps[device] += 1
        if plan.gradient is None:
            return loss.item(), None
        gradient = rows.grad
        assert gradient is not None
        check_finite(gradient, "the gradient at the cut", self.round, device)
        generator = terms.generator("gradient", self.round, device, self._steps[device])
        return loss.item(), self.senders.of(plan.gradient).send(gradient, device, generator)

    def end_round(self) -> None:
        """Average the server copies, where there are any."""
        if self._copies:
            backs, _, weights = zip(*self._copies.values(), strict=True)
            set_adapter(
                self.back, average([read_adapter(back) for back in backs], [float(weight) for weight in weights])
            )
            self._copies.clear()

    def state(self) -> dict[str, Tensor]:
        """All that outlives a round."""
        return {
            **nest("back", read_adapter(self.back)),
            **nest("optimizer", optimizer_tensors(self.optimizer)),
            **nest("receivers", self.receivers.state()),
            **nest("senders", self.senders.state()),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""
        set_adapter(self.back, under("back", state))
        restore_optimizer(self.optimizer, under("optimizer", state))
        self.receivers.restore(under("receivers", state))
        self.senders.restore(under("senders", state))

    def _read(self, device: int, plan: Plan, frames: Mapping[str, bytes]) -> tuple[Tokens, Tensor]:
        assert plan.codec is not None
        try:
            frame, labels = frames["tokens"], frames["labels"]
        except KeyError as error:
            raise FrameError(f"device {device} sent no {error}") from None
        tokens = self.receivers.of(plan.codec).receive(frame, device)
        targets = decode_labels(labels, self.terms.n_classes)
        dim, shape = self.back.vit.embed_dim, tuple(tokens.values.shape)
        if len(shape) != 3 or shape[2] != dim or shape[0] != len(targets):
            raise FrameError(
                f"device {device} sent activations of shape {shape} with {len(targets)} labels; "
                f"allowed: (batch, tokens, {dim}) with one label for each of the batch"
            )
        return tokens.to(self.terms.where), self.terms.task.targets(targets.numpy(), self.terms.where)

    def _back_for(self, device: int, n_samples: int) -> tuple[Back, torch.optim.Optimizer]:
        if not self._use_copies:
            return self.back, self.optimizer
        if device not in self._copies:
            back = own_copy(self.back)
            self._copies[device] = back, self._optimizer(back), n_samples
        return self._copies[device][:2]

    def _optimizer(self, back: Back) -> torch.optim.Optimizer:
        return self.terms.training.optimizer.build(p for p in back.parameters() if p.requires_grad)
