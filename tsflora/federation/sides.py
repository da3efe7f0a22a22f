"""What both ends know before a run starts, what the devices have, and what the server has. Nothing here changes."""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from tsflora.compression import Draw
from tsflora.data import ImageSet, InputSpec, Task
from tsflora.federation.plan import Plan
from tsflora.federation.training import TrainingConfig
from tsflora.models import Back, Front
from tsflora.seeding import torch_generator


@dataclass(frozen=True)
class Terms:
    """What device and server agreed on before the first round."""

    dataset: str
    seed: int
    n_classes: int
    n_patches: int
    """Patch tokens of a sample; CLS comes on top."""
    dim: int
    """Width of a token."""
    task: Task
    spec: InputSpec
    training: TrainingConfig
    plan: Plan
    """The method's own; a scheduler may give a device another one for a round."""
    where: torch.device
    """What computes, at this end."""

    def generator(self, *names: object) -> torch.Generator:
        """The random stream called `names` in this data set and seed, on the compute device."""
        return torch_generator(*names, self.dataset, self.seed, device=self.where)

    def draw(self, *names: object) -> Draw:
        """Random streams by what they are for, of this device, round and step."""
        return lambda purpose: self.generator(purpose, *names)


@dataclass(frozen=True)
class DeviceSide:
    """What the devices of a population have: each its shard, and all of them the same frozen module."""

    terms: Terms
    data: ImageSet
    shards: tuple[np.ndarray, ...]
    """Indices into `data`, one array per device."""
    module: nn.Module = field(repr=False)
    """The front, or the whole model, with the adapter that everybody starts from; a template, never trained itself."""


@dataclass(frozen=True)
class ServerSide:
    """What the server has, and what the benchmark judges with."""

    terms: Terms
    front: Front = field(repr=False)
    """To judge with, and for the adapter that everybody starts from; a template."""
    back: Back = field(repr=False)
    """A template."""
    test: ImageSet
