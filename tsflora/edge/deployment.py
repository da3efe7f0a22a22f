"""What is deployed: a model's shape and cut, the method, and one device's work in a round. No weights."""

import math
from dataclasses import dataclass, field

from pydantic import Field

from tsflora.compression import Quantizer, TokenReducer, quantizers, token_reducers
from tsflora.config import Config
from tsflora.edge.shape import VitShape
from tsflora.errors import ConfigError
from tsflora.experiment import MethodConfig
from tsflora.models import LoraConfig, Placement


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


@dataclass(frozen=True)
class Deployment:
    """One method on one model with one device's work: all that traffic, compute and memory depend on.

    Raises:
        ConfigError: a cut or a token count that the model does not have.
    """

    vit: VitShape
    placement: Placement = "split"
    cut: int = 2
    """The device runs the embedding and blocks 1..cut."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    workload: Workload = field(default_factory=Workload)
    tokens: TokenReducer = field(default_factory=lambda: token_reducers.build("all"))
    quantizer: Quantizer = field(default_factory=lambda: quantizers.build("float32"))
    gradient_quantizer: Quantizer = field(default_factory=lambda: quantizers.build("float32"))
    adapter_quantizer: Quantizer = field(default_factory=lambda: quantizers.build("float32"))

    def __post_init__(self) -> None:
        if not 1 <= self.cut < self.vit.n_blocks:
            raise ConfigError(
                f"cut: given {self.cut}; allowed with the {self.vit.n_blocks} blocks of "
                f"{self.vit.backbone}: 1 to {self.vit.n_blocks - 1}"
            )
        self.tokens.n_transmitted(self.vit.n_patches)

    @classmethod
    def of(
        cls, method: MethodConfig, vit: VitShape, lora: LoraConfig, cut: int, workload: Workload | None = None
    ) -> "Deployment":
        """A study's method on a backbone; the method's own cut wins over `cut`."""
        return cls(
            vit=vit,
            placement=method.algorithm.placement,
            cut=method.cut or cut,
            lora=lora,
            workload=workload or Workload(),
            tokens=method.tokens,
            quantizer=method.quantizer,
            gradient_quantizer=method.gradient_quantizer,
            adapter_quantizer=method.adapter_quantizer,
        )

    @property
    def n_tokens(self) -> int:
        """Tokens on the server's side of the cut."""
        return self.tokens.n_transmitted(self.vit.n_patches)

    @property
    def device_blocks(self) -> int:
        """Blocks that the device trains."""
        return {"local": self.vit.n_blocks, "federated": self.vit.n_blocks, "split": self.cut, "central": 0}[
            self.placement
        ]

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
        rank = self.lora.rank
        block: list[tuple[int, ...]] = []
        for inputs, outputs in self.lora_layers.values():
            block += [(rank, inputs), (outputs, rank)]
        return block * self.device_blocks

    @property
    def adapter_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of the adapter that a device trains: LoRA factors, and the head where it has one."""
        vit = self.vit
        head = [(vit.n_classes,), (vit.n_classes, vit.dim)] if self.device_blocks == vit.n_blocks else []
        return self.lora_shapes + head

    @property
    def adapter_entries(self) -> int:
        """Trained numbers on a device."""
        return sum(math.prod(shape) for shape in self.adapter_shapes)
