"""Tokens to bytes and back: which tokens travel, how many bits each entry gets, and the frame it all travels in.

`TokenCodec` composes a `TokenReducer` and a `Quantizer`; `TensorCodec` sends any float tensor (gradients, adapters).
The wire format is written down in `tsflora.compression.frames`.
"""

from tsflora.compression.codec import TensorCodec, TokenCodec, decode_labels, encode_labels
from tsflora.compression.frames import FrameSize, Kind, Layout, Section, header_bytes, measure, read_frame, write_frame
from tsflora.compression.images import ImageCodec, JpegImages, RawImages
from tsflora.compression.quantizers import Quantizer, quantizers
from tsflora.compression.tokens import Reduced, TokenReducer, token_reducers

__all__ = [
    "FrameSize",
    "ImageCodec",
    "JpegImages",
    "Kind",
    "Layout",
    "Quantizer",
    "RawImages",
    "Reduced",
    "Section",
    "TensorCodec",
    "TokenCodec",
    "TokenReducer",
    "decode_labels",
    "encode_labels",
    "header_bytes",
    "measure",
    "quantizers",
    "read_frame",
    "token_reducers",
    "write_frame",
]
