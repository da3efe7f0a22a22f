"""From uint8 images to a model's input: exact where it can be, deterministic where it is random."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tsflora.data import AugmentConfig, to_input, transforms
from tsflora.seeding import torch_generator

NEUTRAL = AugmentConfig(crop_scale=(1.0, 1.0), jitter=0.0, rotation_degrees=0.0, flip=False)
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "cpu")


def images(n: int = 4, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def only(**options: object) -> AugmentConfig:
    return NEUTRAL.model_copy(update=options)


def test_normalisation_is_exact_and_channels_come_first():
    batch = images()
    expected = (batch.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    result = to_input(batch, 16, MEAN, STD, "cpu")
    assert result.dtype == torch.float32
    np.testing.assert_array_equal(result.numpy(), expected.transpose(0, 3, 1, 2))


def test_tensors_and_arrays_give_the_same():
    batch = images()
    assert torch.equal(to_input(torch.from_numpy(batch), 20, MEAN, STD, "cpu"), to_input(batch, 20, MEAN, STD, "cpu"))


def test_the_images_are_left_alone():
    batch = images()
    before = batch.copy()
    to_input(batch, 16, *PLAIN, AugmentConfig(), torch_generator(0))
    np.testing.assert_array_equal(batch, before)


def test_resize_happens_only_when_needed(monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("resized")

    monkeypatch.setattr(transforms, "interpolate", refuse)
    to_input(images(), 16, *PLAIN)
    with pytest.raises(AssertionError, match="resized"):
        to_input(images(), 17, *PLAIN)
    with pytest.raises(AssertionError, match="resized"):
        to_input(images()[:, :8], 16, *PLAIN)


@pytest.mark.parametrize("size", [8, 40])
def test_resize_keeps_flat_images_flat_and_values_in_range(size):
    flat = np.full((1, 16, 16, 3), 200, dtype=np.uint8)
    torch.testing.assert_close(to_input(flat, size, *PLAIN), torch.full((1, 3, size, size), 200 / 255))
    edges = (images() > 127).astype(np.uint8) * 255  # bicubic overshoots at such edges
    result = to_input(edges, size, *PLAIN)
    assert result.shape == (4, 3, size, size)
    assert result.min() >= 0
    assert result.max() <= 1


def test_shrinking_is_antialiased():
    small = to_input(images(2, 64), 8, *PLAIN)
    assert small.std() < 0.08  # averages of about 64 values of deviation 0.29; single samples would keep most of it


def test_neutral_augmentation_is_the_identity():
    for size in (16, 24):
        plain = to_input(images(), size, MEAN, STD, "cpu")
        torch.testing.assert_close(to_input(images(), size, MEAN, STD, "cpu", NEUTRAL, torch_generator(0)), plain)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([12, 16]))
def test_augmentation_follows_its_generator(seed, size):
    def views(name: int) -> torch.Tensor:
        return to_input(images(), size, MEAN, STD, "cpu", AugmentConfig(), torch_generator("view", name))

    torch.manual_seed(seed)
    state = torch.random.get_rng_state()
    first = views(seed)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, views(seed))
    assert not torch.equal(first, views(seed + 1))


def test_each_image_has_its_own_view():
    same = np.repeat(images(1), 6, axis=0)
    views = to_input(same, 16, *PLAIN, AugmentConfig(), torch_generator(3))
    assert all(not torch.equal(views[one], views[two]) for one in range(6) for two in range(one))


def test_flip_mirrors_about_half_of_the_images():
    batch = images(200, 6)
    plain = to_input(batch, 6, *PLAIN)
    views = to_input(batch, 6, *PLAIN, only(flip=True), torch_generator(0))
    mirrored = plain.flip(3)
    is_plain = (views - plain).abs().amax(dim=(1, 2, 3)) < 1e-5
    is_mirrored = (views - mirrored).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert bool((is_plain ^ is_mirrored).all())
    assert 60 < int(is_mirrored.sum()) < 140  # 5.7 standard deviations: fails for one seed in 10^8


def test_rotation_turns_within_its_range():
    # A bar from the middle to the right: its angle can be read off its centre of mass.
    bar = np.zeros((300, 41, 41, 3), dtype=np.uint8)
    bar[:, 20, 25:40] = 255
    views = to_input(bar, 41, *PLAIN, only(rotation_degrees=10.0), torch_generator(0))[:, 0]
    offsets = torch.arange(41) - 20.0
    mass = views.sum(dim=(1, 2))
    x, y = (views.sum(dim=1) * offsets).sum(dim=1) / mass, (views.sum(dim=2) * offsets).sum(dim=1) / mass
    angle = torch.atan2(y, x).rad2deg()
    assert angle.abs().max() < 10.3
    assert angle.min() < -9
    assert angle.max() > 9


def test_crop_scale_is_an_area_and_the_crop_stays_inside():
    # Brightness rises from left to right, so a crop's slope is its side and its values say where it lies.
    ramp = np.repeat(np.linspace(0, 255, 64).astype(np.uint8)[None, None, :, None], 3, axis=3).repeat(64, axis=1)
    batch = ramp.repeat(100, axis=0)
    views = to_input(batch, 64, *PLAIN, only(crop_scale=(0.25, 0.25)), torch_generator(0))[:, 0]
    span = views[:, 32, -1] - views[:, 32, 0]
    torch.testing.assert_close(span, torch.full_like(span, 0.5), atol=0.02, rtol=0)
    assert views.min() >= 0
    assert views[:, 32, 0].min() < 0.05
    assert views[:, 32, -1].max() > 0.95
    white = np.full((50, 16, 16, 3), 255, dtype=np.uint8)
    inside = to_input(white, 16, *PLAIN, only(crop_scale=(0.5, 0.9)), torch_generator(0))
    assert inside[..., 1:-1, 1:-1].min() > 0.999  # no black from outside
    outside = to_input(white, 16, *PLAIN, only(crop_scale=(4.0, 4.0)), torch_generator(0))
    torch.testing.assert_close(outside.mean(dim=(1, 2, 3)), torch.full((50,), 0.25), atol=0.02, rtol=0)


def test_colour_jitter_equals_its_three_steps():
    batch = images(8)
    jitter = 0.3
    views = to_input(batch, 16, *PLAIN, only(jitter=jitter), torch_generator(5))
    generator = torch_generator(5)
    torch.rand(8 * 5, generator=generator)  # crop, angle, two shifts, mirror
    steps = [1 - jitter + 2 * jitter * torch.rand(8, generator=generator).view(-1, 1, 1, 1) for _ in range(3)]
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    x = to_input(batch, 16, *PLAIN) * steps[0]
    grey = (x * luma).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True)
    x = steps[1] * x + (1 - steps[1]) * grey
    x = steps[2] * x + (1 - steps[2]) * (x * luma).sum(dim=1, keepdim=True)
    torch.testing.assert_close(views, x.clamp(0, 1))
    assert all(factor.min() >= 0.7 and factor.max() <= 1.3 for factor in steps)


def test_augmentation_without_a_generator_is_refused():
    with pytest.raises(ValueError, match="generator"):
        to_input(images(), 16, *PLAIN, AugmentConfig())


@pytest.mark.parametrize(
    "options",
    [
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (1.1, 0.9)},
        {"crop_scale": (0.9, float("inf"))},
        {"jitter": 1.0},
        {"jitter": -0.1},
        {"rotation_degrees": -1},
        {"flips": True},
    ],
)
def test_wrong_options_are_refused(options):
    with pytest.raises(ValidationError):
        AugmentConfig(**options)
