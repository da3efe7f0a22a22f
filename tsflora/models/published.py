"""A fine-tuned backbone as others load it: timm's state dict, or peft's adapter.

Both are made of one peft model by peft itself, so that they are one model, and the merging is not ours.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tsflora.compression import Adapter
from tsflora.models.adapters import LoraConfig, set_adapter

if TYPE_CHECKING:
    from peft import PeftModel

_HEAD = "head"


def peft_model(backbone: VisionTransformer, adapter: Adapter, config: LoraConfig) -> "PeftModel":
    """peft's model of `backbone`, which is changed in place, with the trained `adapter` under the backbone's names.

    Raises:
        ValueError: the adapter is not one of this backbone and configuration.
    """
    from peft import get_peft_model

    with torch.random.fork_rng(devices=[]):  # initial weights, which the adapter's replace
        model = get_peft_model(backbone, config.for_peft(modules_to_save=[_HEAD]))
    set_adapter(model, {_name_in_peft(name): tensor for name, tensor in adapter.items()})
    return model.eval()


def merged_state(model: "PeftModel") -> dict[str, Tensor]:
    """The state dict under timm's names, W + (alpha / rank) B A in place of each layer's W; takes the model apart.

    Raises:
        ValueError: NaN or infinity in a merged layer.
    """
    return model.merge_and_unload(safe_merge=True).state_dict()


def adapter_state(model: "PeftModel") -> dict[str, Tensor]:
    """What peft expects in `adapter_model.safetensors`: LoRA factors and the whole head."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(model, save_embedding_layers=False)


def write_adapter_config(model: "PeftModel", folder: Path) -> None:
    """Write peft's `adapter_config.json`, for a model that is loaded to be used."""
    config = model.peft_config["default"]
    config.inference_mode = True
    config.save_pretrained(str(folder))


def _name_in_peft(name: str) -> str:
    head = f"{_HEAD}."
    if name.startswith(head):
        name = f"{head}modules_to_save.default.{name.removeprefix(head)}"
    return f"base_model.model.{name}"
