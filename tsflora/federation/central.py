"""Central training on images that devices hand over: the baseline that gives privacy up."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tsflora.compression import ImageCodec, decode_labels, encode_labels
from tsflora.errors import FrameError, NumericsError
from tsflora.federation.device import Step
from tsflora.federation.exchange import InProcessExchange
from tsflora.federation.runs import Run
from tsflora.federation.setup import Setup
from tsflora.federation.state import nest, optimizer_tensors, restore_optimizer, under
from tsflora.federation.training import check_finite, precision, turns
from tsflora.models import WholeModel, own_copy, read_adapter, set_adapter


class ImageServer:
    """Keeps what devices handed over and trains the whole model on it, with one optimiser all along."""

    def __init__(self, setup: Setup, codec: ImageCodec) -> None:
        self.setup = setup
        self.codec = codec
        self.model = WholeModel(own_copy(setup.device_part), own_copy(setup.server_part))
        self.optimizer = setup.training.optimizer.build(p for p in self.model.parameters() if p.requires_grad)
        self.images: dict[int, np.ndarray] = {}
        self.labels: dict[int, Tensor] = {}

    def push_images(self, device: int, images: bytes, labels: bytes) -> None:
        """Keep a device's shard.

        Raises:
            FrameError: damaged frames, or not as many images and labels as its shard has.
        """
        size = len(self.setup.shards[device])
        height, width, channels = self.setup.train.images.shape[1:]
        targets = decode_labels(labels, self.setup.train.n_classes)
        if len(targets) != size:
            raise FrameError(f"device {device} sent {len(targets)} labels; allowed: {size}, one for each of its images")
        self.images[device] = self.codec.decode(images, (size, height, width, channels))
        self.labels[device] = targets

    def train_step(self, device: int, activations: bytes, labels: bytes) -> bytes:
        """Refused: this server works on images."""
        del activations, labels
        raise FrameError(f"device {device} sent activations to a server that takes images")

    def fetch_adapter(self, device: int) -> bytes:
        """Refused: devices train nothing."""
        raise FrameError(f"device {device} asked for an adapter, but devices train nothing here")

    def push_adapter(self, device: int, frame: bytes) -> None:
        """Refused: devices train nothing."""
        del frame
        raise FrameError(f"device {device} sent an adapter, but devices train nothing here")

    def step(self, device: int, rows: np.ndarray, round_: int, number: int) -> Step:
        """One optimiser step on these images of the device's shard, as step `number` of its round."""
        inputs = self.setup.training_inputs(self.images[device][rows], round_, device, number)
        with precision(self.setup.where, self.setup.training):
            logits = self.model(inputs)
        loss = cross_entropy(logits.float(), self.labels[device][rows].to(self.setup.where))
        check_finite(loss, "the loss", round_, device)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return Step(loss.item(), len(rows))


class CentralRun(Run):
    """Each device uploads its shard when it first takes part; batches follow in the order of interleaved SFLora."""

    def __init__(self, setup: Setup, codec: ImageCodec) -> None:
        super().__init__(setup)
        self.codec = codec
        self.server = ImageServer(setup, codec)
        self.exchange = InProcessExchange(self.server)

    def train_round(self, round_: int, participants: Sequence[int]) -> Iterator[Step]:
        """See `Run`."""
        for device in participants:
            if device not in self.server.images:
                shard = self.setup.shards[device]
                labels = torch.from_numpy(self.setup.train.labels[shard])
                self.exchange.push_images(
                    device,
                    self.codec.encode(self.setup.train.images[shard]),
                    encode_labels(labels, self.setup.train.n_classes),
                )
        batches = [list(enumerate(self._rows(device, round_))) for device in participants]
        for index in turns([len(own) for own in batches], "interleaved", self.setup.dataset, self.setup.seed, round_):
            number, rows = batches[index].pop(0)
            yield self.server.step(participants[index], rows, round_, number)

    def _rows(self, device: int, round_: int) -> list[np.ndarray]:
        """This round's mini-batches as rows of the device's shard, which may hold an image twice (the same pixels)."""
        position = {index: row for row, index in enumerate(self.setup.shards[device].tolist())}
        return [np.array([position[i] for i in batch.tolist()]) for batch in self.setup.batches(round_, device)]

    def evaluate(self) -> tuple[float, float]:
        """Accuracy on test images as the codec delivers them, and as they are."""
        size, n_images = self.setup.training.batch_size, len(self.setup.test)
        correct_received = correct_original = 0
        for start in range(0, n_images, size):
            original = self.setup.test.images[start : start + size]
            targets = torch.from_numpy(self.setup.test.labels[start : start + size]).to(self.setup.where)
            received = self.codec.forward(original)
            correct_original += self._correct(original, targets)
            correct_received += self._correct(received, targets)
        return correct_received / n_images, correct_original / n_images

    @torch.no_grad()
    def _correct(self, images: np.ndarray, targets: Tensor) -> int:
        with precision(self.setup.where, self.setup.training):
            logits = self.server.model(self.setup.plain_inputs(images))
        if not bool(torch.isfinite(logits).all()):
            raise NumericsError("NaN or infinity in the test logits; a lower learning rate usually helps")
        return int((logits.argmax(-1) == targets).sum())

    def state(self) -> dict[str, Tensor]:
        """See `Run`; images are received anew from the shards, so only whose they are is kept."""
        return {
            **nest("adapter", read_adapter(self.server.model)),
            **nest("optimizer", optimizer_tensors(self.server.optimizer)),
            "received": torch.tensor(sorted(self.server.images), dtype=torch.int64),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`."""
        set_adapter(self.server.model, under("adapter", state))
        restore_optimizer(self.server.optimizer, under("optimizer", state))
        for device in state["received"].tolist():
            shard = self.setup.shards[device]
            self.server.images[device] = self.codec.forward(self.setup.train.images[shard])
            self.server.labels[device] = torch.from_numpy(self.setup.train.labels[shard])
