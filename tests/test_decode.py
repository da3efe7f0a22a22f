"""Image bytes to RGB: every mode is scaled or named, and the same damage is the same line."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image
from test_sources import encoded, one_line, random_images

from tsflora.data import decode
from tsflora.data.decode import decode_all, decode_rgb
from tsflora.errors import ConfigError, DataError

RAMP = np.linspace(0, 65535, 256, dtype=np.uint16).reshape(16, 16)


def stored(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_every_bit_flip_of_a_png_is_a_data_error_or_harmless():
    # A smooth image: its short compressed stream is where a decoder alone misses flips.
    image = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[None, :, None], (32, 32, 3))
    intact = encoded(image)
    for place in range(len(intact) * 8):
        content = bytearray(intact)
        content[place // 8] ^= 1 << (place % 8)
        try:
            decoded = decode_rgb(bytes(content), "here")
        except DataError:
            continue
        np.testing.assert_array_equal(decoded, image)


@pytest.mark.parametrize("square", [None, 16])
@pytest.mark.parametrize(("kind", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I")])
def test_sixteen_bit_grey_is_scaled(kind, mode, square):
    image = Image.fromarray(RAMP)
    if mode == "I;16B":
        image = Image.frombytes(mode, RAMP.shape, RAMP.astype(">u2").tobytes())
    content = stored(image, kind)
    assert Image.open(io.BytesIO(content)).mode == mode
    grey = decode_rgb(content, "here", square)
    np.testing.assert_array_equal(grey, np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2))


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pixels_of_unknown_range_are_named(mode):
    content = stored(Image.new(mode, (4, 4)), "TIFF")
    with pytest.raises(DataError) as error:
        decode_rgb(content, "here")
    one_line(error, "here: its pixels are of mode " + mode, "8 bits")


@pytest.mark.parametrize("square", [None, 2])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB key"])
def test_what_is_transparent_lies_on_white(mode, square):
    # The left half shows grey 64; the right half is transparent, with black under it.
    pixels = np.zeros((2, 2, 4), dtype=np.uint8)
    pixels[:, 0] = (64, 64, 64, 255)
    image = Image.fromarray(pixels)
    if mode == "P":
        image = Image.frombytes("P", (2, 2), bytes([1, 0, 1, 0]))
        image.putpalette([0, 0, 0, 64, 64, 64])
        content = stored(image, transparency=bytes([0, 255]))
    elif mode == "RGB key":
        content = stored(image.convert("RGB"), transparency=(0, 0, 0))
    else:
        content = stored(image.convert(mode), "TIFF" if mode == "PA" else "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_rgb(content, "here", square)
    np.testing.assert_array_equal(decoded[0, :, 0], [64, 255])
    assert (decoded == decoded[..., :1]).all()


def test_half_transparent_is_mixed_and_opaque_is_unchanged():
    pixels = np.concatenate([random_images(1, 8)[0], np.full((8, 8, 1), 255, np.uint8)], axis=2)
    np.testing.assert_array_equal(decode_rgb(stored(Image.fromarray(pixels)), "here"), pixels[..., :3])
    pixels[..., 3] = 128
    mixed = pixels[..., :3] * (128 / 255) + 255 * (127 / 255)
    np.testing.assert_allclose(decode_rgb(stored(Image.fromarray(pixels)), "here"), mixed, atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_plain_modes_show_what_they_show(mode):
    black_and_white = np.repeat(np.array([[0, 255], [255, 0]], dtype=np.uint8)[..., None], 3, axis=2)
    content = stored(Image.fromarray(black_and_white).convert(mode), "TIFF")
    np.testing.assert_array_equal(decode_rgb(content, "here"), black_and_white)


def test_the_same_damage_is_the_same_line():
    content = encoded(random_images(1)[0])
    for damaged in (b"", b"not a picture", content[:20], content[: len(content) // 2], content[:-40]):
        lines = set()
        for _ in range(2):
            with pytest.raises(DataError) as error:
                decode_rgb(bytes(bytearray(damaged)), "here")
            one_line(error, "here: not an intact image")
            lines.add(str(error.value))
        assert len(lines) == 1
        assert "0x" not in lines.pop()


def test_images_too_large_for_memory_are_refused(monkeypatch):
    content = encoded(random_images(1, 32)[0])
    monkeypatch.setattr(decode, "usable_memory_bytes", lambda: 3 * 32 * 32 * 4)
    assert len(decode_all([("here", content)] * 4, 4, "set")) == 4
    with pytest.raises(ConfigError) as error:
        decode_all([("here", content)] * 5, 5, "set")
    one_line(error, "set: 5 images of 32x32 pixels", "train_size")
    # A size that is known beforehand is checked before the first image is brought to it.
    with pytest.raises(ConfigError, match="4 images of 33x33 pixels"):
        decode_all(iter(()), 4, "set", square=33)
