"""The baselines that hand images over: what arrives, what it costs, and that batches come in SFLora's order."""

import contextlib
import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from methods import CENTRAL
from PIL import Image

from tsflora.compression import JpegImages, Kind, RawImages, Section, encode_labels, measure, read_frame, write_frame
from tsflora.data import ImageClassification
from tsflora.errors import FrameError
from tsflora.experiment import run
from tsflora.experiment import start as start_run
from tsflora.federation import Message, participants_of


def start(settings, method):
    return start_run(small_config(method), settings)


def train(run_, rounds):
    terms = run_.terms
    for round_ in range(1, rounds + 1):
        yield from run_.train_round(round_, participants_of(terms.training, terms.dataset, terms.seed, round_))


def pictures(n=3, height=9, width=7):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_raw_images_arrive_as_they_are_at_a_byte_a_channel():
    images = pictures()
    frame = RawImages().encode(images)
    assert np.array_equal(RawImages().decode(frame, images.shape), images)
    assert measure(frame).payload_bytes == images.size


def test_jpeg_images_arrive_as_pillow_decodes_them():
    images, codec = pictures(), JpegImages(quality=75)
    frame = codec.encode(images)
    files = [jpeg_file(image, quality=75) for image in images]
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files])
    assert np.array_equal(codec.decode(frame, images.shape), expected)
    assert not np.array_equal(expected, images)
    assert measure(frame).payload_bytes == sum(2 + len(file) for file in files)
    assert len(JpegImages(quality=20).encode(images)) < len(frame)


@pytest.mark.parametrize("codec", [RawImages(), JpegImages(quality=75)])
def test_images_of_another_shape_are_refused(codec):
    frame = codec.encode(pictures())
    for shape in [(2, 9, 7, 3), (3, 7, 9, 3)]:
        with pytest.raises(FrameError, match="expected"):
            codec.decode(frame, shape)


def jpeg_file(image, **options):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpeg_frame(lengths, content):
    return write_frame(Kind.IMAGES, [Section.codes(np.array(lengths, np.uint16), 16), Section.coded(content)])


def test_a_frame_of_small_jpeg_images_has_the_bytes_it_always_had():
    images = pictures()
    files = [jpeg_file(image, quality=75) for image in images]
    frame = JpegImages(quality=75).encode(images)
    assert frame == jpeg_frame([len(file) for file in files], b"".join(files))
    # prefix, two entries of one dimension or one length, 16-bit lengths, files, checksum
    assert len(frame) == 8 + 8 + 8 + 2 * 3 + sum(map(len, files)) + 4


def test_a_jpeg_file_may_be_longer_than_16_bits_can_say():
    images, codec = pictures(2, 384, 384), JpegImages(quality=95)
    images[1] = 0
    files = [jpeg_file(image, quality=95) for image in images]
    assert len(files[0]) > 2**16 > len(files[1])
    frame = codec.encode(images)
    assert len(frame) == 8 + 12 + 8 + 4 * 2 + sum(map(len, files)) + 4
    assert np.array_equal(codec.decode(frame, images.shape)[0], np.asarray(Image.open(io.BytesIO(files[0]))))


@pytest.mark.parametrize("length", [2**16 - 1, 2**16])
def test_lengths_are_as_wide_as_the_longest_file_needs(length, monkeypatch):
    file = jpeg_file(pictures()[0])
    file += b"\0" * (length - len(file))  # what follows the end of the image is no part of it
    monkeypatch.setattr(JpegImages, "_file", lambda *_: file)
    images = pictures(2)
    frame = JpegImages(quality=75).encode(images)
    assert read_frame(frame, Kind.IMAGES)[0].layout.shape == ((2,) if length < 2**16 else (2, 2))
    assert len(JpegImages(quality=75).decode(frame, images.shape)) == 2


@pytest.mark.parametrize(
    ("lengths", "content", "line"),
    [
        ([4], b"oops", "not a readable JPEG .not a JPEG file"),
        ([3], b"oops", "3 bytes are announced, given: 4"),
        ([2, 2], b"oops", "1 JPEG"),
        ([[0, 4]], b"oops", "shorter than 2.16 bytes have lengths of one 16-bit code"),
        ([[1, 4]], b"oops", "65540 bytes are announced, given: 4"),
        ([[65535, 65535]], b"oops", "4294967295 bytes are announced, given: 4"),
        ([0], b"oops", "0 bytes are announced, given: 4"),
    ],
)
def test_a_damaged_jpeg_is_one_clear_line(lengths, content, line):
    with pytest.raises(FrameError, match=line) as caught:
        JpegImages(quality=75).decode(jpeg_frame(lengths, content), (1, 9, 7, 3))
    assert "\n" not in str(caught.value)


def resized(file, height, width):
    """The file with another size in the header of its frame."""
    place = file.index(b"\xff\xc0") + 5
    return file[:place] + struct.pack(">HH", height, width) + file[place + 4 :]


@pytest.mark.parametrize("size", [(65535, 65535), (12000, 12000), (1, 65535), (10, 7), (0, 0)])
def test_a_jpeg_that_claims_another_size_is_refused_before_it_is_decoded(size):
    file = resized(jpeg_file(pictures()[0]), *size)
    frame = jpeg_frame([len(file)], file)
    tracemalloc.start()
    try:
        with pytest.raises(FrameError, match=r"expected a baseline JPEG image|not a readable JPEG") as caught:
            JpegImages(quality=75).decode(frame, (1, 9, 7, 3))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_jpeg_of_many_scans_is_refused():
    file = jpeg_file(pictures()[0], progressive=True)
    with pytest.raises(FrameError, match="expected a baseline JPEG"):
        JpegImages(quality=75).decode(jpeg_frame([len(file)], file), (1, 9, 7, 3))


EXIF = b"\xff\xe1\x00\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x1a\x01\x05\0\x01\0\0\0\xff\xff\xff\xff"


@example_settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_forged_jpeg_files_are_refused_or_are_images_of_the_right_shape(data):
    """The checksum is right: whatever the parser of foreign bytes makes of them, no other error leaves it."""
    file = bytearray(jpeg_file(pictures()[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(2, len(file) - 1))
        new = data.draw(
            st.one_of(st.binary(max_size=6), st.sampled_from([EXIF, b"\xff\xc2", b"\xff\xda", b"\xff\xd9"]))
        )
        file[place : place + data.draw(st.integers(0, 6))] = new
    with contextlib.suppress(FrameError):
        images = JpegImages(quality=75).decode(jpeg_frame([len(file)], bytes(file)), (1, 9, 7, 3))
        assert (images.shape, images.dtype) == ((1, 9, 7, 3), np.uint8)


def order_of(settings, method, monkeypatch):
    """(device, pixels) of every training batch, in the order of optimiser steps."""
    seen = []
    original = ImageClassification.inputs

    def spy(self, samples, spec, device, augment=None):
        seen.append(samples.tobytes())
        return original(self, samples, spec, device, augment)

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassification, "inputs", spy)
        devices = [step.device for step in train(start(settings, method), rounds=2)]
    return list(zip(devices, seen, strict=True))


def test_central_training_sees_the_batches_of_sflora_in_its_order(settings, monkeypatch):
    split, raw = (order_of(settings, m, monkeypatch) for m in ({"algorithm": "sflora"}, CENTRAL["central_raw"]))
    assert raw == split
    jpeg = order_of(settings, CENTRAL["central_jpeg"], monkeypatch)
    assert [device for device, _ in jpeg] == [device for device, _ in split]
    assert all(ours[1] != theirs[1] for ours, theirs in zip(jpeg, split, strict=True))


def test_every_image_travels_once_and_nothing_comes_back(settings):
    config = small_config(CENTRAL["central_raw"])
    record = run(config, settings)
    first, seen = record.history[0], set[int]()
    assert first.downlink_bytes == {}
    assert set(first.uplink_bytes) == {"images", "labels", "headers"}
    for entry in record.history:
        new = set(entry.participants) - seen
        seen |= new
        pixels = sum(record.shard_sizes[device] for device in new) * 28 * 28 * 3
        assert entry.uplink_bytes.get("images", 0) == pixels


def test_the_codec_is_in_the_judges_path(settings):
    run_ = start(settings, {"algorithm": {"name": "central", "image": "jpeg", "quality": 1}})
    on, off = run_.evaluate()
    images = run_.side.test.images
    received = torch.from_numpy(run_.terms.plan.images.forward(images)).float()
    assert (received - torch.from_numpy(images)).abs().mean() > 5
    assert (on, off) != (off, on)


def test_a_server_takes_only_what_its_method_sends(settings, monkeypatch):
    central = start(settings, CENTRAL["central_raw"])
    device = central.fleet.device(0)
    labels = encode_labels(torch.zeros(2, dtype=torch.int64), central.terms.n_classes)
    sent = device.upload().frames
    answers = [
        ({"images": sent["images"]}, "device 0 sent no 'labels'"),
        ({**sent, "labels": labels}, r"expected raw images of shape \(2, 28, 28, 3\)"),
        ({**sent, "images": sent["images"][:-1]}, "bytes"),
    ]
    for frames, line in answers:
        monkeypatch.setitem(device._verbs, "upload", lambda _, frames=frames: Message("samples", frames))
        with pytest.raises(FrameError, match=line):
            central.receive(0)
    assert not central.images
