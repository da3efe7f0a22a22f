"""Entropy coding: lossless, close to what the model allows, the same on every machine, and safe with foreign bytes."""

import hashlib
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tsflora.errors import FrameError
from tsflora.wire.bells import SHAPES, Bells, fit_bells
from tsflora.wire.bits import code_dtype
from tsflora.wire.entropy import decode_codes, decode_columns, encode_codes, encode_columns


def bell_shaped(rows: int, columns: int, bits: int, spread: float = 0.05, seed: int = 0) -> np.ndarray:
    """Codes with another mean and scale in each column."""
    rng = np.random.default_rng(seed)
    centres, scales = rng.uniform(0.3, 0.7, columns), spread * rng.uniform(0.5, 2, columns)
    values = centres + scales * rng.standard_normal((rows, columns))
    return np.rint(values * (2**bits - 1)).clip(0, 2**bits - 1).astype(code_dtype(bits))


@st.composite
def code_arrays(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    bits = draw(st.integers(1, 16))
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 6)))
    highest = draw(st.integers(0, 2**bits - 1))
    codes = draw(hnp.arrays(code_dtype(bits), shape, elements=st.integers(0, highest), fill=st.integers(0, highest)))
    return codes, bits


@settings(deadline=None, max_examples=300)
@given(code_arrays())
def test_codes_come_back_and_cost_at_most_two_bytes_more_than_packed(drawn: tuple[np.ndarray, int]) -> None:
    codes, bits = drawn
    body = encode_codes(codes, bits)
    decoded = decode_codes(body, codes.shape, bits)
    assert np.array_equal(decoded, codes)
    assert decoded.dtype == code_dtype(bits)
    assert len(body) <= 2 + math.ceil(codes.size * bits / 8)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8, 10, 16])
def test_length_is_near_the_entropy(bits: int) -> None:
    codes = bell_shaped(2000, 48, bits)
    low = max(bits - 8, 0)  # of finer codes nearly every one is another, so that a sample says nothing of their entropy
    counts = [np.unique(column >> low, return_counts=True)[1] / len(column) for column in codes.T]
    entropy = low + sum(-(shares * np.log2(shares)).sum() for shares in counts) / len(counts)
    body = encode_codes(codes, bits)
    assert body[1] == 2
    assert 8 * len(body) / codes.size < entropy + 0.08
    assert np.array_equal(decode_codes(body, codes.shape, bits), codes)


@pytest.mark.parametrize(
    ("codes", "bits", "how"),
    [
        (bell_shaped(400, 6, 8), 8, 2),
        (bell_shaped(400, 1, 8), 8, 1),
        (bell_shaped(15, 40, 8), 8, 1),
        (np.random.default_rng(0).integers(0, 256, (50, 3)).astype(np.uint8), 8, 0),
        (np.zeros((1, 1), np.uint8), 1, 0),
        (np.full((400, 6), 7, np.uint8), 8, 1),
    ],
    ids=["columns differ", "one column", "few rows", "uniform", "one code", "constant"],
)
def test_the_shortest_way_is_taken(codes: np.ndarray, bits: int, how: int) -> None:
    assert encode_codes(codes, bits)[1] == how


def test_a_constant_costs_next_to_nothing() -> None:
    codes = np.full((2000, 192), 200, np.uint8)
    body = encode_codes(codes, 8)
    assert len(body) < 60
    assert np.array_equal(decode_codes(body, codes.shape, 8), codes)


@settings(deadline=None, max_examples=60)
@given(
    codes=hnp.arrays(np.uint8, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.integers(0, 7)),
    seed=st.integers(0, 2**32),
)
def test_the_coder_is_within_its_words_of_the_model(codes: np.ndarray, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 1000, (codes.shape[1], 8))
    words = encode_columns(codes, weights)
    shares = weights / weights.sum(axis=1, keepdims=True)
    ideal = -np.log2(shares[np.arange(codes.shape[1]), codes]).sum()
    assert 8 * len(words) <= ideal * 1.001 + 64
    assert np.array_equal(decode_columns(words, len(codes), weights), codes)


# --- models


def test_weights_are_what_plain_ieee_arithmetic_gives() -> None:
    """One operation after the other in Python's floats: no vector unit or order of summation can change a table."""
    for shape in SHAPES:
        bells = Bells(shape, np.array([0, 12345, 40000, 65535]), np.array([0, 77, 120, 255]))
        for bits in (1, 3, 8):
            found = bells.weights(2**bits)
            for bell, (location, scale) in enumerate(zip(bells.locations.tolist(), bells.scales.tolist(), strict=True)):
                width = (16 + scale % 16) * 2.0 ** (scale // 16 - 8)
                powers = []
                for code in range(2**bits):
                    offset = (code - location / (65536 // 2**bits)) / width
                    power = offset * offset / (2 ** (shape + 1) - 1) + 1
                    for _ in range(shape):
                        power = power * power
                    powers.append(power)
                assert found[bell].tolist() == [1 + math.floor(min(powers) / power * 2**20) for power in powers]


def test_bells_fit_what_they_are_drawn_from() -> None:
    rng = np.random.default_rng(0)
    draws = {4: rng.standard_normal(50_000), 1: rng.standard_t(3, 50_000)}
    for shape, values in draws.items():
        codes = np.rint(100 + 9 * values).clip(0, 255).astype(int)
        bells = fit_bells(np.bincount(codes, minlength=256)[None])
        assert bells.shape == shape
        assert bells.locations[0] / 256 == pytest.approx(100, abs=0.3)
        scale = int(bells.scales[0])
        assert (16 + scale % 16) * 2.0 ** (scale // 16 - 8) == pytest.approx(9, rel=0.08)


@pytest.mark.parametrize("bits", range(1, 9))
def test_any_code_can_be_coded_under_any_bells(bits: int) -> None:
    codes = np.arange(2**bits, dtype=np.uint8).repeat(3)[:, None].repeat(4, axis=1)
    for shape in SHAPES:
        weights = Bells(shape, np.array([0, 9, 30000, 65535]), np.array([0, 255, 3, 100])).weights(2**bits)
        assert weights.min() >= 1
        assert np.array_equal(decode_columns(encode_columns(codes, weights), len(codes), weights), codes)


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (4, "40b901de31a908f5760f9dc6ef3726af0e22de2801c2659cc274093ed6cf95f5"),
        (8, "fd2dc25a352f91b9358c246a6d07881e08357d4bf26f1101c68b768077a728d0"),
        (12, "0593f5d3d14ef10d672cd8ba20413a71835e8dfee3c34d80b9d1a1861f8c9b2d"),
    ],
)
def test_golden_bodies(bits: int, expected: str) -> None:
    steps = (np.arange(1, 6001, dtype=np.uint64) * np.uint64(2654435761)) % np.uint64(2**32)
    triangular = (steps[::2] + steps[1::2]) >> np.uint64(33 - bits)
    codes = triangular.astype(code_dtype(bits)).reshape(500, 6) >> np.arange(6, dtype=np.uint8) % 3
    assert hashlib.sha256(encode_codes(codes.astype(code_dtype(bits)), bits)).hexdigest() == expected


# --- damage

BODIES = [
    (encode_codes(codes, bits), codes.shape, bits)
    for codes, bits in [
        (bell_shaped(60, 5, 8), 8),
        (bell_shaped(60, 5, 3), 3),
        (bell_shaped(60, 5, 12), 12),
        (bell_shaped(12, 9, 8), 8),
        (np.arange(60, dtype=np.uint8).reshape(12, 5) % 8, 3),
    ]
]


def words_of(body: bytes, shape: tuple[int, int], bits: int) -> int:
    """Where the words begin."""
    if body[1] == 0:
        return len(body)
    bells = 1 + 3 * (shape[1] if body[1] == 2 else 1)
    return 2 + bells + (-(-shape[0] * shape[1] * (bits - 8) // 8) if bits > 8 else 0)


@pytest.mark.parametrize(("body", "shape", "bits"), BODIES, ids=["8 bits", "3 bits", "12 bits", "one model", "packed"])
def test_less_or_more_than_was_written_is_refused(body: bytes, shape: tuple[int, int], bits: int) -> None:
    at = words_of(body, shape, bits)
    for length in (*range(at), *range(at + 1, len(body), 4)):  # whole words may be what other codes are coded to
        with pytest.raises(FrameError) as caught:
            decode_codes(body[:length], shape, bits)
        assert "\n" not in str(caught.value)
    one = b"\1\0\0\0"
    for more in (body + b"\0", body + one, body[:at] + one + body[at:], body + bytes(4), body + body):
        with pytest.raises(FrameError):
            decode_codes(more, shape, bits)


@settings(deadline=None, max_examples=400)
@given(data=st.data())
def test_damaged_bodies_are_refused_or_are_other_codes(data: st.DataObject) -> None:
    """The frame's checksum is what finds damage; here nothing may crash, or take other than the shape's time."""
    body, shape, bits = data.draw(st.sampled_from(BODIES))
    damaged = bytearray(body)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=5)) or b"\0"
    try:
        codes = decode_codes(bytes(damaged), shape, bits)
    except FrameError:
        return
    assert (codes.shape, codes.dtype) == (shape, code_dtype(bits))
    assert int(codes.max()) < 2**bits


@settings(deadline=None, max_examples=300)
@given(words=st.binary(max_size=24), seed=st.integers(0, 100))
def test_words_that_are_accepted_are_what_their_codes_are_coded_to(words: bytes, seed: int) -> None:
    weights = np.random.default_rng(seed).integers(1, 50, (2, 4))
    for rows in (1, 5, 12):
        try:
            codes = decode_columns(words, rows, weights)
        except FrameError:
            continue
        assert encode_columns(codes, weights) == words


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\x08\x03" + bytes(40), "cannot have models of sort 3"),
        (b"\x08\x02" + bytes(40), "cannot have models of sort 2"),
        (b"\x08\x01\x03\0\0\0", "unknown shape 3 of a model; allowed: 1, 2, 4"),
        (b"\x08\x01\x01\0\0", "need 4 bytes beside the words, given: 3"),
        (b"\x08\x01\x01\0\0\0\1", "words of 4 bytes, given: 1"),
        (b"\x08\x01\x01\0\0\0" + bytes(4), "no coded codes"),
        (b"\x08\x00\x01", "12 codes of 8 bits fill 12 bytes, given: 1"),
        (b"\x07\x00" + bytes(12), "codes of 8 bits are expected, given: 7 bits"),
        (b"\x08", "cut short: 1 bytes"),
        (b"", "cut short: 0 bytes"),
    ],
)
def test_each_refusal_says_why_in_one_line(body: bytes, words: str) -> None:
    with pytest.raises(FrameError, match=words) as caught:
        decode_codes(body, (4, 3), 8)
    assert "\n" not in str(caught.value)


def test_tables_do_not_outgrow_their_frame() -> None:
    """256 table entries for three bytes: a body of a megabyte must not ask for gigabytes."""
    columns = 2**18
    body = b"\x08\x02\x01" + bytes(3 * columns)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match="cannot have models of sort 2"):
            decode_codes(body, (16, columns), 8)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [3, 8, 12])
def test_a_code_that_does_not_fit_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"does not fit in {bits} bits"):
        encode_codes(np.array([[0, 2**bits]], np.uint16), bits)
