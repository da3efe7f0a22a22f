"""Compressed image bytes (PNG, JPEG, ...) to uint8 RGB arrays."""

import io
import struct
import zlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps
from tqdm import tqdm

from tsflora.errors import DataError

# What Pillow's decoders let through on damaged input, besides its own UnidentifiedImageError (an OSError).
_DECODER_ERRORS = (OSError, SyntaxError, ValueError, IndexError, EOFError, struct.error, zlib.error)


def decode_rgb(content: bytes, where: str, square: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """One image as RGB; with `square`, turned upright, centre-cropped and resized (bicubic) to square x square pixels.

    Raises:
        DataError: names `where` when the bytes are not an intact image.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(content))
        if image.format == "PNG":
            # Decoding skips the checksums of pixel chunks; verify() reads them, and uses the file object up.
            image.verify()
            image = Image.open(io.BytesIO(content))
        if square is not None:
            upright = ImageOps.exif_transpose(image).convert("RGB")
            return np.array(ImageOps.fit(upright, (square, square), method=Image.Resampling.BICUBIC))
        return np.array(image.convert("RGB"))
    except (*_DECODER_ERRORS, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: not an intact image ({error})") from None


def decode_all(
    contents: Iterable[tuple[str, bytes]], n: int, title: str, square: int | None = None
) -> UInt8[np.ndarray, "n height width 3"]:
    """Decode `n` > 0 images, given as (where it is, bytes), into one array; a progress bar appears after a second.

    Raises:
        DataError: an image that is not intact, or that has another size than the first one.
    """
    images: np.ndarray | None = None
    for row, (where, content) in enumerate(tqdm(contents, desc=title, total=n, unit="image", delay=1.0, leave=False)):
        image = decode_rgb(content, where, square)
        if images is None:
            images = np.empty((n, *image.shape), dtype=np.uint8)
        if image.shape != images.shape[1:]:
            given, first = (f"{shape[1]}x{shape[0]}" for shape in (image.shape, images.shape[1:]))
            raise DataError(f"{where}: is {given} pixels where the first image of the set is {first}")
        images[row] = image
    assert images is not None
    return images
