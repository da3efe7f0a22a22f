"""Codecs: encode, decode and forward agree, traffic is the formula, golden frames, and frames from a careless peer."""

import contextlib
import hashlib
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsflora.compression import (
    JpegImages,
    Kind,
    Layout,
    RawImages,
    Section,
    Seen,
    TensorCodec,
    TokenCodec,
    Tokens,
    decode_labels,
    encode_labels,
    header_bytes,
    measure,
    quantizers,
    read_frame,
    write_frame,
)
from tsflora.errors import ConfigError, DataError, FrameError
from tsflora.experiment import run
from tsflora.seeding import torch_generator
from tsflora.settings import Settings
from tsflora.wire import Format

QUANTIZERS: list[dict[str, Any]] = [
    {"name": name, **options} for name, cls in quantizers.classes().items() for options in cls.examples
]


def codec(options: dict[str, Any] | str, kind: Kind = Kind.GRADIENTS) -> TensorCodec:
    return TensorCodec(quantizers.build(options), kind)


def golden_input(*shape: int) -> torch.Tensor:
    """Numbers in [-0.5, 0.5) that are the same on every machine and under every version of torch."""
    steps = (np.arange(1, np.prod(shape) + 1, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    return torch.from_numpy((steps / 2**32 - 0.5).astype(np.float32).reshape(shape))


@example_settings(deadline=None, max_examples=150)
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
        elements=st.floats(-60000, 60000, width=32),
    ),
    which=st.integers(0, len(QUANTIZERS) - 1),
    seed=st.integers(0, 2**32),
)
def test_decode_of_encode_is_forward_to_the_bit(x: np.ndarray, which: int, seed: int) -> None:
    tensor, one = torch.from_numpy(x), codec(QUANTIZERS[which])
    frame = one.encode(tensor, torch_generator(seed))
    decoded = one.decode(frame, x.shape)
    forward = one.forward(tensor, torch_generator(seed))
    assert decoded.numpy().tobytes() == forward.numpy().tobytes()
    layouts = [section.layout for section in one.quantizer.quantize(tensor, torch_generator(seed))]
    assert tuple(layout.expected for layout in layouts) == one.quantizer.layouts(x.shape)
    payload = sum(layout.body_bytes for layout in layouts if not layout.side)
    if one.quantizer.bits_per_entry is not None:
        assert payload == sum(-(-x.size * layout.bits // 8) for layout in layouts if not layout.side)
    assert len(frame) == payload + header_bytes(layouts)
    assert measure(frame).payload_bytes == payload


def test_float32_is_lossless() -> None:
    x = torch.randn(3, 4, generator=torch_generator("x")) * torch.tensor([1e-40, 1e-3, 1, 1e38])
    assert torch.equal(codec("float32").decode(codec("float32").encode(x, torch_generator("q"))), x)


# --- tokens, from a device's end to the server's

HEADS, PATCHES, DIM = 3, 9, 8


def seen(batch: int = 2, patches: int = PATCHES, dim: int = DIM, grad: bool = False) -> Seen:
    activations = torch.randn(batch, patches + 1, dim, generator=torch_generator("x"), requires_grad=grad)
    attention = (4 * torch.rand(batch, HEADS, patches + 1, generator=torch_generator("a"))).softmax(dim=2)
    return Seen(Tokens(activations), attention)


def token_codec(tokens: Any = "all", quantizer: Any = "float32") -> TokenCodec:
    return TokenCodec.parse({"tokens": tokens, "quantizer": quantizer})


def sent(one: TokenCodec, what: Seen) -> tuple[Tokens, bytes]:
    return one.sender().send(what, np.arange(len(what.tokens.values)), torch_generator)


CODECS = [
    {},
    {"tokens": {"name": "top_k_merge", "n_tokens": 5}, "quantizer": {"name": "uniform", "bits": 4}},
    {"tokens": {"name": "attention_mass", "mass": 0.5}, "quantizer": {"name": "uniform", "bits": 8, "range": "token"}},
    {"tokens": {"name": "attention_mass", "mass": 0.7, "merge": "none"}},
    {"tokens": {"name": "attention_mass", "mass": 0.6, "proportional": True}, "quantizer": "float16"},
]


@pytest.mark.parametrize("options", CODECS, ids=str)
def test_what_arrives_is_what_judging_sees(options: dict[str, Any]) -> None:
    one, what = TokenCodec.parse(options), seen(batch=4)
    tokens, frame = sent(one, what)
    received, judged = one.receiver(PATCHES).receive(frame, 0), one.sender().judge(what, torch_generator)
    for name in ("values", "lengths", "sizes"):
        found, expected = getattr(received, name), getattr(judged, name)
        assert (found is None and expected is None) or torch.equal(found, expected), name
    assert received.rows().shape == tokens.rows().shape
    assert (received.lengths is None) == (one.n_transmitted(PATCHES) is not None)


@pytest.mark.parametrize("options", CODECS, ids=str)
def test_a_frame_is_as_large_as_its_layouts_say_where_they_say_it(options: dict[str, Any]) -> None:
    one, what = TokenCodec.parse(options), seen(batch=4)
    frame, layouts = sent(one, what)[1], one.layouts(4, PATCHES, DIM)
    assert (layouts is None) == (one.n_transmitted(PATCHES) is None)
    if layouts is not None:
        assert len(frame) == header_bytes(layouts) + sum(layout.body_bytes for layout in layouts if not layout.side)


@pytest.mark.parametrize("proportional", [False, True])
def test_ragged_sequences_travel_without_their_padding(proportional: bool) -> None:
    mass = {"name": "attention_mass", "mass": 0.5, "proportional": proportional}
    tokens, frame = sent(token_codec(mass), seen(batch=6))
    lengths = tokens.lengths
    assert lengths is not None
    assert len(set(lengths.tolist())) > 1
    entries = int(lengths.sum())
    assert measure(frame).payload_bytes == entries * DIM * 4
    values, found, *sizes = read_frame(frame, Kind.ACTIVATIONS)
    assert values.values.shape == (entries, DIM)
    assert found.values.tolist() == lengths.tolist()
    # 1 to 10 tokens in 4 bits; a token of 1 to 9 patches in 4.
    assert (found.layout.bits, found.layout.side) == (4, True)
    assert [(size.layout.entries, size.layout.bits, size.layout.side) for size in sizes] == (
        [(entries, 4, True)] if proportional else []
    )
    if proportional:
        per_sample = torch.from_numpy(sizes[0].values.astype(np.int64)).split(lengths.tolist())
        assert {int(sample.sum()) for sample in per_sample} == {PATCHES + 1}


def forged(rows: int, lengths: list[int], bits: int = 4, extra: list[Section] | None = None) -> bytes:
    codes = np.array(lengths, np.uint8)
    side = Section(codes, Layout(codes.shape, Format.PACKED, bits, side=True))
    return write_frame(Kind.ACTIVATIONS, [Section.float32(np.zeros((rows, DIM), np.float32)), side, *(extra or [])])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (forged(5, [2, 2]), "5 tokens in sequences of"),
        (forged(2, [2, 0]), "lengths of 1 to 10"),
        (forged(13, [2, 11]), "lengths of 1 to 10"),
        (forged(4, [2, 2], bits=5), "one row of side information at 4 bits"),
        (forged(4, [2, 2], extra=[Section.codes(np.ones(4, np.uint8), 4)]), "one row of side information at 4 bits"),
        (
            forged(4, [2, 2], extra=[Section(np.ones(3, np.uint8), Layout((3,), Format.PACKED, 4, side=True))]),
            "3 sizes from 1; allowed: one of at least 1 for each token",
        ),
        (
            forged(4, [2, 2], extra=[Section(np.zeros(4, np.uint8), Layout((4,), Format.PACKED, 4, side=True))]),
            "4 sizes from 0",
        ),
    ],
)
def test_sequences_that_do_not_add_up_are_refused(frame: bytes, words: str) -> None:
    with pytest.raises(FrameError, match=words) as caught:
        token_codec().receiver(PATCHES).receive(frame, 0)
    assert "\n" not in str(caught.value)


def test_news_of_a_codec_that_has_none_is_refused() -> None:
    assert token_codec().receiver(PATCHES).news() is None
    with pytest.raises(FrameError, match="news of 3 bytes for a codec that has none"):
        token_codec().sender().absorb(b"new")


def test_all_tokens_at_float32_is_the_uncompressed_activation() -> None:
    what = seen()
    for options in ("all", {"name": "top_k_merge", "n_tokens": 10}):
        frame = sent(token_codec(options), what)[1]
        received = token_codec(options).receiver(PATCHES).receive(frame, 0)
        assert torch.equal(received.values, what.tokens.values)
        assert measure(frame).kind == Kind.ACTIVATIONS


@pytest.mark.parametrize(("n_tokens", "bits"), [(40, 8), (30, 4), (2, 1), (50, 8)])
def test_payload_is_the_papers_overhead(n_tokens: int, bits: int) -> None:
    """Eq. (9): B (K + 2) D q bits; the range costs two float32."""
    batch, dim = 3, 24
    one = token_codec({"name": "top_k_merge", "n_tokens": n_tokens}, {"name": "uniform", "bits": bits})
    size = measure(sent(one, seen(batch, 49, dim))[1])
    assert size.payload_bytes == batch * n_tokens * dim * bits // 8
    assert size.header_bytes == 8 + 16 + 12 + 2 * 4 + 4


@pytest.mark.parametrize("options", CODECS, ids=str)
def test_gradient_goes_from_the_server_into_the_device_graph(options: dict[str, Any]) -> None:
    """Straight through the quantizer, and as autograd has it through selection and merge."""
    one, what = TokenCodec.parse(options), seen(grad=True)
    tokens, _ = sent(one, what)
    judged = one.sender().judge(what, torch_generator).rows()
    upstream = torch.randn(judged.shape, generator=torch_generator("g"))
    (expected,) = torch.autograd.grad((judged * upstream).sum(), what.tokens.values)
    tokens.rows().backward(upstream)
    assert what.tokens.values.grad is not None
    assert torch.equal(what.tokens.values.grad, expected)


GOLDENS: dict[str, tuple[dict[str, Any], str]] = {
    "float32": (
        {"name": "float32"},
        "86113d4dd78971903791792baff404936ec9e4700d497cc33a34268ff0ea1c08",
    ),
    "float16": (
        {"name": "float16"},
        "aee21582279be49e6b98fc224e8c98a1f95325560f3fe2b56865c6378ad69bdb",
    ),
    "1 bit": (
        {"name": "uniform", "bits": 1, "rounding": "nearest"},
        "c9afad5f9300540eeaeef1bf923dd08799d8a1df97485f3b740c25e11eabc639",
    ),
    "4 bits, per token": (
        {"name": "uniform", "bits": 4, "range": "token", "rounding": "nearest"},
        "63242d004e3bb66248d290beb94903832d97151a0db766f9b301ff21157c9a8e",
    ),
    "8 bits": (
        {"name": "uniform", "bits": 8, "rounding": "nearest"},
        "d06b3f7c447b7ce15746fbd56608de4d2db22899d2f041cd5accde7ce2bf4816",
    ),
    "13 bits, per channel": (
        {"name": "uniform", "bits": 13, "range": "channel", "rounding": "nearest"},
        "54f2aaa40a7dd423a76c94c99d7479f1e63a7d62ff79b376548d6b0ef5653d38",
    ),
    "3 bits, magnitude": (
        {"name": "uniform", "bits": 3, "variant": "magnitude", "rounding": "nearest"},
        "3cec318b3894a41a6f3dab8545764b29a4846f5e26d38c38a8dafdb13ce2fe3f",
    ),
    "8 bits, stochastic": (
        {"name": "uniform", "bits": 8},
        "ec018fc3ff3fcea37f0d3b3db2e7842bfaaeb737cd6d7398470c229a29145a47",
    ),
}
"""SHA-256 of the frame of `golden_input(2, 7, 5)`. All but the last are independent of any random number generator."""


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_frames(name: str) -> None:
    options, expected = GOLDENS[name]
    frame = codec(options, Kind.ACTIVATIONS).encode(golden_input(2, 7, 5), torch_generator("golden"))
    assert hashlib.sha256(frame).hexdigest() == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"name": "rotated", "bits": 4, "rounding": "nearest"},
            "c3885307f1db7198739c1263b8872d86e741412b9ca912b6aef4696483869064",
        ),
        (
            {"name": "entropy_coded", "quantizer": {"name": "uniform", "bits": 8, "rounding": "nearest"}},
            "91e68e94fc47f36715423eeb0f7f1d8fca48164b8df4ecf5965a3c24282994f2",
        ),
        (
            {"name": "entropy_coded", "quantizer": {"name": "rotated", "bits": 3, "rounding": "nearest"}},
            "1ec5699a8f71f3aae36f7de9305ae8bf424a3c1681d77b69017679fef648f65d",
        ),
    ],
)
def test_golden_frames_of_tokens(options: dict[str, Any], expected: str) -> None:
    """A shape that is rotated in blocks, and values that are worth coding."""
    frame = codec(options, Kind.ACTIVATIONS).encode(golden_input(5, 10, 24) ** 3, torch_generator("golden"))
    assert hashlib.sha256(frame).hexdigest() == expected


def test_golden_labels() -> None:
    frame = encode_labels(torch.tensor([0, 99, 42, 7, 64]), 100)
    assert hashlib.sha256(frame).hexdigest() == "c3d9aeda2ff321c64b0b210037889d445b809f0c17dd2304280693ac42379cf8"


def test_entropy_coding_trains_alike_in_fewer_bytes(settings: Settings) -> None:
    uniform = {"name": "uniform", "bits": 8}
    records = []
    for q in (uniform, {"name": "entropy_coded", "quantizer": uniform}):
        method = {"algorithm": "sflora", "quantizer": q, "gradient_quantizer": q, "adapter_quantizer": q}
        records.append(run(small_config(method), settings))
    plain, coded = records
    for one, other in zip(plain.history, coded.history, strict=True):
        assert (one.train_loss, one.accuracy) == (other.train_loss, other.accuracy)
        assert other.uplink_bytes["activations"] < 0.9 * one.uplink_bytes["activations"]
        assert other.downlink_bytes["gradients"] < 0.7 * one.downlink_bytes["gradients"]
        assert other.uplink_bytes["adapters"] < one.uplink_bytes["adapters"]


# --- many tensors in one frame


@pytest.mark.parametrize("options", QUANTIZERS, ids=str)
def test_an_adapter_travels_in_one_frame(options: dict[str, Any]) -> None:
    adapter = [golden_input(4, 8), golden_input(8, 4) * 100, golden_input(3)]
    shapes = [(4, 8), (8, 4), (3,)]
    one = codec(options, Kind.ADAPTERS)
    decoded = one.decode_all(one.encode_all(adapter, torch_generator("q")), shapes)
    generator = torch_generator("q")  # one generator for all, in order
    for tensor, found in zip(adapter, decoded, strict=True):
        assert torch.equal(found, one.forward(tensor, generator))


def test_another_adapter_is_refused() -> None:
    one = codec({"name": "uniform", "bits": 8}, Kind.ADAPTERS)
    frame = one.encode_all([golden_input(4, 8), golden_input(8, 4)], torch_generator("q"))
    for shapes in ([(4, 8)], [(4, 8), (8, 4), (1,)]):
        with pytest.raises(FrameError, match=f"expected {len(shapes)} tensors of 2 sections each, given: 4 sections"):
            one.decode_all(frame, shapes)
    with pytest.raises(FrameError, match=r"expected a tensor of shape \(8, 4\), given: \(4, 8\)"):
        one.decode_all(frame, [(8, 4), (4, 8)])
    with pytest.raises(FrameError, match="do not fit"):
        one.decode(frame)


# --- a careless peer


def test_another_shape_is_refused() -> None:
    frame = codec("float32").encode(golden_input(2, 3), torch_generator("q"))
    assert codec("float32").decode(frame).shape == (2, 3)
    with pytest.raises(FrameError, match=r"expected a tensor of shape \(3, 2\), given: \(2, 3\)"):
        codec("float32").decode(frame, (3, 2))


def test_another_kind_is_refused() -> None:
    frame = codec("float32", Kind.GRADIENTS).encode(golden_input(2, 3), torch_generator("q"))
    with pytest.raises(FrameError, match="expected a frame of adapters, given: gradients"):
        codec("float32", Kind.ADAPTERS).decode(frame)


@pytest.mark.parametrize("sent", QUANTIZERS, ids=str)
@pytest.mark.parametrize("read", QUANTIZERS, ids=str)
def test_a_frame_of_another_quantizer_is_refused_or_means_the_same_levels(
    sent: dict[str, Any], read: dict[str, Any]
) -> None:
    sender, reader = codec(sent), codec(read)
    frame = sender.encode(golden_input(3, 5, 4), torch_generator("q"))
    if sender.quantizer.layouts((3, 5, 4)) != reader.quantizer.layouts((3, 5, 4)):
        with pytest.raises(FrameError, match="do not fit"):
            reader.decode(frame)
    elif "quantizer" in sent and sent["quantizer"].get("bits") != read["quantizer"].get("bits"):
        with pytest.raises(FrameError, match=r"codes of \d+ bits are expected, given: \d+ bits"):
            reader.decode(frame)
    else:
        assert torch.equal(reader.decode(frame), sender.decode(frame))


@example_settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_a_damaged_frame_never_decodes(data: st.DataObject) -> None:
    one = codec(QUANTIZERS[data.draw(st.integers(0, len(QUANTIZERS) - 1))])
    frame = one.encode(golden_input(2, 3, 4), torch_generator("q"))
    start = data.draw(st.integers(0, len(frame) - 1))
    end = data.draw(st.integers(start, len(frame)))
    damaged = frame[:start] + data.draw(st.binary(max_size=16)) + frame[end:]
    if damaged != frame:
        with pytest.raises(FrameError):
            one.decode(damaged)


def tampered(frame: bytes, data: st.DataObject) -> bytes:
    """The frame with a few bytes of somebody else's, and a right checksum."""
    content = bytearray(frame[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=3))
    return bytes(content) + struct.pack("<I", zlib.crc32(content))


@example_settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_a_forged_frame_is_refused_or_holds_finite_numbers(data: st.DataObject) -> None:
    one = codec(QUANTIZERS[data.draw(st.integers(0, len(QUANTIZERS) - 1))], data.draw(st.sampled_from(list(Kind))))
    shape = data.draw(st.sampled_from([(2, 3, 4), (20, 6), (1,), ()]))
    frame = tampered(one.encode(golden_input(*shape).reshape(shape), torch_generator("q")), data)
    with contextlib.suppress(FrameError):
        decoded = one.quantizer.dequantize(read_frame(frame, one.kind), shape)
        assert (decoded.shape, decoded.dtype) == (shape, torch.float32)
        assert decoded.isfinite().all()


@example_settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_forged_frames_of_labels_and_images_are_refused_or_hold_what_was_expected(data: st.DataObject) -> None:
    images = (golden_input(2, 4, 4, 3) * 255 + 128).numpy().astype(np.uint8)
    with contextlib.suppress(FrameError):
        labels = decode_labels(tampered(encode_labels(torch.tensor([0, 9, 4]), 10), data), 10)
        assert labels.ndim == 1
        assert int(labels.max()) < 10
    for one in (RawImages(), JpegImages(quality=75)):
        with contextlib.suppress(FrameError):
            decoded = one.decode(tampered(one.encode(images), data), images.shape)
            assert (decoded.shape, decoded.dtype) == (images.shape, np.uint8)


# --- labels


@pytest.mark.parametrize(
    ("n_classes", "bits"),
    [(1, 1), (2, 1), (3, 2), (10, 4), (100, 7), (128, 7), (129, 8), (200, 8), (256, 8), (65536, 16)],
)
def test_labels_at_the_width_of_their_number(n_classes: int, bits: int) -> None:
    labels = torch.tensor([0, n_classes - 1, n_classes // 2, 0, n_classes - 1])
    frame = encode_labels(labels, n_classes)
    assert measure(frame).payload_bytes == -(-5 * bits // 8)
    decoded = decode_labels(frame, n_classes)
    assert torch.equal(decoded, labels)
    assert decoded.dtype == torch.int64


def test_one_label() -> None:
    assert decode_labels(encode_labels(torch.tensor([3], dtype=torch.int32), 5), 5).tolist() == [3]


@pytest.mark.parametrize("labels", [[0, 10], [-1, 3]])
def test_labels_outside_the_classes_are_not_sent(labels: list[int]) -> None:
    with pytest.raises(DataError, match="labels must be 0 to 9"):
        encode_labels(torch.tensor(labels), 10)


def test_labels_outside_the_classes_are_not_received() -> None:
    forged = write_frame(Kind.LABELS, [Section.codes(np.array([3, 10], np.uint8), 4)])
    with pytest.raises(FrameError, match="labels must be 0 to 9, given: 10"):
        decode_labels(forged, 10)


@pytest.mark.parametrize(
    "sections",
    [
        [Section.codes(np.zeros(3, np.uint8), 5)],
        [Section.codes(np.zeros((3, 1), np.uint8), 4)],
        [Section.codes(np.zeros(3, np.uint8), 4)] * 2,
        [Section.float16(np.zeros(3, np.float16))],
    ],
)
def test_other_frames_are_no_labels(sections: list[Section]) -> None:
    with pytest.raises(FrameError, match="expected one row of labels at 4 bits") as caught:
        decode_labels(write_frame(Kind.LABELS, sections), 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_classes", [0, 65537])
def test_number_of_classes_that_has_no_width(n_classes: int) -> None:
    with pytest.raises(ConfigError, match="1 to 65536 classes"):
        encode_labels(torch.tensor([0]), n_classes)
