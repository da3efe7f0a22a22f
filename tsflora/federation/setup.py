"""What a run starts from: images and their shards, the two model parts, the codecs. Nothing here changes in a run."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tsflora.compression import TensorCodec, TokenCodec
from tsflora.data import AugmentConfig, ImageSet, to_input
from tsflora.federation.training import TrainingConfig, minibatches
from tsflora.models import Adapter, DevicePart, ServerPart
from tsflora.seeding import torch_generator


@dataclass(frozen=True)
class Setup:
    """Everything that the methods of one comparison share, plus the method's codecs."""

    dataset: str
    train: ImageSet
    test: ImageSet
    shards: tuple[np.ndarray, ...]
    """Indices into `train`, one array per device."""
    device_part: DevicePart
    """Template: every device starts as a copy of it."""
    server_part: ServerPart
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: AugmentConfig | None
    training: TrainingConfig
    seed: int
    where: torch.device
    token_codec: TokenCodec
    gradient_codec: TensorCodec
    adapter_codec: TensorCodec

    def batches(self, round_: int, device: int) -> list[np.ndarray]:
        """The device's mini-batches of this round, the same for every method."""
        return list(minibatches(self.shards[device], self.training, self.dataset, self.seed, round_, device))

    def inputs(self, batch: np.ndarray, round_: int, device: int, step: int) -> tuple[Tensor, Tensor]:
        """Augmented, normalised training images (B x 3 x S x S) and labels (B) of one mini-batch."""
        images = self.training_inputs(self.train.images[batch], round_, device, step)
        return images, torch.from_numpy(self.train.labels[batch]).to(self.where)

    def training_inputs(self, images: np.ndarray, round_: int, device: int, step: int) -> Tensor:
        """Augmented, normalised inputs (B x 3 x S x S) of these uint8 images, as this step of a device sees them."""
        augment = None if self.augment is None else self.generator("augment", round_, device, step)
        return to_input(images, self.image_size, self.mean, self.std, self.where, self.augment, augment)

    def test_inputs(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Normalised test images and labels, never augmented."""
        images = self.plain_inputs(self.test.images[rows])
        return images, torch.from_numpy(self.test.labels[rows]).to(self.where)

    def plain_inputs(self, images: np.ndarray) -> Tensor:
        """Normalised inputs of these uint8 images, not augmented."""
        return to_input(images, self.image_size, self.mean, self.std, self.where)

    def generator(self, *names: object) -> torch.Generator:
        """The random stream called `names` in this data set and seed, on the compute device."""
        return torch_generator(*names, self.dataset, self.seed, device=self.where)

    def encode_adapter(self, adapter: Adapter, *names: object) -> bytes:
        """One frame with the adapter's tensors in name order; their names do not travel."""
        return self.adapter_codec.encode_all(list(adapter.values()), self.generator("adapter", *names))

    def decode_adapter(self, frame: bytes, like: Adapter) -> Adapter:
        """The adapter in `frame`, which must have the tensors of `like`.

        Raises:
            FrameError: damaged bytes, or other shapes.
        """
        tensors = self.adapter_codec.decode_all(frame, [tuple(tensor.shape) for tensor in like.values()])
        return {name: tensor.to(self.where) for name, tensor in zip(like, tensors, strict=True)}
