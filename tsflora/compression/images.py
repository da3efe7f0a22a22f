"""Images on the wire, for the baselines that send them: as raw pixels, or each one as a JPEG."""

import io
from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from pydantic import BeforeValidator, Field, SerializeAsAny

from tsflora.compression.bits import code_dtype
from tsflora.compression.frames import Format, Kind, Layout, Section, read_frame, write_frame
from tsflora.config import Component, Registry
from tsflora.errors import FrameError

_LENGTH_BITS = 16
Pixels = UInt8[np.ndarray, "batch height width 3"]


class ImageCodec(Component, ABC):
    """uint8 images to frames and back."""

    @abstractmethod
    def layouts(self, shape: tuple[int, int, int, int]) -> tuple[Layout, ...] | None:
        """The sections of a frame of images of this shape; None where their size depends on the images."""

    @abstractmethod
    def encode(self, images: Pixels) -> bytes:
        """One frame that holds the images."""

    @abstractmethod
    def decode(self, frame: bytes, shape: tuple[int, int, int, int]) -> Pixels:
        """The images of a frame, which must have this shape.

        Raises:
            FrameError: a damaged frame, of another kind or codec, or of other images.
        """

    def forward(self, images: Pixels) -> Pixels:
        """What the other side decodes."""
        return self.decode(self.encode(images), images.shape)


image_codecs = Registry[ImageCodec]("image codec", "tsflora.image_codecs")

AnyImageCodec = Annotated[SerializeAsAny[ImageCodec], BeforeValidator(image_codecs.build)]


@image_codecs.register
class RawImages(ImageCodec):
    """One byte per channel and pixel: lossless."""

    name = "raw"

    def layouts(self, shape: tuple[int, int, int, int]) -> tuple[Layout, ...]:
        """See `ImageCodec`."""
        return (Layout(shape, Format.PACKED, 8),)

    def encode(self, images: Pixels) -> bytes:
        """See `ImageCodec`."""
        return write_frame(Kind.IMAGES, [Section.codes(images, 8)])

    def decode(self, frame: bytes, shape: tuple[int, int, int, int]) -> Pixels:
        """See `ImageCodec`."""
        sections = read_frame(frame, Kind.IMAGES)
        if [section.layout for section in sections] != list(self.layouts(shape)):
            raise FrameError(f"expected raw images of shape {shape}, given: {[section.layout for section in sections]}")
        return sections[0].values.astype(np.uint8)


@image_codecs.register
class JpegImages(ImageCodec):
    """Each image as a JPEG file of its own, by Pillow at `quality`; lengths of the files, then their bytes."""

    name = "jpeg"
    quality: int = Field(default=75, ge=1, le=95)

    def layouts(self, shape: tuple[int, int, int, int]) -> None:  # noqa: ARG002
        """See `ImageCodec`."""
        return None

    def encode(self, images: Pixels) -> bytes:
        """See `ImageCodec`.

        Raises:
            ValueError: an image whose file is longer than 65535 bytes.
        """
        files = [self._file(image) for image in images]
        longest = max(len(file) for file in files)
        if longest >= 2**_LENGTH_BITS:
            raise ValueError(f"a JPEG file of a batch has at most {2**_LENGTH_BITS - 1} bytes, given: {longest}")
        lengths = np.array([len(file) for file in files], dtype=code_dtype(_LENGTH_BITS))
        content = np.frombuffer(b"".join(files), dtype=np.uint8)
        return write_frame(Kind.IMAGES, [Section.codes(lengths, _LENGTH_BITS), Section.codes(content, 8)])

    def decode(self, frame: bytes, shape: tuple[int, int, int, int]) -> Pixels:
        """See `ImageCodec`."""
        sections = read_frame(frame, Kind.IMAGES)
        if len(sections) != 2 or sections[0].layout != Layout((shape[0],), Format.PACKED, _LENGTH_BITS):
            raise FrameError(f"expected {shape[0]} JPEG images, given: {[section.layout for section in sections]}")
        lengths, content = sections[0].values.astype(np.int64), sections[1].values.astype(np.uint8).tobytes()
        if int(lengths.sum()) != len(content):
            raise FrameError(f"JPEG files of {int(lengths.sum())} bytes are announced, given: {len(content)} bytes")
        ends = np.cumsum(lengths)
        return np.stack(
            [_pixels(content[end - length : end], shape[1:]) for end, length in zip(ends, lengths, strict=True)]
        )

    def _file(self, image: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=self.quality)
        return buffer.getvalue()


def _pixels(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(file), formats=["JPEG"]) as image:
            # The size is known before a pixel is decoded, so a forged header cannot make us allocate.
            if (image.height, image.width, 3) != shape or image.mode != "RGB":
                raise FrameError(f"expected a JPEG image of {shape}, given: {image.size} pixels in {image.mode}")
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise FrameError(f"an image is not a readable JPEG ({error})") from None
