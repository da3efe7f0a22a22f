"""Quantizers: the edges, the arithmetic by hand, and the statistics of stochastic rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import binom

from tsflora.compression.quantizers import Quantizer, quantizers
from tsflora.compression.rotated import _block, _hadamard, _signs
from tsflora.errors import FrameError, NumericsError
from tsflora.seeding import torch_generator
from tsflora.wire import Format, Layout, Section

FALSE_ALARM = 1e-6
"""Chance that a correct quantizer would fail one of the statistical tests, were its seed not fixed."""


def uniform(bits: int, **options: object) -> Quantizer:
    return quantizers.build({"name": "uniform", "bits": bits, **options})


def through(quantizer: Quantizer, x: torch.Tensor, seed: object = "q") -> torch.Tensor:
    return quantizer.dequantize(quantizer.quantize(x, torch_generator(seed)))


@pytest.mark.parametrize("value", [0.0, -0.0, 0.1, -1e-30, 3e38, 1e-45])
@pytest.mark.parametrize("range_", ["tensor", "token", "channel"])
@pytest.mark.parametrize("variant", ["signed", "magnitude"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_constant_is_sent_exactly(value: float, range_: str, variant: str, rounding: str) -> None:
    for shape in [(), (1,), (3, 2, 5)]:
        x = torch.full(shape, value)
        assert torch.equal(through(uniform(1, range=range_, variant=variant, rounding=rounding), x), x)


def test_one_bit_sends_the_two_ends() -> None:
    x = torch.tensor([-1.0, 3.0, 1.5, 0.5])
    assert through(uniform(1, rounding="nearest"), x).tolist() == [-1.0, 3.0, 3.0, -1.0]
    assert set(through(uniform(1), x.repeat(50)).tolist()) == {-1.0, 3.0}


def test_a_range_too_narrow_for_a_step_sends_its_lower_end() -> None:
    for x in (torch.tensor([0.0, 1e-45]), torch.full((2,), 7.0)):  # the step underflows, or there is none
        codes, _ = uniform(8).quantize(x, torch_generator("q"))
        assert codes.values.tolist() == [0, 0]


def test_a_rounded_down_step_does_not_wrap_the_highest_code() -> None:
    smallest = 2.0**-149
    x = torch.tensor([0.0, 382 * smallest])  # 382 / 255 rounds down to a step of 1 smallest number
    for rounding in ("nearest", "stochastic"):
        codes, _ = uniform(8, rounding=rounding).quantize(x, torch_generator("q"))
        assert codes.values.tolist() == [0, 255]


def test_levels_by_hand() -> None:
    # Two bits over [-1, 2]: levels -1, 0, 1, 2.
    x = torch.tensor([-1.0, -0.6, 0.2, 0.9, 1.4, 2.0])
    codes, ranges = uniform(2, rounding="nearest").quantize(x, torch_generator("q"))
    assert codes.values.tolist() == [0, 0, 1, 2, 2, 3]
    assert ranges.values.tolist() == [[-1.0, 2.0]]
    assert ranges.layout.side


def test_what_is_on_a_level_stays_there() -> None:
    x = torch.arange(-8, 8, dtype=torch.float32).reshape(4, 4)
    assert torch.equal(through(uniform(4), x), x)


def test_magnitude_by_hand() -> None:
    # |x| spans [1, 4]: levels 1, 2, 3, 4, and the sign apart.
    x = torch.tensor([-1.0, 2.2, -2.8, 4.0, -4.0])
    quantizer = uniform(2, variant="magnitude", rounding="nearest")
    magnitudes, signs, ranges = quantizer.quantize(x, torch_generator("q"))
    assert magnitudes.values.tolist() == [0, 1, 2, 3, 3]
    assert signs.values.tolist() == [1, 0, 1, 0, 1]
    assert signs.layout == Layout((5,), Format.PACKED, 1)
    assert ranges.values.tolist() == [[1.0, 4.0]]
    assert quantizer.bits_per_entry == 3
    assert through(quantizer, x).tolist() == [-1.0, 2.0, -3.0, 4.0, -4.0]


def test_range_of_each_token_and_of_each_channel() -> None:
    x = torch.tensor([[[0.0, 1.0, 7.0], [10.0, 20.0, 80.0]]])
    per_token = uniform(3, range="token", rounding="nearest").quantize(x, torch_generator("q"))
    assert per_token[-1].values.tolist() == [[0.0, 7.0], [10.0, 80.0]]
    assert per_token[0].values.tolist() == [[[0, 1, 7], [0, 1, 7]]]
    per_channel = uniform(3, range="channel", rounding="nearest").quantize(x, torch_generator("q"))
    assert per_channel[-1].values.tolist() == [[0.0, 10.0], [1.0, 20.0], [7.0, 80.0]]
    assert per_channel[0].values.tolist() == [[[0, 0, 0], [7, 7, 7]]]


@pytest.mark.parametrize(("range_", "count"), [("tensor", 1), ("token", 6), ("channel", 5)])
def test_ranges_are_counted_as_side_information(range_: str, count: int) -> None:
    assert uniform(4, range=range_).layouts((2, 3, 5))[-1] == Layout((count, 2), Format.FLOAT32, 32, side=True)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("variant", ["signed", "magnitude"])
def test_stochastic_rounding_is_unbiased(bits: int, variant: str) -> None:
    """Lemma 2, E[Q(z)] = z: the number of draws that go up is binomial. Exact test, Bonferroni over entries."""
    draws, fractions = 20_000, torch.tensor([0.05, 0.25, 0.5, 0.75, 0.9])
    levels = 2**bits - 1
    step = 2.0**-6  # a power of two and few digits, so that float32 holds every position exactly
    lower = 1 + step * torch.tensor([0, levels // 2, levels - 1]).repeat_interleave(len(fractions))
    entries = lower + step * fractions.repeat(3)
    row = torch.cat([entries, torch.tensor([1.0, 1 + step * levels])])
    if variant == "magnitude":
        row[::2] *= -1
    restored = through(uniform(bits, variant=variant), row.expand(draws, -1), ("unbiased", bits))
    assert torch.equal(restored[:, -2:], row[-2:].expand(draws, 2))  # the ends of the range are exact
    up = (restored[:, :-2].abs() > entries).sum(dim=0).numpy()
    share = ((entries - lower) / step).double().numpy()
    p = 2 * np.minimum(binom.cdf(up, draws, share), binom.sf(up - 1, draws, share))
    assert p.min() > FALSE_ALARM / len(p)


@pytest.mark.parametrize("bits", [1, 3, 8, 12])
def test_variance_is_within_the_bound(bits: int) -> None:
    """Lemma 2, E|Q(z) - z|^2 <= step^2 / 4. Squared errors are in [0, step^2]: Hoeffding's margin for n draws."""
    x = torch.randn(40_000, generator=torch_generator("variance"))
    step = float(x.max() - x.min()) / (2**bits - 1)
    squared = ((through(uniform(bits), x) - x) / step).double() ** 2
    assert squared.max() <= 1 + 1e-2
    assert squared.mean() <= 0.25 + np.sqrt(np.log(1 / FALSE_ALARM) / (2 * len(x)))
    if bits >= 8:  # many levels: the fraction between two of them is uniform, and the mean 1/6
        assert squared.mean() == pytest.approx(1 / 6, abs=0.02)


@settings(deadline=None, max_examples=60)
@given(
    x=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
        elements=st.floats(-1000, 1000, width=32, allow_subnormal=False),
    ),
    bits=st.integers(1, 12),
    range_=st.sampled_from(["tensor", "token", "channel"]),
    variant=st.sampled_from(["signed", "magnitude"]),
)
def test_nearest_is_off_by_half_a_step_at_most(x: np.ndarray, bits: int, range_: str, variant: str) -> None:
    tensor = torch.from_numpy(x)
    error = (through(uniform(bits, range=range_, variant=variant, rounding="nearest"), tensor) - tensor).abs()
    size = tensor.abs() if variant == "magnitude" else tensor
    rows = size.reshape(-1, x.shape[-1] if x.ndim else 1)
    dim = {"tensor": (0, 1), "token": (1,), "channel": (0,)}[range_]
    step = ((rows.amax(dim=dim, keepdim=True) - rows.amin(dim=dim, keepdim=True)) / (2**bits - 1)).expand_as(rows)
    assert (error.reshape(rows.shape) <= step / 2 + 1e-6 * float(size.abs().max())).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "options",
    [{"name": "float32"}, {"name": "float16"}, {"name": "uniform", "bits": 8}, {"name": "rotated", "bits": 4}],
)
def test_nan_and_infinity_are_refused(bad: float, options: dict) -> None:
    x = torch.zeros(2, 3)
    x[1, 1] = bad
    for extra in (
        [{}]
        if options["name"] != "uniform"
        else [{"range": r, "variant": v} for r in ("tensor", "token", "channel") for v in ("signed", "magnitude")]
    ):
        with pytest.raises(NumericsError, match=r"shape \(2, 3\).*NaN, infinity"):
            quantizers.build(options | extra).quantize(x, torch_generator("q"))


def test_what_the_format_cannot_hold_is_refused() -> None:
    with pytest.raises(NumericsError, match="65504"):
        quantizers.build("float16").quantize(torch.tensor([65520.0]), torch_generator("q"))
    with pytest.raises(NumericsError, match="too wide for float32"):
        uniform(8).quantize(torch.tensor([-3e38, 3e38]), torch_generator("q"))


def test_forward_passes_the_gradient_unchanged() -> None:
    x = torch.randn(4, 5, generator=torch_generator("x"), dtype=torch.float64, requires_grad=True)
    value = uniform(2).forward(x, torch_generator("q"))
    upstream = torch.arange(20.0).reshape(4, 5)
    value.backward(upstream)
    assert value.dtype == torch.float32
    assert not torch.equal(value, x.float())
    assert x.grad is not None
    assert torch.equal(x.grad, upstream.double())


def test_a_section_does_not_change_with_its_tensor() -> None:
    x = torch.ones(3)
    (section,) = quantizers.build("float32").quantize(x, torch_generator("q"))
    x.zero_()
    assert section.values.tolist() == [1, 1, 1]


def test_strided_input() -> None:
    x = torch.randn(6, 5, 4, generator=torch_generator("x"))[::2, :, 1:].transpose(0, 1)
    for quantizer in (uniform(6), uniform(6, range="channel"), quantizers.build("float32")):
        assert torch.equal(through(quantizer, x), through(quantizer, x.contiguous()))


# --- rotated


def rotated(bits: int, **options: object) -> Quantizer:
    return quantizers.build({"name": "rotated", "bits": bits, **options})


def tokens_with_outliers(count: int, dim: int) -> torch.Tensor:
    x = torch.randn(count, dim, generator=torch_generator("outliers", dim))
    x[:, :: max(dim // 6, 1)] *= 20
    return x


def test_rotation_by_hand() -> None:
    # Two entries are one block: their sum and their difference, signed, over the square root of 2.
    first, second = _signs(2, 0).tolist()
    x = torch.tensor([[3.0 * first, 1.0 * second], [0.0, 0.0], [-8.0 * first, 8.0 * second]])
    quantizer = rotated(2, rounding="nearest")
    codes, scales = quantizer.quantize(x, torch_generator("q"))
    assert scales.layout == Layout((3,), Format.PACKED, 16, side=True)
    largest, zero, alone = (scales.values.astype(np.uint32) << 16).view(np.float32)
    assert largest == pytest.approx(4 / np.sqrt(2), rel=2**-7)  # of 4 and 2: less than 1.494 deviations
    assert zero == 0
    assert alone == pytest.approx(16 / np.sqrt(2), rel=2**-7)  # of 0 and -16
    # Levels are -1, -1/3, 1/3 and 1 of the scale.
    assert codes.values.tolist() == [[3, 2], [2, 2], [2, 0]]
    y = np.array([[largest, largest / 3], [0, 0], [alone / 3, -alone]]) / np.sqrt(2)
    expected = np.stack([first * (y[:, 0] + y[:, 1]), second * (y[:, 0] - y[:, 1])], axis=1)
    np.testing.assert_allclose(quantizer.dequantize([codes, scales]).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(("dim", "block"), [(192, 64), (768, 256), (8, 8), (6, 2), (5, 1), (1, 1)])
def test_rotation_is_orthonormal_in_the_largest_blocks_that_fit(dim: int, block: int) -> None:
    x = torch.eye(dim)
    y = rotated(16).dequantize(rotated(16).quantize(x, torch_generator("q")))
    assert (y - x).abs().max() < 2e-4  # undone
    spread = _hadamard(x, block)
    torch.testing.assert_close(spread @ spread.T, torch.eye(dim))
    assert ((spread.abs() - block**-0.5).abs() < 1e-6).sum() == dim * block  # every entry goes to its block evenly
    assert _block(dim) == block


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rotation_gains_where_channels_stick_out(bits: int, rounding: str) -> None:
    x = tokens_with_outliers(400, 192)
    plain = through(uniform(bits, range="token", rounding=rounding), x)
    error, plain_error = ((y - x).square().mean() for y in (through(rotated(bits, rounding=rounding), x), plain))
    assert error < plain_error / 2


@pytest.mark.parametrize(("bits", "decibel"), [(1, -4.40), (2, -9.25), (3, -14.27), (4, -19.38), (5, -24.57)])
def test_nearest_is_as_good_as_uniform_levels_for_a_gaussian_can_be(bits: int, decibel: float) -> None:
    """J. Max (1960), table II; a little better where a token's 256 entries end before the levels would."""
    x = torch.randn(2000, 256, generator=torch_generator("x")) * torch.logspace(-3, 3, 2000).unsqueeze(1)
    y = through(rotated(bits, rounding="nearest"), x)
    found = 10 * np.log10(float((y - x).square().mean() / x.square().mean()))
    assert -0.6 < found - decibel < 0.1


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rotated_stochastic_rounding_is_unbiased(bits: int) -> None:
    """E[s H y^] = z: the mean of n draws is off by more than the margin with a chance of at most FALSE_ALARM.

    Every error is linear in independent roundings, each in an interval of one step of 2 scale / levels; Hoeffding for
    an entry that weighs the block's 64 roundings by 1/8 each: 2 exp(-2 n margin^2 / step^2).
    """
    draws, dim = 20_000, 64
    z = tokens_with_outliers(3, dim)
    y = through(rotated(bits), z.expand(draws, 3, dim), ("unbiased", bits))
    _, scales = rotated(bits).quantize(z, torch_generator("q"))
    step = 2 * (scales.values.astype(np.uint32) << 16).view(np.float32) / (2**bits - 1)
    margin = torch.from_numpy(step * np.sqrt(np.log(2 * z.numel() / FALSE_ALARM) / (2 * draws)))
    error = (y.double().mean(dim=0) - z).abs()
    assert (error <= margin.unsqueeze(1)).all()
    assert (error > margin.unsqueeze(1) / 100).any(), "the margin is no wider than it has to be"


def test_a_scale_covers_its_token_and_is_the_next_bfloat16() -> None:
    z = tokens_with_outliers(500, 64) * torch.logspace(-38, 36, 500).unsqueeze(1)
    largest = _hadamard(z * _signs(64, 0), 64).abs().amax(dim=1)
    _, scales = rotated(4).quantize(z, torch_generator("q"))
    sent = torch.from_numpy((scales.values.astype(np.uint32) << 16).view(np.float32))
    below = torch.from_numpy(((scales.values.astype(np.uint32) - 1) << 16).view(np.float32))
    assert (sent >= largest).all()
    assert (below < largest).all()


def test_the_seed_is_another_rotation() -> None:
    x = tokens_with_outliers(4, 64)
    sections = rotated(8, seed=1, rounding="nearest").quantize(x, torch_generator("q"))
    assert (rotated(8, seed=1).dequantize(sections) - x).abs().max() < 0.5
    assert (rotated(8, seed=2).dequantize(sections) - x).abs().max() > 5


def test_signs_are_the_same_on_every_machine() -> None:
    assert "".join("+" if sign > 0 else "-" for sign in _signs(24, 0).tolist()) == "+-+-+--+-+-+-++++-+++---"


@pytest.mark.parametrize("size", [1e-38, 1e-30, 1e30, 1e36])
def test_sizes_at_the_ends_of_float32_are_rotated_like_others(size: float) -> None:
    x = tokens_with_outliers(3, 64)
    for rounding in ("nearest", "stochastic"):
        ordinary, extreme = (through(rotated(4, rounding=rounding), each) for each in (x, x * size))
        assert (extreme / size - ordinary).norm() < 0.2 * x.norm()


def test_what_a_rotation_could_not_bring_back_is_refused() -> None:
    x = torch.zeros(2, 64)
    x[1] = 1e38
    with pytest.raises(NumericsError, match=r"shape \(2, 64\).*too large for float32"):
        rotated(8).quantize(x, torch_generator("q"))
    codes, scales = rotated(8).quantize(x / 1e30, torch_generator("q"))
    for bits in (0x7F80, 0x7FC0, 0x8001, 0xFFFF, 0x7F7F):
        scales.values[0] = bits
        with pytest.raises(FrameError, match="scale of a token must be finite and not negative"):
            rotated(8).dequantize([codes, scales])


# --- entropy coded


def coded(**inner: object) -> Quantizer:
    return quantizers.build({"name": "entropy_coded", "quantizer": inner})


INNER = [
    {"name": name, **options}
    for name, cls in quantizers.classes().items()
    for options in cls.examples
    if name in ("uniform", "rotated")
]


@settings(deadline=None, max_examples=100)
@given(
    x=hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=0, max_dims=4, max_side=20), elements=st.floats(-1000, 1000, width=32)
    ),
    inner=st.sampled_from(INNER),
    seed=st.integers(0, 2**32),
)
def test_entropy_coding_changes_nothing_of_what_arrives(x: np.ndarray, inner: dict, seed: int) -> None:
    tensor = torch.from_numpy(x)
    plain, generators = quantizers.build(inner), [torch_generator(seed), torch_generator(seed)]
    sections = coded(**inner).quantize(tensor, generators[0])
    expected = plain.forward(tensor, generators[1])
    assert torch.equal(coded(**inner).dequantize(sections), expected)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    packed = sum(layout.body_bytes for layout in plain.layouts(x.shape))
    assert sum(section.layout.body_bytes for section in sections) <= packed + 2 * len(sections)


@pytest.mark.parametrize(("bits", "at_most"), [(8, 6.05), (4, 2.1), (2, 1.1)])
def test_tokens_cost_what_their_codes_are_worth(bits: int, at_most: float) -> None:
    x = torch.randn(50, 40, 192, generator=torch_generator("x")) * torch.linspace(0.2, 1, 192)
    x[..., :4] *= 6
    for inner in ({"rounding": "nearest"}, {}):
        codes, _ = coded(name="uniform", bits=bits, **inner).quantize(x, torch_generator("q"))
        assert 8 * codes.layout.body_bytes / x.numel() < at_most
    assert coded(name="uniform", bits=bits).bits_per_entry is None


def test_coded_sections_of_another_tensor_are_refused() -> None:
    quantizer = coded(name="uniform", bits=4)
    body, ranges = quantizer.quantize(tokens_with_outliers(40, 12), torch_generator("q"))
    for shape in ((41, 12), (40, 13), (480,), (2**14, 2**14)):
        with pytest.raises(FrameError, match=r"expected a tensor of shape \(40, 12\)"):
            quantizer.dequantize([Section.coded(body.body(), shape), ranges], (40, 12))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantizer": "float32"}, "for quantizers that send packed codes, given: 'float32'"),
        ({"quantizer": {"name": "entropy_coded", "quantizer": {"name": "uniform", "bits": 4}}}, "'entropy_coded'"),
        ({"quantizer": {"name": "uniform"}}, "bits: is required"),
        ({"quantizer": {"name": "unifrom", "bits": 8}}, "did you mean 'uniform'"),
        ({}, "quantizer: is required"),
        ({"bits": 8, "quantizer": "float16"}, "packed codes"),
    ],
)
def test_what_cannot_be_entropy_coded_is_refused_in_one_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        quantizers.build({"name": "entropy_coded", **options})
    assert "\n" not in str(caught.value)


# --- foreign sections


def side(*ranges: tuple[float, float]) -> Section:
    return Section.float32(np.array(ranges, np.float32), side=True)


CODES = Section.codes(np.zeros((2, 3), np.uint8), 8)


@pytest.mark.parametrize(
    "bad", [(float("nan"), 1.0), (0.0, float("inf")), (-float("inf"), 0.0), (1.0, 0.5), (-3e38, 3e38)]
)
def test_ranges_that_no_quantizer_sends_are_refused(bad: tuple[float, float]) -> None:
    with pytest.raises(FrameError, match="range must be finite with lowest <= highest"):
        uniform(8).dequantize([CODES, side(bad)])
    with pytest.raises(FrameError, match="range must be finite"):
        uniform(8, range="token").dequantize([CODES, side((0, 1), bad)])


def test_negative_magnitudes_are_refused() -> None:
    signs = Section.codes(np.zeros((2, 3), np.uint8), 1)
    with pytest.raises(FrameError, match="for magnitudes"):
        uniform(8, variant="magnitude").dequantize([CODES, signs, side((-1, 1))])


@pytest.mark.parametrize(
    "sections",
    [
        [],
        [CODES],
        [CODES, side((0, 1)), side((0, 1))],
        [CODES, side((0, 1), (0, 1))],
        [CODES, Section.float32(np.zeros((1, 2), np.float32))],
        [CODES, Section.float16(np.zeros((1, 2), np.float16))],
        [Section.codes(np.zeros((2, 3), np.uint8), 7), side((0, 1))],
        [side((0, 1)), CODES],
    ],
)
def test_other_sections_are_refused(sections: list[Section]) -> None:
    with pytest.raises(FrameError, match="sections do not fit quantizer") as caught:
        uniform(8).dequantize(sections)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["float32", "float16"])
def test_floats_that_are_not_finite_are_refused(name: str) -> None:
    quantizer = quantizers.build(name)
    (section,) = quantizer.quantize(torch.zeros(3), torch_generator("q"))
    section.values[1] = np.inf
    with pytest.raises(FrameError, match="NaN or infinity"):
        quantizer.dequantize([section])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 0}, "greater than or equal to 1; given: 0"),
        ({"bits": 17}, "less than or equal to 16; given: 17"),
        ({}, "bits: is required"),
        ({"bits": 8, "range": "row"}, "'tensor', 'token' or 'channel'"),
        ({"bits": 8, "round": "nearest"}, "did you mean 'rounding'"),
        ({"name": "rotated", "bits": 0}, "greater than or equal to 1; given: 0"),
        ({"name": "rotated", "bits": 17}, "less than or equal to 16; given: 17"),
        ({"name": "rotated", "bits": 4, "seed": -1}, "greater than or equal to 0; given: -1"),
        ({"name": "rotated", "bits": 4, "range": "token"}, "range: unknown key"),
    ],
)
def test_wrong_options_say_what_is_allowed(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        quantizers.build({"name": "uniform", **options})
