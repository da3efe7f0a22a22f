"""Central training on samples that devices hand over: the baseline that gives privacy up."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from tsflora.compression import AdapterCodec, Codec, GradientCodec, JpegImages, RawImages, decode_labels
from tsflora.errors import FrameError
from tsflora.federation.algorithm import Algorithm, algorithms
from tsflora.federation.evaluation import Mean
from tsflora.federation.link import Fleet, Message
from tsflora.federation.plan import Plan
from tsflora.federation.rounds import Run, Step
from tsflora.federation.schedulers import Scheduler
from tsflora.federation.sides import ServerSide
from tsflora.federation.state import nest, optimizer_tensors, restore_optimizer, under
from tsflora.federation.training import check_finite, minibatches, precision, step, turns
from tsflora.models import Adapter, WholeModel, own_copy, read_adapter, set_adapter


@algorithms.register
class Central(Algorithm):
    """Devices hand their images over and the server trains the whole model: what split learning is measured against.

    A context baseline that the paper leaves out: no privacy, and each image travels once. `image` is `raw` (one byte
    per channel and pixel) or `jpeg` at `quality`, in which case training and judging see the decoded JPEG.
    """

    name = "central"
    image: Literal["raw", "jpeg"] = "raw"
    quality: int = Field(default=75, ge=1, le=95)
    """JPEG only."""

    @override
    def plan(self, codec: Codec, gradient: GradientCodec, adapter: AdapterCodec) -> Plan:
        images = RawImages() if self.image == "raw" else JpegImages(quality=self.quality)
        return Plan(runs="nothing", uploads="samples", images=images)

    @override
    def start(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> Run:
        return CentralRun(side, fleet, scheduler)


class CentralRun(Run):
    """Each device uploads its shard when it first takes part; batches follow in the order of interleaved SFLora."""

    def __init__(self, side: ServerSide, fleet: Fleet, scheduler: Scheduler) -> None:
        super().__init__(side, fleet, scheduler)
        self.model = WholeModel(own_copy(side.front), own_copy(side.back))
        self.optimizer = self.terms.training.optimizer.build(p for p in self.model.parameters() if p.requires_grad)
        self.images: dict[int, np.ndarray] = {}
        self.labels: dict[int, np.ndarray] = {}

    def train(self, round_: int, plans: Mapping[int, Plan]) -> Iterator[Step]:
        """See `Run`."""
        for device in plans:
            if device not in self.images:
                self.receive(device)
        participants, names = list(plans), (self.terms.dataset, self.terms.seed)
        batches = [list(enumerate(self._rows(device, round_))) for device in participants]
        for index in turns([len(own) for own in batches], "interleaved", *names, round_):
            number, rows = batches[index].pop(0)
            yield self.step(participants[index], rows, round_, number)

    def receive(self, device: int) -> None:
        """Ask a device for its shard, and keep it.

        Raises:
            FrameError: damaged frames, or not one label for each image.
        """
        codec = self.terms.plan.images
        assert codec is not None
        answer = self.fleet.link(device).send(Message("upload")).result()
        try:
            images, labels = answer.frames["images"], answer.frames["labels"]
        except KeyError as error:
            raise FrameError(f"device {device} sent no {error}") from None
        targets = decode_labels(labels, self.terms.n_classes)
        self.images[device] = codec.decode(images, (len(targets), *self.side.test.images.shape[1:]))
        self.labels[device] = targets.numpy()

    def step(self, device: int, rows: np.ndarray, round_: int, number: int) -> Step:
        """One optimiser step on these images of the device's shard, as step `number` of its round."""
        terms = self.terms
        augment = None if terms.spec.augment is None else terms.generator("augment", round_, device, number)
        inputs = terms.task.inputs(self.images[device][rows], terms.spec, terms.where, augment)
        with precision(terms.where, terms.training):
            outputs = self.model(inputs)
        loss = terms.task.loss(outputs, terms.task.targets(self.labels[device][rows], terms.where))
        check_finite(loss, "the loss", round_, device)
        self.optimizer.zero_grad()
        loss.backward()
        step(self.optimizer, terms.training)
        return Step(device, loss.item(), len(rows))

    def _rows(self, device: int, round_: int) -> list[np.ndarray]:
        """This round's mini-batches as rows of the device's shard: the batches that the device itself would make."""
        names = (self.terms.dataset, self.terms.seed, round_, device)
        return list(minibatches(np.arange(len(self.labels[device])), self.terms.training, *names))

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """The metric on test images as the codec delivers them, and as they are."""
        terms, test, codec = self.terms, self.side.test, self.terms.plan.images
        assert codec is not None
        on, off = Mean(terms), Mean(terms)
        for start in range(0, len(test), terms.training.batch_size):
            rows = slice(start, start + terms.training.batch_size)
            targets = terms.task.targets(test.labels[rows], terms.where)
            for mean, images in ((off, test.images[rows]), (on, codec.forward(test.images[rows]))):
                with precision(terms.where, terms.training):
                    outputs = self.model(terms.task.inputs(images, terms.spec, terms.where))
                mean.add(outputs, targets)
        return on.value, off.value

    def judged(self) -> Sequence[Adapter]:
        """See `Run`."""
        return [read_adapter(self.model)]

    def server_state(self) -> dict[str, Tensor]:
        """See `Run`; devices are asked for their images again, so only whose they are is kept."""
        return {
            **nest("adapter", read_adapter(self.model)),
            **nest("optimizer", optimizer_tensors(self.optimizer)),
            "received": torch.tensor(sorted(self.images), dtype=torch.int64),
        }

    def restore_server(self, state: Mapping[str, Tensor]) -> None:
        """See `Run`. What devices send again is not counted: a run that was not stopped would not have asked."""
        set_adapter(self.model, under("adapter", state))
        restore_optimizer(self.optimizer, under("optimizer", state))
        for device in state["received"].tolist():
            self.receive(device)
