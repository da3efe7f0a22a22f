"""uint8 images to the model's input: resize, augment, normalise, a whole batch at a time."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate

from tsflora.config import Config

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as everyone's greyscale


class AugmentConfig(Config):
    """Random views of training images; the defaults are those of the SFLAM code (arXiv 2504.09114).

    That code composes torchvision's RandomResizedCrop(scale=crop_scale), ColorJitter, RandomRotation and
    RandomHorizontalFlip image by image, on the global generator. Here one affine map and one colour map serve the
    whole batch, from a generator that the caller names, so that a batch is cheap, interpolated once, and the same
    whatever else has drawn numbers. What differs in the views:

    * the crop stays square (at 0.9 of the area torchvision's aspect ratio has room for hardly anything else), and a
      scale above 1 zooms out, where torchvision falls back to the whole image;
    * brightness, contrast and saturation come in this order, and the colours are clamped once at the end, where
      torchvision draws the order and clamps after each.

    As there, what lies outside the image is black.
    """

    crop_scale: tuple[float, float] = (0.9, 1.1)
    """Range of the crop's area, as a share of the image's."""
    jitter: float = Field(default=0.1, ge=0, lt=1)
    """Brightness, contrast and saturation are each multiplied by a factor from 1 - jitter .. 1 + jitter."""
    rotation_degrees: float = Field(default=10.0, ge=0, le=180)
    """Rotation by an angle from -rotation_degrees .. rotation_degrees."""
    flip: bool = True
    """Mirror left and right with probability 1/2."""

    @model_validator(mode="after")
    def _crop_is_a_range(self) -> "AugmentConfig":
        low, high = self.crop_scale
        if not 0 < low <= high < math.inf:
            raise ValueError(f"crop_scale must be a rising range of positive numbers, not {low} .. {high}")
        return self


def to_input(
    images: UInt8[np.ndarray, "batch height width 3"] | UInt8[Tensor, "batch height width 3"],
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device | str,
    augment: AugmentConfig | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch 3 image_size image_size"]:
    """Scale to 0..1, resize (bicubic, antialiased) where the size differs, augment, and normalise by mean and std.

    Random numbers are drawn where `generator` lives, so that a CPU generator gives the same views on every device.

    Raises:
        ValueError: `augment` without a generator.
    """
    batch = torch.as_tensor(images).to(device).permute(0, 3, 1, 2).float().div(255)
    if batch.shape[2:] != (image_size, image_size):
        batch = interpolate(batch, size=(image_size, image_size), mode="bicubic", antialias=True).clamp_(0, 1)
    if augment is not None:
        if generator is None:
            raise ValueError("augmentation needs a generator (tsflora.seeding.torch_generator)")
        batch = _jitter_colours(_move(batch, augment, generator), augment, generator)
    shift, scale = (torch.tensor(values, device=batch.device).view(1, 3, 1, 1) for values in (mean, std))
    return (batch - shift) / scale


def _uniform(
    n: int, low: float, high: float, generator: torch.Generator, device: torch.device
) -> Float[Tensor, " {n}"]:
    draw = torch.rand(n, generator=generator, device=generator.device)
    return (low + (high - low) * draw).to(device)


def _move(
    batch: Float[Tensor, "batch 3 size size"], augment: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    n, device = len(batch), batch.device
    side = _uniform(n, *augment.crop_scale, generator, device).sqrt()
    angle = _uniform(n, -augment.rotation_degrees, augment.rotation_degrees, generator, device).deg2rad()
    # The crop lies anywhere within the image, or the image anywhere within a larger crop.
    x_shift, y_shift = ((1 - side) * _uniform(n, -1.0, 1.0, generator, device) for _ in range(2))
    mirror = torch.where(_uniform(n, 0.0, 1.0, generator, device) < 0.5 * augment.flip, -1.0, 1.0)
    # Output to input coordinates: mirror, rotate, scale, shift.
    cos, sin = side * angle.cos(), side * angle.sin()
    theta = torch.stack([mirror * cos, -sin, x_shift, mirror * sin, cos, y_shift], dim=1).view(n, 2, 3)
    grid = affine_grid(theta, list(batch.shape), align_corners=False)
    return grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _jitter_colours(
    batch: Float[Tensor, "batch 3 size size"], augment: AugmentConfig, generator: torch.Generator
) -> Float[Tensor, "batch 3 size size"]:
    low, high = 1 - augment.jitter, 1 + augment.jitter
    brightness, contrast, saturation = (
        _uniform(len(batch), low, high, generator, batch.device).view(-1, 1, 1) for _ in range(3)
    )
    luma = torch.tensor(_LUMA, device=batch.device)
    pixels = batch.flatten(2)
    # x -> bx, then -> c bx + (1 - c) g with g the image's mean grey after brightness, then -> s x + (1 - s) grey(x):
    # composed, a 3 x 3 matrix and a constant per image.
    mean_grey = brightness * (pixels.mean(dim=2, keepdim=True) * luma.view(1, 3, 1)).sum(dim=1, keepdim=True)
    mix = saturation * torch.eye(3, device=batch.device) + (1 - saturation) * luma.expand(3, 3)
    offset = ((1 - contrast) * mean_grey).expand(-1, 3, 1)
    return torch.baddbmm(offset, contrast * brightness * mix, pixels).clamp_(0, 1).view_as(batch)
