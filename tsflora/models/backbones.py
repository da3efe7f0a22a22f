"""Frozen Vision Transformers from timm, with weights from the hub, a file, the package itself, or none."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from pydantic import Field, model_validator
from timm.models import load_state_dict as read_checkpoint
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from tsflora.config import Config, did_you_mean
from tsflora.errors import ConfigError, WeightsError
from tsflora.models.micro import BUNDLED_WEIGHTS, MICRO_NAME  # also registers the model with timm
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
    """A safetensors or pt file (absolute, or inside `weights_dir`), or `bundled`, or `random`."""

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
    """Build the model, load its weights and give it a fresh head drawn from `seed`.

    Raises:
        ConfigError: not a timm Vision Transformer with a CLS token, or an impossible image size.
        WeightsError: the weights are missing, out of reach, unreadable, or do not fit.
    """
    model = _create(config, n_classes)
    if config.weights not in (None, "random"):
        _load_file(model, BUNDLED_WEIGHTS if config.weights == "bundled" else _find(str(config.weights), weights_dir))
    generator = torch_generator("head", config.name, n_classes, seed)
    nn.init.trunc_normal_(model.head.weight, std=0.02, generator=generator)
    nn.init.zeros_(model.head.bias)
    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        if not key.startswith("head."):
            digest.update(key.encode() + tensor.contiguous().numpy().tobytes())
    size = model.patch_embed.img_size[0]
    return Backbone(model, size, model.pretrained_cfg["mean"], model.pretrained_cfg["std"], digest.hexdigest())


def _create(config: BackboneConfig, n_classes: int) -> VisionTransformer:
    if not timm.is_model(config.name):
        hint = did_you_mean(config.name, timm.list_models("vit_*")).split("allowed:")[0]
        raise ConfigError(f"backbone.name: timm has no model {config.name!r}; {hint}see timm.list_models('vit_*')")
    size = {} if config.image_size is None else {"img_size": config.image_size}
    # timm draws initial weights from torch's global stream; fork_rng gives it back untouched.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("backbone", config.name))
        try:
            model = timm.create_model(config.name, pretrained=config.pretrained, num_classes=n_classes, **size)
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(f"backbone {config.name!r} at image_size {config.image_size}: {error}") from None
        except Exception as error:  # the hub's client has many error types of its own
            raise WeightsError(
                f"backbone {config.name!r}: its weights could not be fetched from the hub ({_first_line(error)}); "
                "connect, or download the file elsewhere and give it as weights: FILE"
            ) from None
    suitable = isinstance(model, VisionTransformer) and model.cls_token is not None and model.num_prefix_tokens == 1
    if not suitable or model.global_pool != "token":
        raise ConfigError(f"backbone {config.name!r} is not a Vision Transformer with one CLS token that is pooled")
    patch, side = model.patch_embed.patch_size[0], model.patch_embed.img_size[0]
    if side % patch:
        raise ConfigError(f"backbone.image_size: {side} is not a multiple of the patch size {patch}")
    return model


def _find(weights: str, weights_dir: Path | None) -> Path:
    given = Path(weights).expanduser()
    places = [given] if given.is_absolute() or weights_dir is None else [weights_dir / given, given]
    for place in places:
        if place.is_file():
            return place
    raise WeightsError(
        f"weights file {weights!r} is not at {' or '.join(str(place) for place in places)}; "
        "set TSFLORA_WEIGHTS_DIR to its folder, or use pretrained: true"
    )


def _load_file(model: VisionTransformer, path: Path) -> None:
    try:
        state = checkpoint_filter_fn(read_checkpoint(str(path), device="cpu", weights_only=True), model)
    except Exception as error:  # truncated or foreign files fail in many ways inside the readers
        raise WeightsError(f"{path} cannot be read as weights ({_first_line(error)}); download it again") from None
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    try:
        outcome = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise WeightsError(f"{path} does not fit the model: {str(error).splitlines()[1].strip()}") from None
    missing = [key for key in outcome.missing_keys if not key.startswith("head.")]
    if missing or outcome.unexpected_keys:
        raise WeightsError(
            f"{path} does not fit the model: {len(missing)} tensors missing, {len(outcome.unexpected_keys)} unknown "
            f"(first: {[*missing, *outcome.unexpected_keys][0]!r}); timm's key names are expected"
        )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
