"""The baselines that hand images over: what arrives, what it costs, and that batches come in SFLora's order."""

import io

import numpy as np
import pytest
import torch
from conftest import small_config
from methods import CENTRAL, start, train
from PIL import Image
from tsflora.federation.setup import Setup

from tsflora.compression import JpegImages, Kind, RawImages, Section, encode_labels, measure, write_frame
from tsflora.errors import FrameError
from tsflora.experiment import run


def pictures(n=3, height=9, width=7):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_raw_images_arrive_as_they_are_at_a_byte_a_channel():
    images = pictures()
    frame = RawImages().encode(images)
    assert np.array_equal(RawImages().decode(frame, images.shape), images)
    assert measure(frame).payload_bytes == images.size


def test_jpeg_images_arrive_as_pillow_decodes_them():
    images, codec = pictures(), JpegImages(75)
    frame = codec.encode(images)
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=75)
        files.append(buffer)
    expected = np.stack([np.asarray(Image.open(file)) for file in files])
    assert np.array_equal(codec.decode(frame, images.shape), expected)
    assert not np.array_equal(expected, images)
    assert measure(frame).payload_bytes == sum(2 + len(file.getvalue()) for file in files)
    assert len(JpegImages(20).encode(images)) < len(frame)


@pytest.mark.parametrize("codec", [RawImages(), JpegImages(75)])
def test_images_of_another_shape_are_refused(codec):
    frame = codec.encode(pictures())
    for shape in [(2, 9, 7, 3), (3, 7, 9, 3)]:
        with pytest.raises(FrameError, match="expected"):
            codec.decode(frame, shape)


def jpeg_frame(lengths, content):
    sections = [Section.codes(np.array(lengths, dtype=np.uint16), 16), Section.codes(np.frombuffer(content, "u1"), 8)]
    return write_frame(Kind.IMAGES, sections)


@pytest.mark.parametrize(
    ("lengths", "content", "line"),
    [
        ([4], b"oops", "not a readable JPEG"),
        ([3], b"oops", "3 bytes are announced, given: 4"),
        ([2, 2], b"oops", "1 JPEG"),
    ],
)
def test_a_damaged_jpeg_is_one_clear_line(lengths, content, line):
    with pytest.raises(FrameError, match=line) as caught:
        JpegImages(75).decode(jpeg_frame(lengths, content), (1, 9, 7, 3))
    assert "\n" not in str(caught.value)


def test_a_jpeg_that_claims_to_be_enormous_is_refused_before_it_is_decoded():
    buffer = io.BytesIO()
    Image.new("RGB", (3000, 3000)).save(buffer, "JPEG")
    content = buffer.getvalue()[:60000]
    with pytest.raises(FrameError, match="expected a JPEG image"):
        JpegImages(75).decode(jpeg_frame([len(content)], content), (1, 9, 7, 3))


def order_of(settings, method, monkeypatch):
    """(device, step, pixels) of every training batch, in the order of optimiser steps."""
    seen = []
    original = Setup.training_inputs

    def spy(self, images, round_, device, step):
        seen.append((device, step, images.tobytes()))
        return original(self, images, round_, device, step)

    with monkeypatch.context() as patch:
        patch.setattr(Setup, "training_inputs", spy)
        run_, setup = start(settings, method)
        list(train(run_, setup, rounds=2))
    return seen


def test_central_training_sees_the_batches_of_sflora_in_its_order(settings, monkeypatch):
    split, raw = (order_of(settings, m, monkeypatch) for m in ({"algorithm": "sflora"}, CENTRAL["central_raw"]))
    assert raw == split
    jpeg = order_of(settings, CENTRAL["central_jpeg"], monkeypatch)
    assert [entry[:2] for entry in jpeg] == [entry[:2] for entry in split]
    assert all(ours[2] != theirs[2] for ours, theirs in zip(jpeg, split, strict=True))


def test_every_image_travels_once_and_nothing_comes_back(settings):
    config = small_config(CENTRAL["central_raw"])
    record = run(config, settings)
    first, seen = record.history[0], set()
    assert first.downlink_bytes == {}
    assert set(first.uplink_bytes) == {"images", "labels", "headers"}
    for entry in record.history:
        new = set(entry.participants) - seen
        seen |= new
        pixels = sum(record.shard_sizes[device] for device in new) * 28 * 28 * 3
        assert entry.uplink_bytes.get("images", 0) == pixels


def test_the_codec_is_in_the_judges_path(settings):
    run_, setup = start(settings, CENTRAL["central_jpeg"])
    run_.codec.quality = 1
    on, off = run_.evaluate()
    received = torch.from_numpy(run_.codec.forward(setup.test.images)).float()
    assert (received - torch.from_numpy(setup.test.images)).abs().mean() > 5
    assert (on, off) != (off, on)


def test_a_server_takes_only_what_its_method_sends(settings):
    central, setup = start(settings, CENTRAL["central_raw"])
    labels = encode_labels(torch.zeros(2, dtype=torch.int64), setup.train.n_classes)
    with pytest.raises(FrameError, match="takes images"):
        central.server.train_step(0, b"", b"")
    with pytest.raises(FrameError, match="devices train nothing"):
        central.server.fetch_adapter(0)
    with pytest.raises(FrameError, match="devices train nothing"):
        central.server.push_adapter(0, b"")
    with pytest.raises(FrameError, match="sent 2 labels; allowed: "):
        central.server.push_images(0, RawImages().encode(setup.train.images[:2]), labels)
    federated, _ = start(settings, {"algorithm": "fed_lora"})
    with pytest.raises(FrameError, match="takes none"):
        federated.server.push_images(0, b"", b"")
