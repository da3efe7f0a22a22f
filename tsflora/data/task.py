"""What a sample is, what a model shall make of it, and how a model is judged on it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, SerializeAsAny
from torch import Tensor
from torch.nn.functional import cross_entropy
from typing_extensions import override

from tsflora.config import Component, Registry
from tsflora.data.transforms import AugmentConfig, to_input


@dataclass(frozen=True)
class InputSpec:
    """How samples become a model's input; the backbone says most of it."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augment: AugmentConfig | None = None
    """Of training samples; None: they are seen as they are."""


class Task(Component, ABC):
    """What a sample is and how a model is judged on it."""

    metric: ClassVar[str]
    """What `score` measures, as reports name it."""

    @abstractmethod
    def inputs(
        self, samples: np.ndarray, spec: InputSpec, device: torch.device, augment: torch.Generator | None = None
    ) -> Tensor:
        """A model's input of these samples, augmented from the stream `augment` where the spec says so."""

    @abstractmethod
    def targets(self, labels: np.ndarray, device: torch.device) -> Tensor:
        """What the model shall put out, from labels as a data set holds them."""

    @abstractmethod
    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar that training makes small: a mean over the batch."""

    @abstractmethod
    def score(self, outputs: Tensor, targets: Tensor) -> tuple[float, int]:
        """The metric summed over a batch, and over how many it is a mean."""


tasks = Registry[Task]("task", "tsflora.tasks", Task)

AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(tasks.build)]


@tasks.register
class ImageClassification(Task):
    """One class for each image: cross entropy, and top-1 accuracy."""

    name = "image_classification"
    metric = "accuracy"

    @override
    def inputs(
        self, samples: np.ndarray, spec: InputSpec, device: torch.device, augment: torch.Generator | None = None
    ) -> Tensor:
        return to_input(
            samples,
            spec.image_size,
            spec.mean,
            spec.std,
            device,
            spec.augment if augment is not None else None,
            augment,
        )

    @override
    def targets(self, labels: np.ndarray, device: torch.device) -> Int[Tensor, " batch"]:
        return torch.from_numpy(labels).to(device)

    @override
    def loss(self, outputs: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]) -> Tensor:
        return cross_entropy(outputs.float(), targets)

    @override
    def score(self, outputs: Float[Tensor, "batch classes"], targets: Int[Tensor, " batch"]) -> tuple[float, int]:
        return float((outputs.argmax(-1) == targets).sum()), len(targets)
