"""LoRA adapters through peft: add them, read them, set them, average them.

An *adapter* is everything that is trained in a module, LoRA factors and the head alike, as tensors by name.
"""

import copy
import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from pydantic import Field
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tsflora.compression import Adapter
from tsflora.config import Config, did_you_mean
from tsflora.errors import ConfigError
from tsflora.seeding import torch_generator

if TYPE_CHECKING:
    from peft import LoraConfig as PeftLoraConfig

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class LoraConfig(Config):
    """Low-rank adapters on the linear layers of every block (Hu et al., arXiv 2106.09685)."""

    rank: int = Field(default=32, ge=1)
    alpha: int | None = Field(default=None, ge=1)
    """The update is scaled by alpha / rank; None means alpha = rank."""
    targets: tuple[str, ...] = Field(default=("qkv", "fc1", "fc2"), min_length=1)

    def for_peft(self, modules_to_save: Sequence[str] = ()) -> "PeftLoraConfig":
        """The same in peft's words. `modules_to_save` are modules that are trained whole."""
        # peft imports half of transformers, five seconds that validating a configuration or drawing a figure need not
        # wait.
        from peft import LoraConfig as PeftLoraConfig

        return PeftLoraConfig(
            r=self.rank,
            lora_alpha=self.rank if self.alpha is None else self.alpha,
            target_modules=rf"blocks\.\d+\.(.*\.)?({'|'.join(re.escape(target) for target in self.targets)})",
            modules_to_save=list(modules_to_save) or None,
        )


def add_lora(model: VisionTransformer, config: LoraConfig, seed: int) -> None:
    """Put LoRA on the target layers of `model.blocks` in place; only LoRA and `model.head` stay trainable.

    `A` is drawn Kaiming-uniform from `seed`, by layer name, so it does not depend on the cut; `B` starts at zero.

    Raises:
        ConfigError: a target that no block has, or a rank above every side of the layers.
    """
    linear = {
        name.rsplit(".", 1)[-1]: part for name, part in model.blocks.named_modules() if isinstance(part, nn.Linear)
    }
    for target in config.targets:
        if target not in linear:
            raise ConfigError(f"lora.targets: no block has a layer {target!r}; {did_you_mean(target, linear)}")
    longest = max(max(linear[target].in_features, linear[target].out_features) for target in config.targets)
    if config.rank > longest:
        raise ConfigError(f"lora.rank: {config.rank} is above every side of the target layers; allowed: 1 to {longest}")
    from peft import inject_adapter_in_model

    # peft draws its initial weights from torch's global stream; they are drawn again below, from a named one.
    with torch.random.fork_rng(devices=[]):
        inject_adapter_in_model(config.for_peft(), model)
    for name, parameter in model.named_parameters():
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5), generator=torch_generator("lora", name, seed))
        elif ".lora_B." in name:
            nn.init.zeros_(parameter)
        else:
            parameter.requires_grad_(name.startswith("head."))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of `module` by name, in the order in which they travel."""
    return {name: p for name, p in sorted(module.named_parameters()) if p.requires_grad}


def read_adapter(module: nn.Module) -> Adapter:
    """A copy of the module's adapter."""
    return {name: p.detach().clone() for name, p in trainable(module).items()}


@torch.no_grad()
def set_adapter(module: nn.Module, adapter: Mapping[str, Tensor]) -> None:
    """Copy `adapter` into the module, whose adapter must have exactly these names and shapes."""
    own = trainable(module)
    if own.keys() != adapter.keys():
        raise ValueError(f"adapter has other tensors than the module: {sorted(own.keys() ^ adapter.keys())[:3]}")
    for name, parameter in own.items():
        parameter.copy_(adapter[name])


def average(adapters: Sequence[Adapter], weights: Sequence[float]) -> Adapter:
    """Weighted mean, tensor by tensor (A and B factors separately; TSFLora, aggregation after Eq. 4)."""
    total = math.fsum(weights)
    mean: Adapter = {}
    for name in adapters[0]:
        mean[name] = sum(
            (adapter[name] * (weight / total) for adapter, weight in zip(adapters, weights, strict=True)),
            start=torch.zeros_like(adapters[0][name]),
        )
    return mean


def own_copy(module: ModuleT) -> ModuleT:
    """A copy with its own adapter that shares the frozen tensors, so that fifty devices cost one backbone."""
    shared = {id(p): p for p in module.parameters() if not p.requires_grad}
    return copy.deepcopy(module, memo=shared)
