"""The sizes of a Vision Transformer that its costs depend on, without its weights."""

import tsflora.models  # noqa: F401  isort: skip  (before timm; registers the bundled model with it)

import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from tsflora.config import Config
from tsflora.errors import ConfigError


class VitShape(Config):
    """The sizes of a Vision Transformer that its costs depend on."""

    backbone: str
    image_size: int
    patch_size: int
    n_blocks: int
    """L."""
    dim: int
    """D."""
    n_heads: int
    mlp_dim: int
    n_patches: int
    """M; the sequence has M + 1 tokens with CLS."""
    n_classes: int

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of a block's linear layers, in the order in which they run."""
        return {
            "qkv": (self.dim, 3 * self.dim),
            "proj": (self.dim, self.dim),
            "fc1": (self.dim, self.mlp_dim),
            "fc2": (self.mlp_dim, self.dim),
        }

    @classmethod
    def of(cls, backbone: str, n_classes: int, image_size: int | None = None) -> "VitShape":
        """The shape of a timm model, read off its modules without allocating a single weight.

        Raises:
            ConfigError: timm has no such Vision Transformer, or not at this image size.
        """
        if not timm.is_model(backbone):
            raise ConfigError(f"backbone: timm has no model {backbone!r}; see timm.list_models('vit_*')")
        size = {} if image_size is None else {"img_size": image_size}
        try:
            with torch.device("meta"):
                model = timm.create_model(backbone, num_classes=n_classes, weight_init="skip", **size)
            return cls(
                backbone=backbone,
                image_size=model.patch_embed.img_size[0],
                patch_size=model.patch_embed.patch_size[0],
                n_blocks=len(model.blocks),
                dim=model.embed_dim,
                n_heads=model.blocks[0].attn.num_heads,
                mlp_dim=model.blocks[0].mlp.fc1.out_features,
                n_patches=model.patch_embed.num_patches,
                n_classes=n_classes,
            )
        except (AssertionError, AttributeError, TypeError, ValueError) as error:
            raise ConfigError(
                f"backbone {backbone!r} at image_size {image_size} is no Vision Transformer: {error}"
            ) from None

    def without_weights(self) -> VisionTransformer:
        """The model itself on the meta device: every module and shape, no storage."""
        with torch.device("meta"):
            return timm.create_model(
                self.backbone, num_classes=self.n_classes, img_size=self.image_size, weight_init="skip"
            )
