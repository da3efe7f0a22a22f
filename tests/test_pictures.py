"""The lecture's pictures: what a map shows, what a frame's fields say, and the gradient's way back by hand."""

import itertools
import struct

import numpy as np
import pytest
import torch
from drawn import bars, xs, ys
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from numpy.testing import assert_array_equal

from tsflora.analysis.tour import anatomy, pictures
from tsflora.compression import (
    Kind,
    Section,
    Seen,
    TensorCodec,
    Tokens,
    measure,
    quantizers,
    token_reducers,
    write_frame,
)
from tsflora.data import to_input
from tsflora.errors import DataError, FrameError
from tsflora.seeding import torch_generator

REDUCERS = [
    {"name": "all"},
    {"name": "top_k_merge", "n_tokens": 6},
    {"name": "top_k_merge", "n_tokens": 2},
    {"name": "top_k_merge", "n_tokens": 10},
    {"name": "random", "n_tokens": 5, "merge": "none"},
    {"name": "attention_mass", "mass": 0.5},
    {"name": "attention_mass", "mass": 0.9, "merge": "none"},
]


def reduce(options: dict, seed: int = 0):
    generator = torch_generator("pictures", seed)
    tokens = torch.randn(3, 10, 4, generator=generator, requires_grad=True)
    attention = torch.rand(3, 2, 10, generator=generator).softmax(dim=2)
    return tokens, token_reducers.build(options).reduce(Seen(Tokens(tokens), attention), generator)


def frame_of(quantizer: dict, shape: tuple[int, ...] = (3, 5, 4)) -> bytes:
    codec = TensorCodec(quantizers.build(quantizer), Kind.ACTIVATIONS)
    generator = torch_generator("frame")
    return codec.encode(torch.randn(shape, generator=generator), generator)


def photo(n: int = 2) -> torch.Tensor:
    return torch.rand(n, 6, 6, 3, generator=torch_generator("photo"))


def heat(figure, panel: int) -> np.ma.MaskedArray:
    """The upper of the two layers of a panel."""
    return figure.axes[panel].images[1].get_array()


class TestPixels:
    def test_undoes_the_normalisation(self):
        images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        shown = pictures.pixels(to_input(images, 8, mean, std, "cpu"), mean, std)
        assert_array_equal((shown * 255).round().numpy().astype(np.uint8), images)

    def test_stays_in_range(self):
        shown = pictures.pixels(torch.tensor([-9.0, 0.0, 9.0]).view(1, 3, 1, 1), (0.5,) * 3, (0.5,) * 3)
        assert shown.flatten().tolist() == [0, 0.5, 1]


class TestPatchGrid:
    def test_row_by_row_from_the_top_left(self):
        assert pictures.patch_grid(torch.arange(9).view(1, 9)).tolist() == [[[0, 1, 2], [3, 4, 5], [6, 7, 8]]]

    @pytest.mark.parametrize("n_patches", [2, 8, 50])
    def test_refuses_what_is_no_square(self, n_patches):
        with pytest.raises(DataError, match=f"{n_patches} patches"):
            pictures.patch_grid(torch.zeros(1, n_patches))


class TestGradientAtPatches:
    @pytest.mark.parametrize("options", REDUCERS)
    @settings(deadline=None, max_examples=10)
    @given(seed=st.integers(0, 1000))
    def test_is_what_autograd_finds(self, options, seed):
        tokens, reduced = reduce(options, seed)
        sent = reduced.tokens.rows()
        gradient = torch.randn(sent.shape, generator=torch_generator("gradient", seed))
        sent.backward(gradient)
        padded = reduced.tokens.like(gradient).values
        torch.testing.assert_close(pictures.gradient_at_patches(padded, reduced), tokens.grad)

    @pytest.mark.parametrize("options", REDUCERS)
    def test_merged_are_those_not_kept(self, options):
        _, reduced = reduce(options)
        gone = pictures.merged(reduced)
        for row, kept in zip(gone, reduced.kept, strict=True):
            assert sorted([*row.nonzero().flatten().tolist(), *kept[kept >= 0].tolist()]) == list(range(9))


class TestMaps:
    def test_each_row_and_image_has_its_own_values(self):
        rows = {name: torch.rand(2, 9, generator=torch_generator(name)) for name in ("upper", "lower")}
        figure = pictures.patch_maps(photo(), rows, "label")
        for panel, (name, index) in enumerate([("upper", 0), ("upper", 1), ("lower", 0), ("lower", 1)]):
            assert_array_equal(heat(figure, panel), rows[name][index].view(3, 3))
        assert len({figure.axes[panel].images[1].norm for panel in range(4)}) == 1
        assert figure.axes[4].get_ylabel() == "label"

    def test_dots_mark_patches(self):
        dotted = torch.zeros(2, 9, dtype=torch.bool)
        dotted[0, 5] = True
        figure = pictures.patch_maps(photo(), {"": torch.ones(2, 9)}, "", dotted=dotted)
        (dots,) = figure.axes[0].lines
        assert (xs(dots).tolist(), ys(dots).tolist()) == ([2.5], [1.5])
        assert not xs(figure.axes[1].lines[0]).size

    @pytest.mark.parametrize("log", [False, True])
    def test_zeros_can_be_drawn(self, log):
        figure = pictures.patch_maps(photo(), {"": torch.zeros(2, 9)}, "", log=log)
        figure.draw_without_rendering()
        assert np.ma.getmaskarray(heat(figure, 0)).all() == log

    def test_covers_are_on_merged_patches_only(self):
        _, reduced = reduce({"name": "top_k_merge", "n_tokens": 6})
        figure = pictures.kept_and_merged(photo(3), {"6 tokens": reduced})
        for index in range(3):
            cover = heat(figure, index)
            assert_array_equal(np.ma.getmaskarray(cover).ravel(), ~pictures.merged(reduced)[index].numpy())
            assert cover.mean() == pytest.approx(1)  # in units of the equal share
            assert len(figure.axes[index].patches) == 5

    def test_nothing_merged_can_be_drawn(self):
        figure = pictures.kept_and_merged(photo(3), {"all": reduce({"name": "all"})[1]})
        figure.draw_without_rendering()
        assert np.ma.getmaskarray(heat(figure, 0)).all()

    def test_photos_are_named_and_not_smoothed(self):
        figure = pictures.photos(photo(), ["cat", "dog"])
        assert [axis.get_title() for axis in figure.axes] == ["cat", "dog"]
        assert {axis.images[0].get_interpolation() for axis in figure.axes} == {"nearest"}

    def test_come_back_closed(self):
        pictures.photos(photo(), ["", ""])
        anatomy.frame_bytes(frame_of({"name": "uniform", "bits": 8}))
        assert not plt.get_fignums()


class TestCodes:
    @pytest.mark.parametrize(
        ("codes", "bits"), [([7] * 9, 0), ([0, 1], 1), ([0, 1, 2, 3] * 5, 2), ([0, 0, 0, 255], 0.811)]
    )
    def test_entropy(self, codes, bits):
        assert pictures.entropy_bits(np.array(codes, np.uint8)) == pytest.approx(bits, abs=1e-3)

    @pytest.mark.parametrize(
        ("share", "levels"), [(0.1, [4]), (0.5, [4]), (0.51, [1, 4]), (0.8, [1, 4]), (1.0, [1, 4, 9])]
    )
    def test_busiest_levels(self, share, levels):
        codes = np.array([4] * 5 + [1] * 3 + [9] * 2, np.uint8)
        assert pictures.busiest_levels(codes, share).tolist() == levels

    def test_histogram_counts_every_entry_once(self):
        codes = Section.codes(np.array([[0, 0, 3], [3, 3, 2]], np.uint8), 2)
        axis = pictures.code_histogram(codes, -1.0, 2.0, share=0.5).axes[0]
        heights = {bar.get_x() + 0.5: bar.get_height() for bar in bars(axis)}
        legend = axis.get_legend()
        assert legend is not None
        assert heights == pytest.approx({0: 100 / 3, 1: 0, 2: 100 / 6, 3: 50})
        assert [text.get_text()[:8] for text in legend.get_texts()] == ["1 levels", "3 levels"]

    def test_values_stand_above_codes(self):
        figure = pictures.code_histogram(Section.codes(np.arange(4, dtype=np.uint8), 2), -1.0, 2.0)
        (upper,) = figure.axes[0].child_axes
        figure.draw_without_rendering()
        assert upper.get_xlim() == pytest.approx((-1.5, 2.5))

    def test_errors(self):
        axis = pictures.error_histogram(torch.tensor([[-0.99, 0.01], [0.01, 0.99]])).axes[0]
        assert sum(bar.get_height() * bar.get_width() for bar in bars(axis)) == pytest.approx(1)


QUANTIZERS = [
    {"name": "float32"},
    {"name": "float16"},
    {"name": "uniform", "bits": 8},
    {"name": "uniform", "bits": 3, "variant": "magnitude", "range": "token"},
    {"name": "entropy_coded", "quantizer": {"name": "rotated", "bits": 4}},
]


class TestFrame:
    @pytest.mark.parametrize("quantizer", QUANTIZERS)
    def test_fields_cover_the_frame_and_split_it_as_measured(self, quantizer):
        frame = frame_of(quantizer)
        fields = anatomy.frame_fields(frame)
        assert fields[0].start == 0
        assert fields[-1].stop == len(frame)
        assert all(one.stop == next_.start for one, next_ in itertools.pairwise(fields))
        payload = sum(field.stop - field.start for field in fields if field.part == "payload")
        assert payload == measure(frame).payload_bytes

    @pytest.mark.parametrize("quantizer", QUANTIZERS)
    def test_meanings_are_what_the_bytes_say(self, quantizer):
        frame = frame_of(quantizer)
        numbers = {"version", "sections", "bits", "dims", "size", "length", "CRC-32"}
        read = 0
        for field in anatomy.frame_fields(frame):
            if field.name in numbers:
                read += 1
                value = int.from_bytes(frame[field.start : field.stop], "little")
                assert int(field.meaning.replace(",", ""), 0) == value, field
        assert read >= 8

    def test_names_and_ranges(self):
        frame = frame_of({"name": "uniform", "bits": 8})
        fields = anatomy.frame_fields(frame)
        meanings = [field.meaning for field in fields if field.name in ("magic", "kind", "format", "flags")]
        assert meanings == ["TSFL", "activations", "packed", "payload", "float32", "side"]
        (ranges,) = (field for field in fields if field.part == "ranges")
        assert ranges.meaning == "{:.3g} to {:.3g}".format(*struct.unpack("<2f", frame[ranges.start : ranges.stop]))

    def test_refuses_a_damaged_frame(self):
        frame = bytearray(frame_of({"name": "float32"}))
        frame[-9] ^= 1
        with pytest.raises(FrameError, match="checksum"):
            anatomy.frame_fields(bytes(frame))

    def test_bars_are_to_scale(self):
        frame = frame_of({"name": "uniform", "bits": 8})
        whole, rest = anatomy.frame_to_scale(frame).axes
        assert sum(bar.get_width() for bar in bars(whole)) == len(frame) == whole.get_xlim()[1]
        assert sum(bar.get_width() for bar in bars(rest)) == measure(frame).header_bytes

    def test_hex_shows_every_byte_but_those_of_long_bodies(self):
        frame = write_frame(Kind.LABELS, [Section.codes(np.arange(20, dtype=np.uint8), 8)])
        texts = [text.get_text() for text in anatomy.frame_bytes(frame, at_most=6).axes[0].texts]
        shown = [text for text in texts if len(text) == 2 and set(text) <= set("0123456789abcdef")]
        sizes = {field.name: field.meaning for field in anatomy.frame_fields(frame)}
        shown = [text for text in shown if text not in (sizes["size"],)]
        assert "… and 14 more bytes" in texts
        assert "".join(shown) == (frame[:22] + frame[-4:]).hex()


class TestByteBars:
    def test_stack_to_the_totals(self):
        sent = {"up": {"activations": 1024, "labels": 512}, "down": {"gradients": 2048}}
        figure = anatomy.byte_bars(sent)
        widths = [0.0, 0.0]
        for bar in bars(figure.axes[0]):
            widths[round(bar.get_y() + bar.get_height() / 2)] += bar.get_width()
        assert widths == [1.5, 2.0]
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["activations", "labels", "gradients"]
