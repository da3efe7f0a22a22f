"""What carries activations: the configuration of both ends, and the ends themselves, which may remember.

A `Codec` is configuration. Each device holds a `Sender` of it and the server one `Receiver`; both live as long as the
run does, and their memory is in the checkpoint. The law: from equal states, `receive(send(x))` is `judge(x)`, to the
bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int, Int64
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from typing_extensions import override

from tsflora.compression.batch import Seen, Tokens
from tsflora.compression.quantizers import AnyQuantizer, quantizers
from tsflora.compression.tokens import AnyTokenReducer, token_reducers
from tsflora.config import Component, Registry
from tsflora.errors import FrameError
from tsflora.wire import Format, Kind, Layout, Section, read_frame, write_frame
from tsflora.wire.bits import code_dtype

Draw = Callable[[str], torch.Generator]
"""A random stream by what it is for, as `draw("quantizer")`: seeded by the run, the round, the device and the step."""

Memory = dict[str, Tensor]
"""What an end remembers, as flat tensors by name."""


@runtime_checkable
class Sender(Protocol):
    """A device's end."""

    def send(self, seen: Seen, samples: Int[np.ndarray, " batch"], draw: Draw) -> tuple[Tokens, bytes]:
        """The tokens whose gradient is to come back, with their graph, and the frame that carries them.

        `samples` name the samples of the batch among those of this device.

        Raises:
            NumericsError: NaN, infinity, or values beyond what the codec can hold.
        """

    def judge(self, seen: Seen, draw: Draw) -> Tokens:
        """What would arrive at the other end, on the tokens' device, of samples never seen. Remembers nothing."""

    def absorb(self, news: bytes) -> None:
        """Take in what the server tells all senders at the start of a round.

        Raises:
            FrameError: not the news of this codec.
        """

    def state(self) -> Memory:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


@runtime_checkable
class Receiver(Protocol):
    """The server's end, for all devices."""

    def receive(self, frame: bytes, device: int) -> Tokens:
        """The tokens in a device's frame, on the CPU.

        Raises:
            FrameError: a damaged frame, or one that this codec does not send.
        """

    def news(self) -> bytes | None:
        """A frame of kind CONTROL that every participant gets at the start of a round; None: nothing to tell."""

    def state(self) -> Memory:
        """What it remembers."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state`."""


class Codec(Component, ABC):
    """Configuration of both ends of what carries activations."""

    @abstractmethod
    def n_transmitted(self, n_patches: int) -> int | None:
        """Tokens of each sequence that arrive, of a model with `n_patches` patches; None where that differs.

        Raises:
            ConfigError: the model does not have that many.
        """

    @abstractmethod
    def layouts(self, batch: int, n_patches: int, dim: int) -> tuple[Layout, ...] | None:
        """The sections of a batch's frame, all that its size depends on; None where that depends on the data."""

    @abstractmethod
    def sender(self) -> Sender:
        """A device's end at the start of a run."""

    @abstractmethod
    def receiver(self, n_patches: int) -> Receiver:
        """The server's end at the start of a run, for a model with `n_patches` patches."""


codecs = Registry[Codec]("codec", "tsflora.codecs", Codec)

AnyCodec = Annotated[SerializeAsAny[Codec], BeforeValidator(codecs.build)]


class Forgetful:
    """An end without memory."""

    def absorb(self, news: bytes) -> None:
        """Refused: nothing is told to it.

        Raises:
            FrameError: always.
        """
        raise FrameError(f"news of {len(news)} bytes for a codec that has none")

    def news(self) -> bytes | None:
        """Nothing."""
        return None

    def state(self) -> Memory:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to put back."""


@codecs.register
class TokenCodec(Codec):
    """Choose and merge tokens, then quantise them: the method of TSFLora (arXiv 2605.23988), and all like it.

    The frame holds the quantizer's sections of the tokens. Where sequences differ in length, or carry sizes, two
    sections of side information follow: the length of each sequence and, if sizes are sent, the size of each token.
    """

    name = "tokens"
    examples = (
        {},
        {"tokens": {"name": "top_k_merge", "n_tokens": 5}, "quantizer": {"name": "uniform", "bits": 4}},
        {"tokens": {"name": "attention_mass", "mass": 0.5}, "quantizer": {"name": "uniform", "bits": 8}},
        {"tokens": {"name": "attention_mass", "mass": 0.6, "proportional": True}},
    )

    tokens: AnyTokenReducer = Field(default_factory=lambda: token_reducers.build("all"))
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))

    @override
    def n_transmitted(self, n_patches: int) -> int | None:
        return self.tokens.n_transmitted(n_patches)

    @override
    def layouts(self, batch: int, n_patches: int, dim: int) -> tuple[Layout, ...] | None:
        n_tokens = self.n_transmitted(n_patches)
        return None if n_tokens is None else self.quantizer.layouts((batch, n_tokens, dim))

    @override
    def sender(self) -> "TokenSender":
        return TokenSender(self)

    @override
    def receiver(self, n_patches: int) -> "TokenReceiver":
        return TokenReceiver(self, n_patches)


class TokenSender(Forgetful):
    """A device's end of a `TokenCodec`."""

    def __init__(self, codec: TokenCodec) -> None:
        self.codec = codec

    def send(self, seen: Seen, samples: Int[np.ndarray, " batch"], draw: Draw) -> tuple[Tokens, bytes]:
        """See `Sender`. Straight through the quantizer; the chain rule through selection and merge is autograd's."""
        del samples
        tokens = self.codec.tokens.reduce(seen, draw("tokens")).tokens
        sections = self.codec.quantizer.quantize(tokens.rows().detach(), draw("quantizer"))
        return tokens, write_frame(Kind.ACTIVATIONS, [*sections, *_shape_sections(tokens, seen.most_patches)])

    def judge(self, seen: Seen, draw: Draw) -> Tokens:
        """See `Sender`."""
        tokens = self.codec.tokens.reduce(seen, draw("tokens")).tokens
        return tokens.like(self.codec.quantizer.forward(tokens.rows(), draw("quantizer")))


class TokenReceiver(Forgetful):
    """The server's end of a `TokenCodec`."""

    def __init__(self, codec: TokenCodec, n_patches: int) -> None:
        self.codec = codec
        self.n_patches = n_patches

    def receive(self, frame: bytes, device: int) -> Tokens:
        """See `Receiver`."""
        del device
        sections = read_frame(frame, Kind.ACTIVATIONS)
        n = self.codec.quantizer.n_sections
        rows, shape = self.codec.quantizer.dequantize(sections[:n]), sections[n:]
        if not shape:
            return Tokens(rows)
        lengths = _side_codes(shape[0], (self.n_patches + 1).bit_length())
        if (
            len(shape) > 2
            or rows.ndim != 2
            or int(lengths.min()) < 1
            or int(lengths.max()) > self.n_patches + 1
            or int(lengths.sum()) != len(rows)
        ):
            raise FrameError(
                f"{len(rows)} tokens in sequences of {lengths.tolist()[:8]}...; allowed: lengths of 1 to "
                f"{self.n_patches + 1} that add up to the number of tokens"
            )
        tokens = Tokens(torch.zeros(len(lengths), int(lengths.max()), 0), lengths).like(rows)
        if len(shape) == 1:
            return tokens
        sizes = _side_codes(shape[1], self.n_patches.bit_length())
        if len(sizes) != len(rows) or int(sizes.min()) < 1:
            raise FrameError(f"{len(sizes)} sizes from {int(sizes.min())}; allowed: one of at least 1 for each token")
        return Tokens(tokens.values, lengths, tokens.like(sizes.float().unsqueeze(1)).values.squeeze(2))


def _shape_sections(tokens: Tokens, n_patches: int) -> list[Section]:
    """Lengths and sizes as side information; nothing for a batch of sequences of one length without sizes."""
    if tokens.lengths is None and tokens.sizes is None:
        return []
    batch, longest = tokens.values.shape[:2]
    lengths = torch.full((batch,), longest) if tokens.lengths is None else tokens.lengths
    sections = [_side_section(lengths, (n_patches + 1).bit_length())]
    if tokens.sizes is not None:
        present = tokens.present
        sizes = tokens.sizes.ravel() if present is None else tokens.sizes[present]
        sections.append(_side_section(sizes, n_patches.bit_length()))
    return sections


def _side_section(values: Tensor, bits: int) -> Section:
    codes = values.detach().cpu().numpy().astype(code_dtype(bits))
    return Section(codes, Layout(codes.shape, Format.PACKED, bits, side=True))


def _side_codes(section: Section, bits: int) -> Int64[Tensor, " n"]:
    if section.layout != Layout((section.layout.entries,), Format.PACKED, bits, side=True):
        raise FrameError(f"expected one row of side information at {bits} bits, given: {section.layout}")
    return torch.from_numpy(section.values.astype(np.int64))
