"""What is deployed: a model's shape and cut, the plan, and one device's work in a round. No weights."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from pydantic import Field

from tsflora.analysis.costs.shape import VitShape
from tsflora.config import Config
from tsflora.errors import ConfigError
from tsflora.federation import Plan
from tsflora.models import LoraConfig
from tsflora.planned import MethodConfig, run_of
from tsflora.records import RunRecord


class MeasuredError(ConfigError):
    """A cost that depends on the data, so that only a run's record has it."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} depends on the data; it is measured in a run's record")


class Workload(Config):
    """What one device does in one round. Defaults: what arithmetic on Table I of arXiv 2605.23988 gives."""

    n_samples: int = Field(default=400, ge=1)
    batch_size: int = Field(default=64, ge=1)
    local_epochs: int = Field(default=1, ge=1)

    @property
    def batches(self) -> tuple[int, ...]:
        """Sizes of the mini-batches, in order; the last of an epoch may be smaller."""
        n_full, rest = divmod(self.n_samples, self.batch_size)
        return ((self.batch_size,) * n_full + ((rest,) if rest else ())) * self.local_epochs


def plan_of(algorithm: str, **options: object) -> Plan:
    """The plan of a method that is named by its algorithm; `options` are those of `MethodConfig`.

    Raises:
        ConfigError: an option that the method does not have.
    """
    return MethodConfig.parse({"algorithm": algorithm, **options}, "method").plan


@dataclass(frozen=True)
class Deployment:
    """One plan on one model with one device's work: all that traffic, compute and memory depend on.

    Raises:
        ConfigError: a cut or a token count that the model does not have.
    """

    vit: VitShape
    plan: Plan = field(default_factory=lambda: plan_of("sflora"))
    """What a device does in a round; by default all tokens travel in full floats, and so do gradient and adapter."""
    cut: int = 2
    """The front is the embedding and blocks 1..cut."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    workload: Workload = field(default_factory=Workload)

    def __post_init__(self) -> None:
        if not 1 <= self.cut < self.vit.n_blocks:
            raise ConfigError(
                f"cut: given {self.cut}; allowed with the {self.vit.n_blocks} blocks of "
                f"{self.vit.backbone}: 1 to {self.vit.n_blocks - 1}"
            )
        if self.plan.codec is not None:
            self.plan.codec.n_transmitted(self.vit.n_patches)
        if self.plan.merging is not None:
            self.plan.merging.n_tokens(self.vit.n_patches, self.cut)

    @classmethod
    def of(
        cls, method: MethodConfig, vit: VitShape, lora: LoraConfig, cut: int, workload: Workload | None = None
    ) -> "Deployment":
        """A study's method on a backbone, as its own plan has it; the method's own cut wins over `cut`."""
        return cls(vit, method.plan, method.cut or cut, lora, workload or Workload())

    @classmethod
    def of_run(cls, record: RunRecord) -> "Deployment":
        """What a run was: its model, cut and plan, and a device's mean work in a round.

        Raises:
            ConfigError: a failed run, or one whose configuration is no longer valid.
        """
        cell, geometry = run_of(record), record.geometry
        if geometry is None:
            raise ConfigError(f"{record.method}: the run failed, so nothing was deployed")
        device_rounds = sum(len(entry.participants) for entry in record.history)
        seen = sum(entry.n_samples for entry in record.history) / max(device_rounds, 1) / cell.training.local_epochs
        workload = Workload(
            n_samples=max(round(seen), 1),
            batch_size=cell.training.batch_size,
            local_epochs=cell.training.local_epochs,
        )
        vit = VitShape.of(cell.backbone.name, geometry.n_classes, cell.backbone.image_size)
        return cls.of(cell.method, vit, cell.lora, cell.cut, workload)

    @property
    def n_tokens(self) -> int:
        """Tokens of each sequence behind the cut.

        Raises:
            MeasuredError: their number differs by sample, or tokens are merged before it.
        """
        self.refuse_merging("the number of tokens")
        codec = self.plan.codec
        n_tokens = self.vit.n_patches + 1 if codec is None else codec.n_transmitted(self.vit.n_patches)
        if n_tokens is None:
            raise MeasuredError("the number of tokens")
        return n_tokens

    def refuse_merging(self, what: str) -> None:
        """No cost model follows tokens that are merged inside blocks, by whatever rule.

        Raises:
            MeasuredError: the plan merges; `what` is asked for.
        """
        if self.plan.merging is not None:
            raise MeasuredError(f"{what} with merging {self.plan.merging.name!r}")

    @property
    def device_blocks(self) -> int:
        """Blocks that the device runs."""
        return {"nothing": 0, "front": self.cut, "everything": self.vit.n_blocks}[self.plan.runs]

    @property
    def server_blocks(self) -> int:
        """Blocks that the server runs, and trains, on what the device uploads."""
        uploads = self.plan.uploads
        return {"nothing": 0, "tokens": self.vit.n_blocks - self.cut, "samples": self.vit.n_blocks}[uploads]

    @property
    def lora_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the layers of a block that carry LoRA.

        Raises:
            ConfigError: a target that no block has.
        """
        layers = self.vit.linear_layers
        for target in self.lora.targets:
            if target not in layers:
                raise ConfigError(f"lora.targets: given {target!r}; allowed: {', '.join(layers)}")
        return {name: sizes for name, sizes in layers.items() if name in self.lora.targets}

    @property
    def lora_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the LoRA factors that a device trains, A (r x in) and B (out x r)."""
        return self._factors(self.device_blocks) if self.plan.trains else []

    @property
    def adapter_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of the adapter that a device trains: LoRA factors, and the head where it has one."""
        return self.lora_shapes + (self._head if self.plan.runs == "everything" else [])

    @property
    def adapter_entries(self) -> int:
        """Trained numbers on a device."""
        return entries(self.adapter_shapes)

    @property
    def front_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the LoRA factors before the cut, whoever trains them."""
        return self._factors(self.cut)

    @property
    def back_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the LoRA factors behind the cut, and of the head."""
        return self._factors(self.vit.n_blocks - self.cut) + self._head

    @property
    def _head(self) -> list[tuple[int, ...]]:
        return [(self.vit.n_classes,), (self.vit.n_classes, self.vit.dim)]

    def _factors(self, n_blocks: int) -> list[tuple[int, ...]]:
        rank = self.lora.rank
        block: list[tuple[int, ...]] = []
        for inputs, outputs in self.lora_layers.values():
            block += [(rank, inputs), (outputs, rank)]
        return block * n_blocks


def entries(shapes: Iterable[tuple[int, ...]]) -> int:
    """Numbers in tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)
