"""The server: keeps and averages adapters, and in split methods trains the blocks after the cut."""

from collections import Counter

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tsflora.compression import decode_labels
from tsflora.errors import FrameError
from tsflora.federation.setup import Setup
from tsflora.federation.training import check_finite, precision
from tsflora.models import Adapter, ServerPart, average, own_copy, read_adapter, set_adapter


class AdapterServer:
    """Federated averaging of adapters: hands one out, collects the trained ones, averages them by shard size."""

    def __init__(self, setup: Setup, adapter: Adapter) -> None:
        self.setup = setup
        self.adapter = adapter
        self.round = 0
        self._version = 0
        """Aggregations of this round so far: every adapter that is sent has its own random stream."""
        self._collected: dict[int, Adapter] = {}

    def begin_round(self, round_: int) -> None:
        """Name the round, for random streams and error messages."""
        self.round = round_
        self._version = 0

    def fetch_adapter(self, device: int) -> bytes:
        """The frame with the adapter that devices start from. One broadcast: every device gets the same bytes."""
        del device
        return self.setup.encode_adapter(self.adapter, "downlink", self.round, self._version)

    def push_adapter(self, device: int, frame: bytes) -> None:
        """Collect a trained adapter.

        Raises:
            FrameError: damaged bytes, other shapes than the adapter's, or NaN or infinity in it.
        """
        self._collected[device] = self.setup.decode_adapter(frame, self.adapter)

    def aggregate(self) -> None:
        """Replace the adapter by the mean of those collected, weighted by shard size."""
        weights = [float(len(self.setup.shards[device])) for device in self._collected]
        self.adapter = average(list(self._collected.values()), weights)
        self._collected.clear()
        self._version += 1

    def train_step(self, device: int, activations: bytes, labels: bytes) -> bytes:
        """Refused: this server trains no blocks."""
        del activations, labels
        raise FrameError(f"device {device} sent activations to a server that trains no blocks")

    def push_images(self, device: int, images: bytes, labels: bytes) -> None:
        """Refused: images stay on their devices."""
        del images, labels
        raise FrameError(f"device {device} sent images to a server that takes none")


class SplitServer(AdapterServer):
    """Adds the blocks after the cut: one shared server adapter, stepped at every batch that arrives (SplitFed-v2).

    With `copies`, each participant has its own server copy for the round, and the copies are averaged at its end
    (SplitFed-v1; arXiv 2004.12088).
    """

    def __init__(self, setup: Setup, adapter: Adapter, copies: bool = False) -> None:
        super().__init__(setup, adapter)
        self.part = own_copy(setup.server_part)
        self.optimizer = self._optimizer(self.part)
        self.loss = 0.0
        """Mean loss of the latest batch."""
        self._use_copies = copies
        self._copies: dict[int, tuple[ServerPart, torch.optim.Optimizer]] = {}
        self._steps: Counter[int] = Counter()

    def begin_round(self, round_: int) -> None:
        """See `AdapterServer`."""
        super().begin_round(round_)
        self._steps.clear()

    def train_step(self, device: int, activations: bytes, labels: bytes) -> bytes:
        """Forward, backward and step on one batch; answers with the gradient at the cut (Eq. 3).

        Raises:
            FrameError: a frame that is damaged, holds NaN or infinity, or does not fit this model.
            NumericsError: NaN or infinity in the loss or the gradient.
        """
        setup = self.setup
        tokens, targets = self._read(device, activations, labels)
        part, optimizer = self._part_for(device)
        with precision(setup.where, setup.training):
            logits = part(tokens)
        loss = cross_entropy(logits.float(), targets)
        check_finite(loss, "the loss", self.round, device)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        self.loss = loss.item()
        gradient = tokens.grad
        assert gradient is not None
        check_finite(gradient, "the gradient at the cut", self.round, device)
        self._steps[device] += 1
        generator = setup.generator("gradient", self.round, device, self._steps[device])
        return setup.gradient_codec.encode(gradient, generator)

    def end_round(self) -> None:
        """Average the server copies, where there are any."""
        if self._copies:
            weights = [float(len(self.setup.shards[device])) for device in self._copies]
            set_adapter(self.part, average([read_adapter(part) for part, _ in self._copies.values()], weights))
            self._copies.clear()

    def _read(self, device: int, activations: bytes, labels: bytes) -> tuple[Tensor, Tensor]:
        setup = self.setup
        tokens = setup.token_codec.decode(activations)
        targets = decode_labels(labels, setup.train.n_classes)
        dim = self.part.vit.embed_dim
        if tokens.ndim != 3 or tokens.shape[2] != dim or tokens.shape[0] != len(targets):
            raise FrameError(
                f"device {device} sent activations of shape {tuple(tokens.shape)} with {len(targets)} labels; "
                f"allowed: (batch, tokens, {dim}) with one label for each of the batch"
            )
        return tokens.to(setup.where).requires_grad_(), targets.to(setup.where)

    def _part_for(self, device: int) -> tuple[ServerPart, torch.optim.Optimizer]:
        if not self._use_copies:
            return self.part, self.optimizer
        if device not in self._copies:
            part = own_copy(self.part)
            self._copies[device] = part, self._optimizer(part)
        return self._copies[device]

    def _optimizer(self, part: ServerPart) -> torch.optim.Optimizer:
        return self.setup.training.optimizer.build(p for p in part.parameters() if p.requires_grad)
