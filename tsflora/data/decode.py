"""Compressed image bytes (PNG, JPEG, ...) to uint8 RGB arrays."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from tsflora.errors import ConfigError, DataError, reason
from tsflora.machine import usable_memory_bytes

# What Pillow's decoders let through on damaged input, besides its own UnidentifiedImageError (an OSError).
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error)
_PLAIN_MODES = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
"""What Pillow brings to 8-bit RGB without cutting anything off."""


def decode_rgb(content: bytes, where: str, square: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """One image as RGB; with `square`, turned upright, centre-cropped and resized (bicubic) to square x square pixels.

    16-bit grey is scaled to 8 bits, and what is transparent is laid on white.

    Raises:
        DataError: names `where` when the bytes are not an intact image, or one of a mode with no known range.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        if image.format == "PNG":
            # Decoding skips the checksums of pixel chunks; verify() reads them, and uses the file object up.
            image.verify()
            image = Image.open(io.BytesIO(content))
        file_format = image.format
        if square is not None:
            upright = _to_rgb(ImageOps.exif_transpose(image), file_format, where)
            return np.array(ImageOps.fit(upright, (square, square), method=Image.Resampling.BICUBIC))
        return np.array(_to_rgb(image, file_format, where))
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not an intact image ({reason(error)})") from None


def _to_rgb(image: Image.Image, file_format: str | None, where: str) -> Image.Image:
    # Pillow's own conversion of more than 8 bits cuts off at 255. "I" is 32 bits wide: only of these two formats is it
    # known that they fill 16 of them.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format in ("PNG", "PPM")):
        return Image.fromarray(np.round(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        # Colours under full transparency are arbitrary, and nobody has ever seen them.
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA")).convert("RGB")
    if image.mode not in _PLAIN_MODES:
        raise DataError(
            f"{where}: its pixels are of mode {image.mode}, whose range is not known; store it with 8 bits a channel"
        )
    return image.convert("RGB")


def decode_all(
    contents: Iterable[tuple[str, bytes]], n: int, title: str, square: int | None = None
) -> UInt8[np.ndarray, "n height width 3"]:
    """Decode `n` > 0 images, given as (where it is, bytes), into one array; a progress bar appears after a second.

    Raises:
        ConfigError: more pixels than fit in memory.
        DataError: an image that is not intact, or that has another size than the first one.
    """
    if square is not None:
        _check_memory(n, square, square, title)
    images: np.ndarray | None = None
    for row, (where, content) in enumerate(tqdm(contents, desc=title, total=n, unit="image", delay=1.0, leave=False)):
        image = decode_rgb(content, where, square)
        if images is None:
            _check_memory(n, image.shape[1], image.shape[0], title)
            images = np.empty((n, *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            given, first = (f"{shape[1]}x{shape[0]}" for shape in (image.shape, images.shape[1:]))
            raise DataError(f"{where}: is {given} pixels where the first image of the set is {first}")
        images[row] = image
    assert images is not None
    return images


def _check_memory(n: int, width: int, height: int, title: str) -> None:
    needed, there = n * width * height * 3, usable_memory_bytes()
    if needed > there:
        raise ConfigError(
            f"{title}: {n} images of {width}x{height} pixels take {needed / 2**30:.1f} GiB, and this machine has "
            f"{there / 2**30:.1f} GiB of memory; lower image_size, train_size or test_size"
        )
