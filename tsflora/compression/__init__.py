"""Tokens to bytes and back: which tokens travel, how many bits each entry gets, and the frame it all travels in.

A `Codec` carries activations (`TokenCodec` composes a `TokenReducer` and a `Quantizer`), a `GradientCodec` what comes
back, an `AdapterCodec` adapters. The bytes below are `tsflora.wire`, whose names most callers need are here too.
"""

from tsflora.compression.adapters import Adapter, AdapterCodec, AdapterEnd, AnyAdapterCodec, adapter_codecs
from tsflora.compression.attention_mass import AttentionMass
from tsflora.compression.batch import Seen, Tokens
from tsflora.compression.codec import AnyCodec, Codec, Draw, Memory, Receiver, Sender, TokenCodec, codecs
from tsflora.compression.entropy_coded import EntropyCoded
from tsflora.compression.gradients import (
    AnyGradientCodec,
    GradientCodec,
    GradientReceiver,
    GradientSender,
    gradient_codecs,
)
from tsflora.compression.images import AnyImageCodec, ImageCodec, JpegImages, RawImages
from tsflora.compression.merging import AnyMerger, Merger, merge, mergers
from tsflora.compression.quantizers import AnyQuantizer, Quantizer, quantizers
from tsflora.compression.rotated import Rotated
from tsflora.compression.tensors import TensorCodec
from tsflora.compression.tokens import AnyTokenReducer, Reduced, TokenReducer, token_reducers
from tsflora.wire import (
    FrameSize,
    Kind,
    Layout,
    Section,
    decode_labels,
    encode_labels,
    header_bytes,
    measure,
    read_frame,
    write_frame,
)

__all__ = [
    "Adapter",
    "AdapterCodec",
    "AdapterEnd",
    "AnyAdapterCodec",
    "AnyCodec",
    "AnyGradientCodec",
    "AnyImageCodec",
    "AnyMerger",
    "AnyQuantizer",
    "AnyTokenReducer",
    "AttentionMass",
    "Codec",
    "Draw",
    "EntropyCoded",
    "FrameSize",
    "GradientCodec",
    "GradientReceiver",
    "GradientSender",
    "ImageCodec",
    "JpegImages",
    "Kind",
    "Layout",
    "Memory",
    "Merger",
    "Quantizer",
    "RawImages",
    "Receiver",
    "Reduced",
    "Rotated",
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
    "merge",
    "mergers",
    "quantizers",
    "read_frame",
    "token_reducers",
    "write_frame",
]
