"""Frozen Vision Transformers from timm, with weights from the hub, a file, the package itself, or none."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from pydantic import Field, model_validator
from timm.layers import PatchEmbed
from timm.models import is_model_pretrained
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from tsflora.config import Config, did_you_mean
from tsflora.errors import ConfigError, WeightsError, reason
from tsflora.machine import usable_memory_bytes
from tsflora.models.micro import BUNDLED_WEIGHTS, MICRO_NAME  # also registers the model with timm
from tsflora.models.weight_files import find, load
from tsflora.seeding import seed_for, torch_generator


class BackboneConfig(Config):
    """Which Vision Transformer, and where its weights come from."""

    name: str = MICRO_NAME
    """A timm model name."""
    image_size: int | None = Field(default=None, gt=0)
    """Input side in pixels; None is the model's own. Position embeddings are resampled to fit."""
    pretrained: bool = False
    """Weights from the model hub."""
    weights: str | None = None
    """A safetensors or pt file (absolute, or inside `weights_dir`), or `bundled`, or `random`. `~` and environment
    variables are expanded."""

    @model_validator(mode="after")
    def _one_origin(self) -> "BackboneConfig":
        if self.pretrained == (self.weights is not None):
            raise ValueError(
                f"backbone {self.name!r} needs one origin of its weights: pretrained: true, weights: FILE, "
                f"weights: bundled or weights: random; given: pretrained={self.pretrained}, weights={self.weights!r}"
            )
        if self.weights == "bundled" and self.name != MICRO_NAME:
            raise ValueError(f"weights: bundled exists for {MICRO_NAME!r} only; given: name={self.name!r}")
        return self


@dataclass(frozen=True)
class Backbone:
    """A Vision Transformer with a fresh head, and how its inputs are normalised."""

    model: VisionTransformer
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights_sha256: str
    """Digest of the frozen tensors (head excluded)."""

    @property
    def n_patches(self) -> int:
        """Patch tokens M; the sequence has M + 1 with CLS."""
        return int(self.model.patch_embed.num_patches)


def load_backbone(config: BackboneConfig, n_classes: int, seed: int, weights_dir: Path | None = None) -> Backbone:
    """Build the model, load its weights and give it a fresh head drawn from `seed`. It is in evaluation mode.

    Raises:
        ConfigError: not a timm model that can be split, or an impossible image size.
        WeightsError: the weights are missing, out of reach, unreadable, do not fit, or are not all finite.
    """
    model = _create(config, n_classes)
    origin = f"the hub's weights of {config.name!r}"
    if config.weights not in (None, "random"):
        path = BUNDLED_WEIGHTS if config.weights == "bundled" else find(str(config.weights), weights_dir)
        load(model, config.name, path)
        origin = str(path)
    generator = torch_generator("head", config.name, n_classes, seed)
    nn.init.trunc_normal_(model.head.weight, std=0.02, generator=generator)
    nn.init.zeros_(model.head.bias)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        if not key.startswith("head."):
            if not bool(torch.isfinite(tensor).all()):
                raise WeightsError(f"{origin}: tensor {key!r} holds NaN or infinity")
            digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    size = model.patch_embed.img_size[0]
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    return Backbone(model.eval(), size, mean, std, digest.hexdigest())


def _create(config: BackboneConfig, n_classes: int) -> VisionTransformer:
    _check(config)
    size = {} if config.image_size is None else {"img_size": config.image_size}
    # timm draws initial weights from torch's global stream; fork_rng gives it back untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("backbone", config.name))
        try:
            return timm.create_model(config.name, pretrained=config.pretrained, num_classes=n_classes, **size)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"backbone {config.name!r} at image_size {config.image_size}: {reason(error)}") from None
        except Exception as error:  # the hub's client has many error types of its own
            raise WeightsError(
                f"backbone {config.name!r}: its weights could not be fetched from the hub ({reason(error)}); "
                "connect, or download the file elsewhere and give it as weights: FILE"
            ) from None


def _check(config: BackboneConfig) -> None:
    """Hold the model to what the split needs, and the image size to what fits, before anything is built or fetched."""
    name = config.name
    if not timm.is_model(name):
        hint = did_you_mean(name, timm.list_models("vit_*")).split("allowed:")[0]
        raise ConfigError(f"backbone.name: timm has no model {name!r}; {hint}see timm.list_models('vit_*')")
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = timm.create_model(name, weight_init="skip")
    except TypeError:  # every Vision Transformer of timm has this option
        model = None
    except Exception as error:
        raise ConfigError(f"backbone {name!r}: {reason(error)}") from None
    if lack := _lack(model):
        raise ConfigError(
            f"backbone {name!r} cannot be split: {lack}; "
            "needed: timm's plain Vision Transformer with one CLS token that is pooled"
        )
    if config.pretrained and not is_model_pretrained(name):
        raise ConfigError(f"backbone {name!r}: there are no pretrained weights of it; give weights: FILE or random")
    patch = model.patch_embed.patch_size[0]
    side = model.patch_embed.img_size[0] if config.image_size is None else config.image_size
    if side % patch:
        raise ConfigError(f"backbone.image_size: {side} is not a multiple of the patch size {patch}")
    n_tokens = (side // patch) ** 2 + 1
    # The least that one image takes: the position embedding, and what comes out of every block.
    needed, there = 4 * n_tokens * model.embed_dim * (len(model.blocks) + 1), usable_memory_bytes()
    if needed > there:
        raise ConfigError(
            f"backbone.image_size: {side} makes {n_tokens} tokens of one image, at least {needed / 2**30:.1f} GiB, and "
            f"this machine has {there / 2**30:.1f} GiB of memory"
        )


def _lack(model: nn.Module | None) -> str | None:
    """What the split needs and the model has not. Exact classes, since parts of their insides are computed anew."""
    if not isinstance(model, VisionTransformer):
        return f"it is no timm {VisionTransformer.__name__}"
    if model.cls_token is None or model.num_prefix_tokens != 1:
        return f"it has {model.num_prefix_tokens} tokens beside its patches"
    if model.global_pool != "token":
        return f"it pools its tokens by {model.global_pool or 'nothing'!r}"
    embed = model.patch_embed
    parts = [(embed, PatchEmbed), *((block, Block) for block in model.blocks)]
    for part, expected in parts:
        if type(part) is not expected:
            return f"it is made of {type(part).__name__}, not {expected.__name__}"
    for block in model.blocks:
        if type(block.attn) is not Attention:
            return f"its blocks attend by {type(block.attn).__name__}, not {Attention.__name__}"
    if len({*embed.img_size}) > 1 or len({*embed.patch_size}) > 1:
        return f"its images of {embed.img_size} or patches of {embed.patch_size} pixels are not square"
    return None
