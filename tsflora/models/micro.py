"""ViT-Micro: a Vision Transformer for 28 × 28 images, small enough to fine-tune on one core, with bundled weights.

Importing this module registers `vit_micro_patch4_28` with timm. Its weights come from rendered letters, never digits
(`pipelines/pretrain_micro.py` makes them), so the embedded study of digits starts from a backbone that is pretrained
and yet has not seen its task, and needs no network.
"""

from pathlib import Path
from typing import Any

import tsflora.models.torchvision_fallback  # noqa: F401  isort: skip  (before timm)

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

MICRO_NAME = "vit_micro_patch4_28"
"""The model's name in timm."""

BUNDLED_WEIGHTS: Path = Path(__file__).parent / "weights" / f"{MICRO_NAME}.safetensors"
"""float32 state dict under timm's key names, without the classifier."""

# `register_model` looks its configuration up under this name. The bundled file has no classifier, hence no classes.
default_cfgs = generate_default_cfgs(
    {
        MICRO_NAME: {
            "file": str(BUNDLED_WEIGHTS),
            "num_classes": 0,
            "input_size": (3, 28, 28),
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_micro_patch4_28(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """ViT-Micro/4 at 28 × 28: 49 patches + CLS, width 64, 6 blocks, 4 heads, 0.3 M parameters.

    The architecture is that of Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021), scaled down. `kwargs` are
    those of timm's `VisionTransformer` (`img_size`, `num_classes`, `drop_path_rate`, ...); without `num_classes` the
    model has no classifier. `pretrained=True` loads `BUNDLED_WEIGHTS`, with the position embedding resampled to
    `img_size` by timm, and a fresh classifier.
    """
    architecture = {
        "img_size": 28,
        "patch_size": 4,
        "embed_dim": 64,
        "depth": 6,
        "num_heads": 4,
        "class_token": True,
        "global_pool": "token",
    }
    return build_model_with_cfg(
        VisionTransformer,
        MICRO_NAME,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**architecture, **kwargs},
    )
