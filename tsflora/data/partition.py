"""Who holds which images: a training set divided over devices."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int64
from pydantic import Field, model_validator

from tsflora.config import Component, Registry
from tsflora.errors import ConfigError
from tsflora.seeding import numpy_generator

Shards = list[Int64[np.ndarray, "_"]]


class Partition(Component):
    """A rule that divides images over devices; a subclass says how (`assign`)."""

    min_samples: int | None = Field(default=None, gt=0)
    """Fewest images of a device; given together with `max_samples`, or not at all."""
    max_samples: int | None = Field(default=None, gt=0)
    """Most images of a device, at most as many as there are. Between the two a size is drawn for each device; equal,
    they fix it."""

    @model_validator(mode="after")
    def _bounds_come_together(self) -> "Partition":
        low, high = self.min_samples, self.max_samples
        if (low is None) != (high is None):
            raise ValueError("min_samples and max_samples must be given together")
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_samples {low} is more than max_samples {high}")
        return self

    @abstractmethod
    def assign(
        self, labels: Int[np.ndarray, " n"], n_devices: int, generator: np.random.Generator
    ) -> Sequence[Int64[np.ndarray, "_"]]:
        """Disjoint index arrays, one per device; an empty one is repaired by the caller.

        Raises:
            ConfigError: the rule cannot serve that many devices.
        """

    def split(self, labels: Int[np.ndarray, " n"], n_devices: int, seed: int, dataset: str) -> Shards:
        """Index arrays, one per device, each sorted; the same for the same arguments.

        Devices never share an image and none is empty. With size bounds a device is then sub-sampled, or padded by
        images of its own drawn with replacement, to a size uniform in min_samples..max_samples (as in the SFLAM code,
        arXiv 2504.09114), so that an index can occur more than once within a device.

        Raises:
            ConfigError: no devices, more devices or larger ones than there are images, or a rule that cannot serve
                that many.
        """
        if not 1 <= n_devices <= len(labels):
            raise ConfigError(f"n_devices: {n_devices} devices for {len(labels)} images; allowed: 1 to {len(labels)}")
        if self.max_samples is not None and self.max_samples > len(labels):
            raise ConfigError(
                f"max_samples: {self.max_samples} images on a device, where {dataset} has {len(labels)} in all; "
                f"allowed: 1 to {len(labels)}"
            )
        names = ("partition", dataset, seed)
        shards = _without_empty(list(self.assign(labels, n_devices, numpy_generator(*names, self.name))))
        if self.min_samples is not None and self.max_samples is not None:
            generator = numpy_generator(*names, "sizes")
            sizes = generator.integers(self.min_samples, self.max_samples, size=n_devices, endpoint=True)
            shards = [_resize(shard, int(size), generator) for shard, size in zip(shards, sizes, strict=True)]
        return [np.sort(shard) for shard in shards]


partitions = Registry[Partition]("partition", "tsflora.partitions", Partition)


@partitions.register
class Iid(Partition):
    """Images dealt at random in equal shares."""

    name = "iid"

    def assign(self, labels: Int[np.ndarray, " n"], n_devices: int, generator: np.random.Generator) -> Shards:
        """Random shares whose sizes differ by one at most."""
        return np.array_split(generator.permutation(len(labels)), n_devices)


@partitions.register
class Dirichlet(Partition):
    """Label skew: each class is divided over devices in proportions from Dir(alpha, ..., alpha) (arXiv 1909.06335).

    Small `alpha` means few classes per device; large `alpha` approaches IID.
    """

    name = "dirichlet"

    alpha: float = Field(default=0.5, gt=0, allow_inf_nan=False)

    def assign(self, labels: Int[np.ndarray, " n"], n_devices: int, generator: np.random.Generator) -> Shards:
        """Per class: shuffle, draw proportions, cut at their cumulative sums."""
        parts: list[list[np.ndarray]] = [[] for _ in range(n_devices)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(n_devices, self.alpha))
            cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for device, part in enumerate(np.split(members, cuts)):
                parts[device].append(part)
        return [generator.permutation(np.concatenate(device)) for device in parts]


@partitions.register
class LabelShards(Partition):
    """The pathological split of FedAvg (McMahan et al., arXiv 1602.05629): sort by label, cut, deal pieces."""

    name = "shards"

    shards_per_device: int = Field(default=2, gt=0)

    def assign(self, labels: Int[np.ndarray, " n"], n_devices: int, generator: np.random.Generator) -> Shards:
        """`shards_per_device` random pieces of the label-sorted order (random within a label) for each device."""
        n_pieces = n_devices * self.shards_per_device
        if n_pieces > len(labels):
            raise ConfigError(
                f"shards_per_device: {n_devices} devices x {self.shards_per_device} shards is {n_pieces}, "
                f"more than the {len(labels)} images"
            )
        shuffled = generator.permutation(len(labels))
        pieces = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], n_pieces)
        dealt = generator.permutation(n_pieces).reshape(n_devices, self.shards_per_device)
        return [np.concatenate([pieces[piece] for piece in device]) for device in dealt]


def _without_empty(shards: Shards) -> Shards:
    # Half of the largest shard, in the random order it comes in: the device gets the label skew of its donor, where a
    # single image would be padded to hundreds of copies, and drawing again might never end at small alpha.
    for device, shard in enumerate(shards):
        if not len(shard):
            donor = max(range(len(shards)), key=lambda other: len(shards[other]))
            kept, given = np.array_split(shards[donor], 2)
            shards[donor], shards[device] = kept, given
    return shards


def _resize(shard: Int64[np.ndarray, " k"], size: int, generator: np.random.Generator) -> Int64[np.ndarray, " size"]:
    if size <= len(shard):
        return generator.choice(shard, size, replace=False)
    return np.concatenate([shard, generator.choice(shard, size - len(shard))])


def label_counts(
    labels: Int[np.ndarray, " n"], shards: Sequence[Int[np.ndarray, "_"]], n_classes: int
) -> Int64[np.ndarray, "devices classes"]:
    """How many images of each class each device holds, repeats included."""
    return np.stack([np.bincount(labels[shard], minlength=n_classes) for shard in shards])
