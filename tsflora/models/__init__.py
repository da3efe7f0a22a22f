"""Backbones from timm, LoRA adapters from peft, and the cut between device and server."""

from tsflora.models import torchvision_fallback  # noqa: F401  (before anything imports timm)
from tsflora.models.adapters import Adapter, LoraConfig, add_lora, average, own_copy, read_adapter, set_adapter
from tsflora.models.backbones import Backbone, BackboneConfig, load_backbone
from tsflora.models.split import Back, Front, WholeModel, split, unsplit_names

__all__ = [
    "Adapter",
    "Back",
    "Backbone",
    "BackboneConfig",
    "Front",
    "LoraConfig",
    "WholeModel",
    "add_lora",
    "average",
    "load_backbone",
    "own_copy",
    "read_adapter",
    "set_adapter",
    "split",
    "unsplit_names",
]
