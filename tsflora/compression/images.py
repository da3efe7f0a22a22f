"""Images on the wire, for the baselines that send them: as raw pixels, or each one as a JPEG."""

import io
from abc import ABC, abstractmethod
from typing import Annotated

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from pydantic import BeforeValidator, Field, SerializeAsAny

from tsflora.config import Component, Registry
from tsflora.errors import FrameError
from tsflora.wire.bits import code_dtype
from tsflora.wire.frames import Kind, read_frame, write_frame
from tsflora.wire.sections import Format, Layout, Section

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


image_codecs = Registry[ImageCodec]("image codec", "tsflora.image_codecs", ImageCodec)

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
    """Each image as a baseline JPEG file of its own, by Pillow at `quality`: the files' lengths, then the files.

    Lengths are 16-bit codes, one for each file; where a file has 2^16 bytes or more, all of them are two such codes,
    the upper half first.
    """

    name = "jpeg"
    quality: int = Field(default=75, ge=1, le=95)

    def layouts(self, shape: tuple[int, int, int, int]) -> None:  # noqa: ARG002
        """See `ImageCodec`."""
        return

    def encode(self, images: Pixels) -> bytes:
        """See `ImageCodec`."""
        files = [self._file(image) for image in images]
        lengths = np.array([len(file) for file in files])
        return write_frame(Kind.IMAGES, [_written(lengths), Section.coded(b"".join(files))])

    def decode(self, frame: bytes, shape: tuple[int, int, int, int]) -> Pixels:
        """See `ImageCodec`."""
        sections = read_frame(frame, Kind.IMAGES)
        layouts = [section.layout for section in sections]
        allowed = [[_lengths_layout(shape[0], wide), Layout.coded()] for wide in (False, True)]
        if [layout.expected for layout in layouts] not in allowed:
            raise FrameError(f"expected {shape[0]} JPEG images, given: {layouts}")
        lengths, content = _read_lengths(sections[0]), sections[1].values.tobytes()
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


def _lengths_layout(count: int, wide: bool) -> Layout:
    return Layout((count, 2) if wide else (count,), Format.PACKED, _LENGTH_BITS)


def _written(lengths: Int64[np.ndarray, " batch"]) -> Section:
    layout = _lengths_layout(len(lengths), wide=int(lengths.max()) >> _LENGTH_BITS > 0)
    halves = np.stack([lengths >> _LENGTH_BITS, lengths & (2**_LENGTH_BITS - 1)], axis=1)
    values = halves if layout.shape == halves.shape else lengths
    return Section(values.astype(code_dtype(_LENGTH_BITS)), layout)


def _read_lengths(section: Section) -> Int64[np.ndarray, " batch"]:
    lengths = section.values.astype(np.int64)
    if lengths.ndim == 1:
        return lengths
    if not lengths[:, 0].any():
        raise FrameError("JPEG files that are all shorter than 2^16 bytes have lengths of one 16-bit code each")
    return (lengths[:, 0] << _LENGTH_BITS) + lengths[:, 1]


def _pixels(file: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """The image in a file.

    The plug-in is called by itself, and not through `Image.open`, which has opinions of its own about large images and
    about other formats inside a JPEG. It reads no more than the header, so that an image of another size than ours is
    refused before anything is allocated for its pixels.
    """
    try:
        with JpegImageFile(io.BytesIO(file)) as image:
            if (image.height, image.width, 3) != shape or image.mode != "RGB" or "progressive" in image.info:
                raise FrameError(f"expected a baseline JPEG image of {shape}, given: {image.size} in {image.mode}")
            return np.asarray(image)
    except FrameError:
        raise
    except Exception as error:  # whatever a parser of foreign bytes stumbles on
        raise FrameError(f"an image is not a readable JPEG ({error})") from None
