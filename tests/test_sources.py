"""Image sets and data sources: the official formats, written small, and every way in which they can be damaged."""

import gc
import gzip
import io
import json
import logging
import os
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Sequence
from functools import partial
from hashlib import md5
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tsflora.data import ImageSet, data_sources
from tsflora.data.decode import decode_rgb
from tsflora.data.download import Archive
from tsflora.data.listing import stratified_order
from tsflora.data.sources import Cifar10, Cifar100
from tsflora.errors import ConfigError, DataError, StorageError

CIFAR10_FILES = [
    *(f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)),
    "cifar-10-batches-bin/test_batch.bin",
]


def random_images(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind)
    return stream.getvalue()


def one_line(error: pytest.ExceptionInfo[Exception], *parts: object) -> None:
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert str(part) in text


# --- ImageSet -------------------------------------------------------------------------------------


def small_set() -> ImageSet:
    return ImageSet(random_images(5, 4), np.array([0, 1, 2, 1, 0]), ("a", "b", "c", "never seen"))


@pytest.mark.parametrize(
    ("images", "labels", "names", "message"),
    [
        (random_images(0), np.zeros(0, np.int64), ("a",), "at least one image"),
        (random_images(2).astype(np.float32), np.zeros(2, np.int64), ("a",), "uint8"),
        (random_images(2)[..., :1], np.zeros(2, np.int64), ("a",), "(N, H, W, 3)"),
        (random_images(2)[:, :0], np.zeros(2, np.int64), ("a",), "(N, H, W, 3)"),
        (random_images(2), np.zeros(3, np.int64), ("a",), "one per image (2)"),
        (random_images(2), np.zeros(2, np.int32), ("a",), "int64"),
        (random_images(2), np.array([0, 1]), ("a",), "label 1 in row 1 is outside 0..0"),
        (random_images(2), np.array([-1, 0]), ("a",), "label -1 in row 0"),
    ],
)
def test_a_wrong_image_set_is_refused(images, labels, names, message):
    with pytest.raises(DataError) as error:
        ImageSet(images, labels, names)
    one_line(error, message)


def test_subset_keeps_order_repeats_and_classes():
    whole = small_set()
    part = whole.subset([3, 0, 3])
    assert len(part) == 3
    assert part.n_classes == 4
    np.testing.assert_array_equal(part.images, whole.images[[3, 0, 3]])
    np.testing.assert_array_equal(part.labels, [1, 0, 1])
    with pytest.raises(DataError, match="at least one"):
        whole.subset([])


def test_save_and_load_is_the_identity(tmp_path):
    whole = small_set()
    whole.save(tmp_path / "new" / "set.safetensors")
    back = ImageSet.load(tmp_path / "new" / "set.safetensors")
    np.testing.assert_array_equal(back.images, whole.images)
    np.testing.assert_array_equal(back.labels, whole.labels)
    assert back.class_names == whole.class_names
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["set.safetensors"]


def test_a_damaged_or_foreign_file_is_no_image_set(tmp_path):
    import safetensors.numpy

    path = tmp_path / "set.safetensors"
    with pytest.raises(DataError, match="cannot be read"):
        ImageSet.load(path)
    small_set().save(path)
    content = path.read_bytes()
    arrays = {"images": random_images(2, 4), "labels": np.array([0, 7])}
    names = json.dumps(["a", "b"])
    foreign = [
        content[: len(content) // 2],
        content[:4],
        b"",
        b"\xff" * 100,
        safetensors.numpy.save(arrays),
        safetensors.numpy.save({"images": arrays["images"]}, {"class_names": names}),
        safetensors.numpy.save(arrays, {"class_names": names}),
        safetensors.numpy.save(arrays, {"class_names": "{not json"}),
        safetensors.numpy.save(arrays, {"class_names": "8"}),
    ]
    for content in foreign:
        path.write_bytes(content)
        with pytest.raises(DataError) as error:
            ImageSet.load(path)
        one_line(error, path, "not an intact image set")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "set.safetensors"
    small_set().save(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError):
        small_set().subset([0]).save(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


# --- choosing a part ------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(0, 3))
def test_stratified_order_is_a_repeatable_permutation(labels, seed):
    order = stratified_order(np.array(labels), "test", seed)
    assert sorted(order) == list(range(len(labels)))
    np.testing.assert_array_equal(order, stratified_order(np.array(labels), "test", seed))


def test_a_rare_class_keeps_its_share_in_every_head():
    labels = np.repeat([0, 1], [90, 10])
    order = stratified_order(labels, "test")
    for size in (10, 30, 50, 100):
        assert np.bincount(labels[order[:size]]).tolist() == [size * 9 // 10, size // 10]


def test_limits_are_stratified_nested_and_repeatable():
    whole, _ = data_sources.build("digits").load(None)
    small, test = data_sources.build({"name": "digits", "train_size": 100, "test_size": 20}).load(None)
    again, _ = data_sources.build({"name": "digits", "train_size": 100}).load(None)
    larger, _ = data_sources.build({"name": "digits", "train_size": 200}).load(None)
    assert (len(small), len(test)) == (100, 20)
    counts = np.bincount(small.labels)
    assert counts.max() - counts.min() <= 2
    np.testing.assert_array_equal(small.images, again.images)
    as_bytes = [{image.tobytes() for image in part.images} for part in (small, larger, whole)]
    assert as_bytes[0] < as_bytes[1] < as_bytes[2]


@pytest.mark.parametrize("size", [2000, 10**12, 10**30])
def test_a_limit_above_what_there_is_names_both(size):
    with pytest.raises(ConfigError) as error:
        data_sources.build({"name": "digits", "test_size": size}).load(None)
    one_line(error, "test_size", size, 449)


@pytest.mark.parametrize("options", [{"train_size": 0}, {"test_fraction": 1.0}, {"trainsize": 3}])
def test_wrong_options_are_refused(options):
    with pytest.raises(ValueError, match="digits"):
        data_sources.build({"name": "digits", **options})


def test_an_unknown_source_gets_a_hint():
    with pytest.raises(ValueError, match="did you mean 'cifar10'"):
        data_sources.build("cifar-10")


# --- digits ---------------------------------------------------------------------------------------


def test_digits_are_all_there_once_and_upright():
    train, test = data_sources.build("digits").load(None)
    assert len(train) + len(test) == 1797
    assert len(test) == 449
    assert train.images.shape[1:] == (28, 28, 3)
    assert train.n_classes == test.n_classes == 10
    assert (train.images.min(), train.images.max()) == (0, 255)
    overlap = {image.tobytes() for image in train.images} & {image.tobytes() for image in test.images}
    assert not overlap
    # A zero is dark in its middle and bright around it.
    zero = train.images[train.labels == 0].mean(axis=(0, 3))
    assert zero[14, 14] < 0.3 * zero[14, 6:10].max()


# --- CIFAR, the official binary archives ----------------------------------------------------------


def cifar_records(images: np.ndarray, *labels: np.ndarray) -> bytes:
    planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return np.concatenate([*(label[:, None].astype(np.uint8) for label in labels), planes], axis=1).tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def cifar10_members() -> dict[str, bytes]:
    images, labels = random_images(12), np.arange(12) % 10
    parts = [slice(2 * i, 2 * i + 2) for i in range(6)]
    return {name: cifar_records(images[part], labels[part]) for name, part in zip(CIFAR10_FILES, parts, strict=True)}


def test_cifar10_binary_archive(tmp_path):
    write_tar(tmp_path / "cifar-10-binary.tar.gz", {"cifar-10-batches-bin/readme.html": b"x", **cifar10_members()})
    train, test = data_sources.build("cifar10").load(tmp_path)
    np.testing.assert_array_equal(train.images, random_images(12)[:10])
    np.testing.assert_array_equal(train.labels, np.arange(10))
    np.testing.assert_array_equal(test.images, random_images(12)[10:])
    np.testing.assert_array_equal(test.labels, [0, 1])
    assert train.class_names[3] == "cat"


def test_cifar100_binary_archive_uses_fine_labels(tmp_path):
    images, coarse, fine = random_images(4), np.array([4, 4, 19, 0]), np.array([72, 4, 99, 0])
    members = {f"cifar-100-binary/{split}.bin": cifar_records(images, coarse, fine) for split in ("train", "test")}
    write_tar(tmp_path / "cifar-100-binary.tar.gz", members)
    train, test = data_sources.build("cifar100").load(tmp_path)
    for part in (train, test):
        np.testing.assert_array_equal(part.labels, fine)
        np.testing.assert_array_equal(part.images, images)
    assert [train.class_names[label] for label in fine] == ["seal", "beaver", "worm", "apple"]
    assert train.n_classes == 100


def test_every_truncation_and_bit_flip_of_a_tar_is_reported(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    write_tar(path, cifar10_members())
    intact = path.read_bytes()
    generator = np.random.default_rng(0)
    cuts = [intact[:length] for length in (0, 1, 20, len(intact) // 2, len(intact) - 9, len(intact) - 1)]
    flips = []
    for place in generator.integers(10, len(intact), 30):  # the first ten bytes are gzip's own header and clock
        flipped = bytearray(intact)
        flipped[place] ^= 1 << int(generator.integers(8))
        flips.append(bytes(flipped))
    for damaged in [*cuts, *flips, b"<html>not found</html>", gzip.compress(b"no tar" * 500)]:
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            data_sources.build("cifar10").load(tmp_path)
        one_line(error, path)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({CIFAR10_FILES[2]: None}, ["has no file cifar-10-batches-bin/data_batch_3.bin", "binary version"]),
        ({CIFAR10_FILES[2]: bytes(3072)}, ["data_batch_3.bin has 3072 bytes", "3073-byte records"]),
        ({CIFAR10_FILES[5]: b""}, ["test_batch.bin has 0 bytes"]),
        ({CIFAR10_FILES[1]: bytes([10]) + bytes(3072)}, ["label 10 in row 2 is outside 0..9"]),
    ],
)
def test_a_wrong_cifar_member_is_reported(tmp_path, change, parts):
    members = {name: content for name, content in {**cifar10_members(), **change}.items() if content is not None}
    write_tar(tmp_path / "cifar-10-binary.tar.gz", members)
    with pytest.raises(DataError) as error:
        data_sources.build("cifar10").load(tmp_path)
    one_line(error, tmp_path / "cifar-10-binary.tar.gz", *parts)


def test_names_that_point_elsewhere_are_ignored(tmp_path):
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    write_tar(inner / "cifar-10-binary.tar.gz", {"../../escaped": b"x", "/tmp/../escaped": b"x", **cifar10_members()})
    data_sources.build("cifar10").load(inner)
    write_zip(inner / "tiny-imagenet-200.zip", {**tiny_members(), "tiny-imagenet-200/train/n2/images/../x.JPEG": b"x"})
    data_sources.build("tiny_imagenet").load(inner)
    files = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["cifar-10-binary.tar.gz", "tiny-imagenet-200.zip"]


def test_a_link_in_a_tar_is_not_followed(tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(3073))
    path = tmp_path / "cifar-10-binary.tar.gz"
    members = cifar10_members()
    del members[CIFAR10_FILES[0]]
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo(CIFAR10_FILES[0])
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(DataError, match=r"has no file .*data_batch_1"):
        data_sources.build("cifar10").load(tmp_path)


# --- Tiny-ImageNet, the official zip --------------------------------------------------------------


def tiny_members() -> dict[str, bytes]:
    root, images = "tiny-imagenet-200", random_images(6, 64)
    images[1] = images[1, ..., :1]  # some originals are grey
    members = {
        f"{root}/wnids.txt": b"n3\nn1\nn2\n",
        f"{root}/words.txt": b"n1\tgoldfish, Carassius auratus\nn2\tbullfrog\nn9\tnot here\n",
        f"{root}/val/val_annotations.txt": b"val_0.JPEG\tn2\t0\t0\t62\t62\nval_1.JPEG\tn1\t1\t1\t9\t9\n",
        f"{root}/test/images/test_0.JPEG": b"unlabelled, not read",
    }
    for wnid, numbers in (("n3", (0,)), ("n1", (1, 2)), ("n2", (3,))):
        members[f"{root}/train/{wnid}/{wnid}_boxes.txt"] = b"boxes"
        for number in numbers:
            members[f"{root}/train/{wnid}/images/{wnid}_{number}.JPEG"] = encoded(images[number], "JPEG")
    for number in (0, 1):
        members[f"{root}/val/images/val_{number}.JPEG"] = encoded(images[4 + number], "JPEG")
    return members


def write_zip(path: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_tiny_imagenet_zip(tmp_path):
    members = tiny_members()
    write_zip(tmp_path / "tiny-imagenet-200.zip", members)
    train, test = data_sources.build("tiny_imagenet").load(tmp_path)
    assert train.class_names == test.class_names == ("goldfish", "bullfrog", "n3")
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 2])
    np.testing.assert_array_equal(test.labels, [1, 0])
    assert train.images.shape == (4, 64, 64, 3)
    expected = decode_rgb(members["tiny-imagenet-200/val/images/val_1.JPEG"], "here")
    np.testing.assert_array_equal(test.images[1], expected)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"wnids.txt": None}, ["has no readable file tiny-imagenet-200/wnids.txt"]),
        ({"wnids.txt": b"n1\nn2\n"}, ["n3_0.JPEG", "wnids.txt does not list"]),
        ({"wnids.txt": b"n1\nn2\nn3\nn4\n"}, ["no training image of 1 classes, e.g. n4"]),
        ({"val/val_annotations.txt": b"val_7.JPEG\tn1\t0\t0\t1\t1\n"}, ["val_7.JPEG, which is not there"]),
        ({"val/val_annotations.txt": b""}, ["(test): holds no images"]),
        ({"val/images/val_0.JPEG": b"\xff\xd8 cut"}, ["val_0.JPEG: not an intact image"]),
        ({"val/images/val_0.JPEG": encoded(random_images(1, 32)[0], "JPEG")}, ["is 64x64 pixels", "is 32x32"]),
    ],
)
def test_a_wrong_tiny_imagenet_member_is_reported(tmp_path, change, parts):
    members = {**tiny_members(), **{f"tiny-imagenet-200/{name}": content for name, content in change.items()}}
    write_zip(tmp_path / "tiny-imagenet-200.zip", {name: value for name, value in members.items() if value is not None})
    with pytest.raises(DataError) as error:
        data_sources.build("tiny_imagenet").load(tmp_path)
    one_line(error, tmp_path / "tiny-imagenet-200.zip", *parts)


def test_a_truncated_or_damaged_zip_is_reported(tmp_path):
    path = tmp_path / "tiny-imagenet-200.zip"
    members = tiny_members()
    write_zip(path, members)
    intact = path.read_bytes()
    image = members["tiny-imagenet-200/val/images/val_0.JPEG"]
    inside = intact.index(image) + len(image) // 2
    flipped = intact[:inside] + bytes([intact[inside] ^ 1]) + intact[inside + 1 :]
    for damaged in (b"", intact[:100], intact[: len(intact) // 2], intact[:-30], flipped):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as error:
            data_sources.build("tiny_imagenet").load(tmp_path)
        one_line(error, path, "not an intact .zip archive")


# --- Parquet --------------------------------------------------------------------------------------


def write_parquet(
    path: Path,
    contents: Sequence[bytes | None],
    labels: Sequence[int | None],
    names: list[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
) -> None:
    image = pa.array(
        [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    table = pa.table(
        {image_column: image, label_column: pa.array(labels, pa.int64()), "index": pa.array(range(len(labels)))}
    )
    if names is not None:
        features = {"info": {"features": {label_column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=2)


def write_pair(folder: Path, name: str, *, names: list[str] | None = None, **columns: str) -> np.ndarray:
    images = random_images(6)
    pngs = [encoded(image) for image in images]
    write_parquet(folder / f"{name}_train.parquet", pngs[:4], [3, 1, 1, 0], names, **columns)
    write_parquet(folder / f"{name}_test.parquet", pngs[4:], [0, 1], names, **columns)
    return images


@pytest.mark.parametrize("names", [None, list(Cifar10.class_names)])
def test_parquet_pair(tmp_path, names):
    images = write_pair(tmp_path, "cifar10", names=names)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"not looked at")
    train, test = data_sources.build("cifar10").load(tmp_path)
    np.testing.assert_array_equal(train.images, images[:4])
    np.testing.assert_array_equal(train.labels, [3, 1, 1, 0])
    np.testing.assert_array_equal(test.images, images[4:])
    assert train.class_names == Cifar10.class_names


@pytest.mark.parametrize("image_column", ["image", "img"])
@pytest.mark.parametrize("label_column", ["label", "fine_label"])
def test_columns_as_published_elsewhere(tmp_path, image_column, label_column):
    published = ["cra" if name == "crab" else name for name in Cifar100.class_names]
    columns = {"image_column": image_column, "label_column": label_column}
    images = write_pair(tmp_path, "cifar100", names=published, **columns)
    train, _ = data_sources.build("cifar100").load(tmp_path)
    np.testing.assert_array_equal(train.images, images[:4])
    np.testing.assert_array_equal(train.labels, [3, 1, 1, 0])
    assert train.class_names == Cifar100.class_names
    # The names belong to the labels that are read: another order is seen under either column's name.
    write_pair(tmp_path, "cifar100", names=published[::-1], **columns)
    with pytest.raises(DataError, match="official order"):
        data_sources.build("cifar100").load(tmp_path)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    def refused(*parts: object) -> None:
        with pytest.raises(DataError) as error:
            data_sources.build("cifar10").load(tmp_path)
        one_line(error, tmp_path / "cifar10_train.parquet", *parts)
        assert len(str(error.value)) < 400

    write_pair(tmp_path, "cifar10", image_column="picture")
    refused("no column image or img", "its columns are picture, label, index")
    write_pair(tmp_path, "cifar10", label_column="coarse_label")
    refused("no column label or fine_label", "its columns are image, coarse_label, index")
    train = tmp_path / "cifar10_train.parquet"
    pq.write_table(pa.table({f"pixel_{number}": [0] for number in range(3072)}), train)
    refused("no column label or fine_label", "pixel_9, ...")
    pq.write_table(pa.table({}), train)
    refused("none at all")


@pytest.mark.parametrize(
    "column",
    [pa.array([b"x"]), pa.array([[1, 2]]), pa.array([{"path": "0.png"}]), pa.array([{"bits": 1}])],
)
def test_an_image_column_of_another_type_is_named(tmp_path, column):
    write_pair(tmp_path, "cifar10")
    pq.write_table(pa.table({"image": column, "label": [1]}), tmp_path / "cifar10_train.parquet")
    with pytest.raises(DataError) as error:
        data_sources.build("cifar10").load(tmp_path)
    one_line(error, tmp_path / "cifar10_train.parquet", "column image is no struct", "{bytes, path}")


def test_what_was_read_is_said(tmp_path, caplog):
    write_pair(tmp_path, "cifar10")
    with caplog.at_level(logging.INFO, logger="tsflora"):
        data_sources.build({"name": "cifar10", "train_size": 3}).load(tmp_path)
    assert caplog.messages == [
        f"cifar10: 3 of 4 training images, 10 classes, from {tmp_path / 'cifar10_train.parquet'}",
        f"cifar10: 2 of 2 test images, 10 classes, from {tmp_path / 'cifar10_test.parquet'}",
    ]


def test_a_limited_set_decodes_only_what_it_keeps(tmp_path):
    images = write_pair(tmp_path, "cifar10")
    damaged = [encoded(images[0]), b"damaged", b"damaged", b"damaged"]
    write_parquet(tmp_path / "cifar10_train.parquet", damaged, [3, 1, 1, 0])
    kept = stratified_order(np.array([3, 1, 1, 0]), "limit", "cifar10", "train")[0]
    contents = [encoded(images[row]) if row == kept else b"damaged" for row in range(4)]
    write_parquet(tmp_path / "cifar10_train.parquet", contents, [3, 1, 1, 0])
    train, _ = data_sources.build({"name": "cifar10", "train_size": 1}).load(tmp_path)
    np.testing.assert_array_equal(train.images[0], images[kept])


def test_parquet_classes_in_another_order_are_refused(tmp_path):
    write_pair(tmp_path, "cifar10", names=list(reversed(Cifar10.class_names)))
    with pytest.raises(DataError, match="official order"):
        data_sources.build("cifar10").load(tmp_path)
    write_pair(tmp_path, "tiny_imagenet", names=["n2", "n1", "n3", "n4"])
    with pytest.raises(DataError, match="sorted WordNet ids"):
        data_sources.build("tiny_imagenet").load(tmp_path)


def test_tiny_imagenet_parquet_names(tmp_path):
    load = partial(data_sources.build("tiny_imagenet").load, tmp_path)
    write_pair(tmp_path, "tiny_imagenet")
    assert load()[0].n_classes == 200
    write_pair(tmp_path, "tiny_imagenet", names=["n1", "n2", "n3", "n4"])
    assert load()[0].class_names == ("n1", "n2", "n3", "n4")
    table = tmp_path / "tiny_imagenet_wnid_to_name.json"
    table.write_text(json.dumps({"n1": "goldfish, Carassius auratus", "n3": "crane"}))
    assert load()[0].class_names == ("goldfish", "n2", "crane", "n4")
    for damaged in ('{"n1": "gold', "[1, 2]", '{"n1": 3}'):
        table.write_text(damaged)
        with pytest.raises(DataError) as error:
            load()
        one_line(error, table)


def test_wrong_parquet_contents_name_file_and_row(tmp_path):
    path = tmp_path / "cifar10_test.parquet"
    good = encoded(random_images(1)[0])
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 4
    cases: list[tuple[list[bytes | None], list[int | None], list[str]]] = [
        ([good, good[: len(good) // 2]], [0, 1], ["row 1", "not an intact image"]),
        ([good, bytes(flipped)], [0, 1], ["row 1", "not an intact image"]),
        ([good, b""], [0, 1], ["row 1", "not an intact image"]),
        ([good, None], [0, 1], ["1 rows without image bytes"]),
        ([good, encoded(random_images(1, 16)[0])], [0, 1], ["row 1", "is 16x16", "is 32x32"]),
        ([good, good], [0, 10], ["label 10 in row 1 is outside 0..9"]),
        ([good, good], [0, None], ["labels must be whole numbers"]),
        ([], [], ["holds no images"]),
    ]
    for contents, labels, parts in cases:
        write_pair(tmp_path, "cifar10")
        write_parquet(path, contents, labels)
        with pytest.raises(DataError) as error:
            data_sources.build("cifar10").load(tmp_path)
        one_line(error, path, *parts)


def test_a_file_that_is_not_this_parquet_is_reported(tmp_path):
    write_pair(tmp_path, "cifar10")
    for path in (tmp_path / "cifar10_train.parquet", tmp_path / "cifar10_test.parquet"):
        intact = path.read_bytes()
        for content in (intact[:-20], intact[: len(intact) // 2], b"", b"PAR1" * 9):
            path.write_bytes(content)
            with pytest.raises(DataError) as error:
                data_sources.build("cifar10").load(tmp_path)
            one_line(error, path, "not an intact Parquet file")
        path.write_bytes(intact)


# --- missing data and downloads -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "tiny_imagenet"])
def test_missing_data_says_what_was_looked_for_where_and_what_to_set(tmp_path, name):
    source = data_sources.build({"name": name, "download": False})
    for folder in (tmp_path, tmp_path / "not made", None):
        with pytest.raises(DataError) as error:
            source.load(folder)
        one_line(error, f"{name}_train.parquet", f"{name}_test.parquet", source.archive.file_name, folder or name)
        one_line(error, "data_dir", "TSFLORA_DATA_DIR")
    assert not list(tmp_path.iterdir())


def test_half_a_parquet_pair_is_reported(tmp_path):
    write_pair(tmp_path, "cifar10")
    (tmp_path / "cifar10_test.parquet").unlink()
    with pytest.raises(DataError) as error:
        data_sources.build("cifar10").load(tmp_path)
    one_line(error, f"{tmp_path / 'cifar10_test.parquet'} is missing")


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A web server on this machine that publishes CIFAR-10; yields the folder, the answers and the requests."""
    original = tmp_path / "original.tar.gz"
    write_tar(original, cifar10_members())
    content = original.read_bytes()
    answers = {"status": 200, "body": content, "length": len(content)}
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(answers["status"])
            self.send_header("Content-Length", str(answers["length"]))
            self.end_headers()
            self.wfile.write(answers["body"])

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    monkeypatch.setattr(Cifar10, "archive", Archive("cifar-10-binary.tar.gz", url, md5(content).hexdigest()))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    try:
        yield tmp_path / "data", answers, requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        with warnings.catch_warnings():
            # pooch leaves the connection of a failed answer to the garbage collector.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()


def test_a_download_is_kept_and_not_repeated(published):
    folder, _, requests = published
    train, _ = data_sources.build("cifar10").load(folder)
    again, _ = data_sources.build("cifar10").load(folder)
    assert len(requests) == 1
    assert [path.name for path in folder.iterdir()] == ["cifar-10-binary.tar.gz"]
    np.testing.assert_array_equal(train.images, random_images(12)[:10])
    np.testing.assert_array_equal(train.images, again.images)


def test_a_failed_download_leaves_nothing_and_says_what_to_do(published):
    folder, answers, _ = published
    intact = dict(answers)
    failures = {
        "wrong byte": {"body": intact["body"][:-1] + b"x"},
        "web page": {"body": b"<html>moved</html>", "length": 18},
        "truncated, consistent": {"body": intact["body"][:1000], "length": 1000},
        "connection cut": {"body": intact["body"][:1000]},
        "not found": {"status": 404},
    }
    for change in failures.values():
        answers.update(intact | change)
        with pytest.raises(DataError) as error:
            data_sources.build("cifar10").load(folder)
        one_line(error, Cifar10.archive.url, f"put cifar-10-binary.tar.gz into {folder}", "TSFLORA_DATA_DIR")
        assert not list(folder.iterdir())


def test_a_download_is_found_where_it_was_put(published, monkeypatch):
    folder, _, requests = published
    monkeypatch.setenv("HOME", str(folder.parent))
    for _ in range(2):
        data_sources.build("cifar10").load(Path("~") / folder.name)
    assert (folder / "cifar-10-binary.tar.gz").exists()
    assert len(requests) == 1


def test_no_connection(tmp_path, monkeypatch):
    monkeypatch.setattr(Cifar10, "archive", Archive("a.tar.gz", "http://127.0.0.1:9/a.tar.gz", "0" * 32))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with pytest.raises(DataError) as error:
        data_sources.build("cifar10").load(tmp_path)
    one_line(error, "cannot download http://127.0.0.1:9/a.tar.gz", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError) as error:
        data_sources.build("cifar10").load(tmp_path / "file" / "data")
    one_line(error, tmp_path / "file" / "data")


# --- the real thing -------------------------------------------------------------------------------


def real_folder() -> Path | None:
    folder = Path(os.environ.get("TSFLORA_DATA_DIR", ""))
    return folder if (folder / "cifar10_train.parquet").exists() else None


@pytest.mark.skipif(real_folder() is None, reason="TSFLORA_DATA_DIR has no cifar10_train.parquet")
def test_real_cifar10():
    train, test = data_sources.build({"name": "cifar10", "train_size": 500, "test_size": 100}).load(real_folder())
    np.testing.assert_array_equal(np.bincount(train.labels), np.full(10, 50))
    np.testing.assert_array_equal(np.bincount(test.labels), np.full(10, 10))
    assert train.images.shape[1:] == (32, 32, 3)
    # Ships and aeroplanes are bluer than frogs and deer.
    blue = train.images[..., 2].astype(float).mean(axis=(1, 2)) - train.images[..., 0].mean(axis=(1, 2))
    sky_or_sea = np.isin(train.labels, [0, 8])
    assert blue[sky_or_sea].mean() > blue[np.isin(train.labels, [4, 6])].mean() + 5


def test_images_are_held_back_from_training_and_not_taken_from_the_test_set():
    plain, held = (data_sources.build({"name": "digits", **more}) for more in ({}, {"held_back": 100}))
    train, _ = plain.load(None)
    rest, judged = held.load(None)
    assert (len(rest), len(judged)) == (len(train) - 100, 100)

    def pictures(images):
        return sorted(image.tobytes() for image in images.images)

    assert sorted(pictures(rest) + pictures(judged)) == pictures(train)
    assert pictures(held.load(None)[1]) == pictures(judged)
    assert set(judged.labels) == set(range(10))
    with pytest.raises(ConfigError, match=r"held_back: 9999 of \d+ training images; allowed: 1 to"):
        data_sources.build({"name": "digits", "held_back": 9999}).load(None)
