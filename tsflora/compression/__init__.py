"""Tokens to bytes and back: which tokens travel, how many bits each entry gets, and the frame it all travels in.

A `Codec` carries activations (`TokenCodec` composes a `TokenReducer` and a `Quantizer`), a `GradientCodec` what comes
back, an `AdapterCodec` adapters. The wire format is written down in `tsflora.compression.frames`.
"""

from tsflora.compression.adapters import Adapter, AdapterCodec, AdapterEnd, AnyAdapterCodec, adapter_codecs
from tsflora.compression.batch import Seen, Tokens
from tsflora.compression.codec import (
    AnyCodec,
    Codec,
    Draw,
    Memory,
    Receiver,
    Sender,
    TokenCodec,
    codecs,
    decode_labels,
    encode_labels,
)
from tsflora.compression.frames import FrameSize, Kind, Layout, Section, header_bytes, measure, read_frame, write_frame
from tsflora.compression.gradients import (
    AnyGradientCodec,
    GradientCodec,
    GradientReceiver,
    GradientSender,
    gradient_codecs,
)
from tsflora.compression.images import AnyImageCodec, ImageCodec, JpegImages, RawImages
from tsflora.compression.quantizers import AnyQuantizer, Quantizer, quantizers
from tsflora.compression.tensors import TensorCodec
from tsflora.compression.tokens import AnyTokenReducer, Reduced, TokenReducer, token_reducers

__all__ = [
    "Adapter",
    "AdapterCodec",
    "AdapterEnd",
    "AnyAdapterCodec",
    "AnyCodec",
    "AnyGradientCodec",
    "AnyImageCodec",
    "AnyQuantizer",
    "AnyTokenReducer",
    "Codec",
    "Draw",
    "FrameSize",
    "GradientCodec",
    "GradientReceiver",
    "GradientSender",
    "ImageCodec",
    "JpegImages",
    "Kind",
    "Layout",
    "Memory",
    "Quantizer",
    "RawImages",
    "Receiver",
    "Reduced",
    "Section",
    "Seen",
    "Sender",
    "TensorCodec",
    "TokenCodec",
    "TokenReducer",
    "Tokens",
    "adapter_codecs",
    "codecs",
    "decode_labels",
    "encode_labels",
    "gradient_codecs",
    "header_bytes",
    "measure",
    "quantizers",
    "read_frame",
    "token_reducers",
    "write_frame",
]
