"""Tokens to bytes and back: which tokens travel, how many bits each entry gets, and the frame it all travels in.

`TokenCodec` composes a `TokenReducer` and a `Quantizer`; `TensorCodec` sends any float tensor (gradients, adapters).
The bytes below it are `tsflora.wire`, whose names most callers need are here too.
"""

from tsflora.compression.codec import TensorCodec, TokenCodec
from tsflora.compression.entropy_coded import EntropyCoded
from tsflora.compression.quantizers import Quantizer, quantizers
from tsflora.compression.rotated import Rotated
from tsflora.compression.tokens import Reduced, TokenReducer, token_reducers
from tsflora.wire import (
    FrameSize,
    ImageCodec,
    JpegImages,
    Kind,
    Layout,
    RawImages,
    Section,
    decode_labels,
    encode_labels,
    header_bytes,
    measure,
    read_frame,
    write_frame,
)

__all__ = [
    "EntropyCoded",
    "FrameSize",
    "ImageCodec",
    "JpegImages",
    "Kind",
    "Layout",
    "Quantizer",
    "RawImages",
    "Reduced",
    "Rotated",
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
