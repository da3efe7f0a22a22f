"""The wire format: packing, layout, sizes, golden frames, and what damaged or forged bytes meet."""

import ast
import hashlib
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tsflora.wire
from tsflora.errors import FrameError
from tsflora.wire import (
    Format,
    FrameSize,
    Kind,
    Layout,
    Section,
    header_bytes,
    measure,
    read_frame,
    write_frame,
)
from tsflora.wire.bits import pack, packed_bytes, unpack


def pattern(count: int, bits: int) -> np.ndarray:
    """Codes that look random and are the same on every machine."""
    values = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    return (values >> np.uint64(32 - bits)).astype(np.uint8 if bits <= 8 else np.uint16)


# --- packing


@pytest.mark.parametrize("bits", range(1, 17))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9, 15, 16, 17, 101])
def test_packing_is_the_written_bit_stream(bits: int, count: int) -> None:
    codes = pattern(count, bits)
    stream = "".join(f"{int(code):0{bits}b}" for code in codes)
    stream += "0" * (-len(stream) % 8)
    packed = pack(codes, bits)
    assert packed == int(stream, 2).to_bytes(len(stream) // 8, "big")
    assert len(packed) == packed_bytes(count, bits) == -(-count * bits // 8)
    restored = unpack(packed, count, bits)
    assert np.array_equal(restored, codes)
    assert restored.dtype == (np.uint8 if bits <= 8 else np.uint16)


@pytest.mark.parametrize("bits", range(1, 17))
def test_extreme_codes_do_not_spill_over(bits: int) -> None:
    for codes in (np.array([0, 2**bits - 1] * 9), np.array([2**bits - 1, 0] * 9), np.full(18, 2**bits - 1)):
        assert np.array_equal(unpack(pack(codes.astype(np.uint16), bits), 18, bits), codes)


@pytest.mark.parametrize("bits", [1, 5, 8, 12])
def test_a_code_that_does_not_fit_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"does not fit in {bits} bits"):
        pack(np.array([0, 2**bits], np.uint16), bits)


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_bits_are_1_to_16(bits: int) -> None:
    for act in (lambda: pack(np.zeros(1, np.uint8), bits), lambda: unpack(b"\0", 1, bits)):
        with pytest.raises(ValueError, match="bits must be 1 to 16"):
            act()


def test_padding_must_be_zero() -> None:
    assert unpack(b"\xa0", 3, 1).tolist() == [1, 0, 1]
    for damaged in (b"\xa1", b"\xb0"):
        with pytest.raises(FrameError, match="5 padding bits"):
            unpack(damaged, 3, 1)


def test_another_length_is_refused() -> None:
    for data in (b"", b"\0\0\0"):
        with pytest.raises(FrameError, match="3 codes of 4 bits fill 2 bytes"):
            unpack(data, 3, 4)


# --- layout and sizes


def example() -> list[Section]:
    return [
        Section.codes(pattern(15, 3).reshape(3, 5), 3),
        Section.float32(np.array([[-1.5, 2.25]], np.float32), side=True),
        Section.float16(np.array([0.5, -2.0, 65504.0], np.float16)),
        Section.float32(np.array(3.25, np.float32)),
    ]


def coded_example() -> list[Section]:
    return [
        Section.coded(b"\x07\x00entropy", (3, 5)),
        Section.coded(b"side", side=True),
        Section.codes(pattern(9, 3), 3),
        Section.coded(b"a file"),
    ]


def test_bytes_are_those_of_the_documented_table() -> None:
    frame = write_frame(Kind.GRADIENTS, [Section.codes(np.array([[1, 2, 3]], np.uint8), 4), example()[1]])
    content = (
        b"TSFL\x01\x03\x02\x00"  # magic, version 1, gradients, two sections
        b"\x01\x00\x04\x02\x01\x00\x00\x00\x03\x00\x00\x00"  # packed, payload, 4 bits, shape (1, 3)
        b"\x03\x01\x20\x02\x01\x00\x00\x00\x02\x00\x00\x00"  # float32, side, 32 bits, shape (1, 2)
        b"\x12\x30"  # 1, 2, 3 and four zero bits
        b"\x00\x00\xc0\xbf\x00\x00\x10\x40"  # -1.5, 2.25
    )
    assert frame == content + struct.pack("<I", zlib.crc32(content))


def test_bytes_of_coded_sections_are_those_of_the_documented_table() -> None:
    frame = write_frame(Kind.CONTROL, [Section.coded(b"plan"), Section.coded(b"\xff", (3, 500), side=True)])
    content = (
        b"TSFL\x01\x06\x02\x00"  # magic, version 1, control, two sections
        b"\x04\x00\x08\x00\x04\x00\x00\x00"  # coded, payload, 8 bits, no dimensions, 4 bytes
        b"\x04\x01\x08\x02\x03\x00\x00\x00\xf4\x01\x00\x00\x01\x00\x00\x00"  # coded, side, (3, 500), 1 byte
        b"plan\xff"
    )
    assert frame == content + struct.pack("<I", zlib.crc32(content))
    assert measure(frame) == FrameSize(Kind.CONTROL, 4, len(frame) - 4)


@pytest.mark.parametrize("sections", [example(), coded_example()])
def test_reading_undoes_writing(sections: list[Section]) -> None:
    for sent, found in zip(sections, read_frame(write_frame(Kind.ADAPTERS, sections), Kind.ADAPTERS), strict=True):
        assert found.layout == sent.layout
        assert found.values.dtype == sent.values.dtype
        assert np.array_equal(found.values, sent.values)
        found.values[...] = 0  # fresh memory, not a view of the frame


WIDTHS = [*((Format.PACKED, bits) for bits in range(1, 17)), (Format.FLOAT16, 16), (Format.FLOAT32, 32)]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(hnp.array_shapes(min_dims=0, max_dims=4, max_side=6), st.integers(0, len(WIDTHS) - 1), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_length_is_the_formula_plus_the_declared_header(drawn: list[tuple[tuple[int, ...], int, bool]]) -> None:
    layouts = [Layout(shape, *WIDTHS[width], side) for shape, width, side in drawn]
    dtypes = {Format.FLOAT16: np.float16, Format.FLOAT32: np.float32, Format.PACKED: np.uint16}
    frame = write_frame(Kind.LABELS, [Section(np.ones(x.shape, dtypes[x.format]), x) for x in layouts])
    payload = sum(-(-int(np.prod(x.shape)) * x.bits // 8) for x in layouts if not x.side)
    assert len(frame) == payload + header_bytes(layouts)
    assert measure(frame) == FrameSize(Kind.LABELS, payload, len(frame) - payload)
    assert [section.layout for section in read_frame(frame, Kind.LABELS)] == layouts


@settings(deadline=None, max_examples=80)
@given(
    st.lists(
        st.tuples(st.binary(min_size=1, max_size=40), hnp.array_shapes(min_dims=0, max_dims=4), st.booleans()),
        min_size=1,
        max_size=5,
    )
)
def test_length_of_coded_sections_is_that_of_their_data(drawn: list[tuple[bytes, tuple[int, ...], bool]]) -> None:
    sections = [Section.coded(*each) for each in drawn]
    frame = write_frame(Kind.GRADIENTS, sections)
    payload = sum(len(body) for body, _, side in drawn if not side)
    assert len(frame) == payload + header_bytes(section.layout for section in sections)
    assert measure(frame) == FrameSize(Kind.GRADIENTS, payload, len(frame) - payload)
    for (body, shape, side), found in zip(drawn, read_frame(frame, Kind.GRADIENTS), strict=True):
        assert found.values.tobytes() == body
        assert found.layout == Layout.coded(shape, side, len(body))
        assert found.layout.expected == Layout.coded(shape, side)


def test_a_coded_section_has_no_length_before_there_is_data() -> None:
    layout = Layout.coded((50, 40, 192))
    assert (layout.length, layout.entries) == (None, 384_000)
    assert header_bytes([layout]) == 8 + 4 + 12 + 4 + 4
    with pytest.raises(ValueError, match=r"coded section of shape \(50, 40, 192\) has no length"):
        _ = layout.body_bytes
    with pytest.raises(ValueError, match="no length before there is data"):
        write_frame(Kind.GRADIENTS, [Section(np.zeros(3, np.uint8), layout)])


def test_a_file_costs_the_same_coded_and_packed() -> None:
    packed = write_frame(Kind.IMAGES, [Section.codes(np.frombuffer(b"a file", np.uint8), 8)])
    assert len(packed) == len(write_frame(Kind.IMAGES, [Section.coded(b"a file")]))


def test_header_by_hand() -> None:
    # Prefix 8, table 4 + 12 and 4 + 8, one range of two float32 8, checksum 4.
    codes = Layout((50, 40, 192), Format.PACKED, 8)
    assert header_bytes([codes, Layout((1, 2), Format.FLOAT32, 32, side=True)]) == 8 + 16 + 12 + 8 + 4
    assert codes.body_bytes == 384_000


def test_what_has_no_place_in_a_frame_is_refused_by_the_writer() -> None:
    with pytest.raises(ValueError, match="at most 4 dimensions"):
        Section.float32(np.zeros((1, 1, 1, 1, 1), np.float32))
    with pytest.raises(ValueError, match="dimensions are 1 to"):
        Section.float32(np.zeros((2, 0), np.float32))
    with pytest.raises(ValueError, match="cannot have 17 bits"):
        Section.codes(np.zeros(3, np.uint16), 17)
    with pytest.raises(ValueError, match=r"1 to 2.32 - 1 bytes, given: 0"):
        Section.coded(b"")
    with pytest.raises(ValueError, match="length of a packed section follows from its shape"):
        Layout((3,), Format.PACKED, 8, length=3)
    with pytest.raises(ValueError, match="268435457 entries; allowed: 268435456 a frame"):
        write_frame(Kind.LABELS, [Section.coded(b"x", (2**14, 2**14)), Section.coded(b"y")])
    with pytest.raises(ValueError, match="1 to 65535 sections, given: 0"):
        write_frame(Kind.LABELS, [])
    with pytest.raises(ValueError, match="does not fit in 2 bits"):
        write_frame(Kind.LABELS, [Section.codes(np.array([4], np.uint8), 2)])


def test_golden_frame() -> None:
    frame = write_frame(Kind.ACTIVATIONS, example())
    assert hashlib.sha256(frame).hexdigest() == "7943c969f01cb2eddb75fc465c6f73efc6cbd63d69ca8b90f642208662e9e368"


def test_golden_coded_frame() -> None:
    frame = write_frame(Kind.ACTIVATIONS, coded_example())
    assert hashlib.sha256(frame).hexdigest() == "e28b5a8328b8db0d4a514033802b93abb0243033b90bb3a19712acc758308e04"


# --- damage


FRAME = write_frame(Kind.ACTIVATIONS, example())
CODED_FRAME = write_frame(Kind.ACTIVATIONS, coded_example())
both = pytest.mark.parametrize("frame", [FRAME, CODED_FRAME], ids=["packed", "coded"])


def reseal(content: bytes) -> bytes:
    """A frame with a right checksum: what a forger sends, other than what a bad line makes."""
    return content + struct.pack("<I", zlib.crc32(content))


@both
def test_every_truncation_is_refused(frame: bytes) -> None:
    for length in range(len(frame)):
        with pytest.raises(FrameError):
            read_frame(frame[:length], Kind.ACTIVATIONS)
        with pytest.raises(FrameError):
            measure(frame[:length])


@both
def test_every_flipped_bit_is_refused(frame: bytes) -> None:
    for place in range(len(frame)):
        for bit in range(8):
            damaged = bytearray(frame)
            damaged[place] ^= 1 << bit
            with pytest.raises(FrameError) as caught:
                read_frame(bytes(damaged), Kind.ACTIVATIONS)
            assert "\n" not in str(caught.value)


@both
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_damaged_frames_are_refused(frame: bytes, data: st.DataObject) -> None:
    """Bursts, cuts, insertions and repetitions anywhere."""
    start = data.draw(st.integers(0, len(frame)))
    end = data.draw(st.integers(start, len(frame)))
    damaged = frame[:start] + data.draw(st.binary(max_size=40)) + frame[end:]
    if damaged != frame:
        with pytest.raises(FrameError):
            read_frame(damaged, Kind.ACTIVATIONS)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=200), st.booleans())
def test_foreign_bytes_are_refused(junk: bytes, disguised: bool) -> None:
    with pytest.raises(FrameError):
        read_frame(b"TSFL\x01\x01" + junk if disguised else junk, Kind.ACTIVATIONS)


@both
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_forged_frame_is_refused_or_is_what_a_writer_writes(frame: bytes, data: st.DataObject) -> None:
    """With the checksum made right, a frame that still reads has to be the only encoding of what it holds."""
    content = bytearray(frame[:-4])
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    forged = reseal(bytes(content))
    try:
        sections = read_frame(forged, Kind.ACTIVATIONS)
    except FrameError:
        return
    assert write_frame(Kind.ACTIVATIONS, sections) == forged


def forged_header(*dims: int, code: int = 1, flags: int = 0, bits: int = 8, body: bytes = b"") -> bytes:
    table = struct.pack(f"<BBBB{len(dims)}I", code, flags, bits, len(dims), *dims)
    return reseal(b"TSFL\x01\x01\x01\x00" + table + body)


@pytest.mark.parametrize(
    "dims",
    [
        (2**32 - 1, 2**32 - 1),
        (2**32 - 1,) * 4,
        (2**16,) * 4,  # 2^64 entries: 0 in 64-bit arithmetic
        (2**31, 2**31, 4),
        (2**30,),
    ],
)
@pytest.mark.parametrize(("code", "bits"), [(1, 1), (1, 16), (3, 32)])
def test_a_claim_of_enormous_size_allocates_nothing(dims: tuple[int, ...], code: int, bits: int) -> None:
    forged = forged_header(*dims, code=code, bits=bits)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="claims"):
            read_frame(forged, Kind.ACTIVATIONS)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def forged_coded(*dims: int, length: int, body: bytes = b"x", bits: int = 8) -> bytes:
    table = struct.pack(f"<BBBB{len(dims)}II", 4, 0, bits, len(dims), *dims, length)
    return reseal(b"TSFL\x01\x01\x01\x00" + table + body)


@pytest.mark.parametrize("dims", [(2**28 + 1,), (2**14, 2**14 + 1), (2**32 - 1,) * 4, (2**16,) * 4])
def test_a_few_coded_bytes_cannot_claim_to_be_an_enormous_array(dims: tuple[int, ...]) -> None:
    tracemalloc.start()
    try:
        for refused in (lambda frame: read_frame(frame, Kind.ACTIVATIONS), measure):
            with pytest.raises(FrameError, match=r"claim to decode to .* allowed: 268435456") as caught:
                refused(forged_coded(*dims, length=1))
            assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert read_frame(forged_coded(2**14, 2**14, length=1), Kind.ACTIVATIONS)[0].values.tolist() == [ord("x")]


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (forged_coded(3, length=0, body=b""), "1 to 2.32 - 1 bytes, given: 0"),
        (forged_coded(3, length=2**32 - 1), "claims 4294967319 bytes, given: 25 bytes"),
        (forged_coded(3, length=2), "claims 26 bytes"),
        (forged_coded(0, length=1), "dimensions are 1 to"),
        (forged_coded(3, length=1, bits=7), "coded section cannot have 7 bits"),
        (forged_coded(1, length=1)[:14], "cut short in the table entry"),
        (forged_coded(1, length=1)[:18], "cut short in the table entry"),
        (b"", "cut short: 0 bytes"),
        (b"PK\x03\x04 and so on", "not a frame"),
        (reseal(b"TSFL\x02" + FRAME[5:-4]), "version 2 cannot be read; allowed: 1"),
        (reseal(b"TSFL\x01\x09" + FRAME[6:-4]), "unknown frame kind 9; allowed: 1 .activations., 2"),
        (reseal(b"TSFL\x01\x01\x00\x00"), "no sections"),
        (b"TSFL\x01\x01\xff\xff" + FRAME[8:], "section"),
        (FRAME + b"\0", "claims"),
        (FRAME[:-1] + bytes([FRAME[-1] ^ 1]), "checksum"),
        (forged_header(0, 3), "dimensions are 1 to"),
        (forged_header(1, 1, 1, 1, 1, body=b"\0"), "at most 4 dimensions"),
        (forged_header(1, bits=0), "0 bits"),
        (forged_header(1, bits=17, body=b"\0\0\0"), "17 bits"),
        (forged_header(1, code=2, bits=8, body=b"\0"), "float16 section cannot have 8 bits"),
        (forged_header(1, code=3, bits=16, body=b"\0\0"), "float32 section cannot have 16 bits"),
        (forged_header(1, code=7, body=b"\0"), "unknown format 7; allowed: 1"),
        (forged_header(1, flags=2, body=b"\0"), "unknown flags 2"),
        (forged_header(3, bits=1, body=b"\xe1"), "padding bits"),
    ],
)
def test_each_refusal_says_why_in_one_line(frame: bytes, words: str) -> None:
    with pytest.raises(FrameError, match=words) as caught:
        read_frame(frame, Kind.ACTIVATIONS)
    assert "\n" not in str(caught.value)


def test_another_kind_is_refused() -> None:
    with pytest.raises(FrameError, match="expected a frame of labels, given: activations"):
        read_frame(FRAME, Kind.LABELS)


def test_bytes_do_not_know_what_they_mean() -> None:
    root = Path(tsflora.wire.__file__).parent
    allowed = {"tsflora.errors", "tsflora.wire"}
    for path in root.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = {".".join(name.split(".")[:2]) for name in names if name.split(".")[0] == "tsflora"}
            assert ours <= allowed, path.name
