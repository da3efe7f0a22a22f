"""A folder of one's own: its layout, what is data in it and what is not, and that what was found is said."""

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_sources import encoded, one_line, random_images, tiny_members, write_zip

from tsflora.data import data_sources
from tsflora.data.folder import LAYOUT
from tsflora.errors import ConfigError, DataError


def source(path: Path | str, **options: object):
    return data_sources.build({"name": "image_folder", "path": str(path), "image_size": 8, **options})


def write_tree(root: Path, counts: dict[str, int], side: int = 20) -> None:
    for seed, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(random_images(count, side, seed)):
            (root / name / f"{number}.png").write_bytes(encoded(image))


def test_folder_with_its_own_split(tmp_path):
    write_tree(tmp_path / "own" / "train", {"dog": 3, "cat": 2})
    write_tree(tmp_path / "own" / "val", {"dog": 1})
    (tmp_path / "own" / "train" / ".hidden").mkdir()
    (tmp_path / "own" / "train" / "cat" / "notes.txt").write_text("not an image")
    source = data_sources.build({"name": "image_folder", "path": "own", "image_size": 20})
    train, test = source.load(tmp_path)
    assert train.class_names == test.class_names == ("cat", "dog")
    np.testing.assert_array_equal(train.labels, [0, 0, 1, 1, 1])
    np.testing.assert_array_equal(train.images, np.concatenate([random_images(2, 20, 1), random_images(3, 20, 0)]))
    np.testing.assert_array_equal(test.labels, [1])
    write_tree(tmp_path / "own" / "test", {"cat": 2})
    assert len(source.load(tmp_path)[1]) == 2
    absolute = data_sources.build({"name": "image_folder", "path": str(tmp_path / "own"), "image_size": 20})
    np.testing.assert_array_equal(absolute.load(None)[0].images, train.images)


def test_folder_in_one_tree_is_split(tmp_path):
    write_tree(tmp_path, {"a": 8, "b": 4})
    source = data_sources.build(
        {"name": "image_folder", "path": str(tmp_path), "image_size": 20, "test_fraction": 0.25}
    )
    train, test = source.load(None)
    assert (np.bincount(train.labels).tolist(), np.bincount(test.labels).tolist()) == ([6, 3], [2, 1])
    everything = {image.tobytes() for image in np.concatenate([train.images, test.images])}
    assert len(everything) == 12
    np.testing.assert_array_equal(source.load(None)[1].images, test.images)


def test_folder_images_are_cropped_to_their_middle_turned_upright_and_resized(tmp_path):
    for name in ("wide", "turned"):
        (tmp_path / name).mkdir()
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    (tmp_path / "wide" / "0.png").write_bytes(encoded(wide))
    upper = np.zeros((10, 10, 3), dtype=np.uint8)
    upper[:5] = 200
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(upper).save(tmp_path / "turned" / "0.png", exif=exif)
    source = data_sources.build({"name": "image_folder", "path": str(tmp_path), "image_size": 5, "test_fraction": 0.5})
    by_class = {int(part.labels[0]): part.images[0] for part in source.load(None)}
    np.testing.assert_allclose(by_class[1], 200, atol=15)  # bicubic looks a little beyond the crop
    np.testing.assert_array_equal(by_class[1][:, 2], 200)
    assert by_class[0][:2].max() < 20 < 180 < by_class[0][3:].min()


def test_wrong_folders_are_reported(tmp_path):
    def refused(path: Path | str, *parts: object, data_dir: Path | None = None) -> None:
        with pytest.raises(DataError) as error:
            data_sources.build({"name": "image_folder", "path": str(path), "image_size": 8}).load(data_dir)
        one_line(error, *parts)

    refused("own", "own", "data_dir", "TSFLORA_DATA_DIR")
    refused("own", tmp_path / "own", "data_dir", "TSFLORA_DATA_DIR", data_dir=tmp_path)
    (tmp_path / "own").mkdir()
    refused(tmp_path / "own", "has no class folders")
    write_tree(tmp_path / "own", {"full": 1, "empty": 0})
    refused(tmp_path / "own", tmp_path / "own" / "empty", "holds no images", ".png")
    write_tree(tmp_path / "alone" / "train", {"a": 2, "c": 1})
    refused(tmp_path / "alone", "neither test nor val", LAYOUT)
    write_tree(tmp_path / "alone" / "test", {"b": 2})
    refused(tmp_path / "alone", tmp_path / "alone" / "test" / "b", "training classes are a, c")
    write_tree(tmp_path / "bad", {"a": 2, "b": 1})
    (tmp_path / "bad" / "a" / "1.png").write_bytes(b"not a picture")
    refused(tmp_path / "bad", tmp_path / "bad" / "a" / "1.png", "not an intact image")


def test_hidden_and_system_folders_are_no_data(tmp_path):
    write_tree(tmp_path, {"cat": 4, "dog": 4})
    expected = source(tmp_path).load(None)
    for part in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "$RECYCLE.BIN", "deep/.git/er", "__pycache__"):
        copies = tmp_path / "cat" / part
        copies.mkdir(parents=True)
        (copies / "0.png").write_bytes((tmp_path / "cat" / "0.png").read_bytes())
        if "/" not in part:
            write_tree(tmp_path / part, {"bird": 1})
    (tmp_path / "dog" / "._0.png").write_bytes(b"an archiver's notes")
    for part, found in zip(source(tmp_path).load(None), expected, strict=True):
        assert part.class_names == ("cat", "dog")
        np.testing.assert_array_equal(part.images, found.images)


def test_a_root_below_a_hidden_folder_is_data(tmp_path):
    write_tree(tmp_path / ".cache" / "set", {"cat": 2, "dog": 2})
    assert len(source(tmp_path / ".cache" / "set").load(None)[0]) == 3


def test_an_archivers_notes_are_no_images_of_tiny_imagenet(tmp_path):
    members = tiny_members()
    members["tiny-imagenet-200/train/n1/images/._n1_1.JPEG"] = b"notes"
    write_zip(tmp_path / "tiny-imagenet-200.zip", members)
    assert len(data_sources.build("tiny_imagenet").load(tmp_path)[0]) == 4


def test_a_single_class_is_refused_with_what_was_found(tmp_path):
    write_tree(tmp_path / "pictures" / "dataset", {"cat": 3, "dog": 2})
    with pytest.raises(DataError) as error:
        source(tmp_path / "pictures").load(None)
    one_line(error, tmp_path / "pictures", "found one class, dataset (5 images, in its folders cat, dog)", LAYOUT)
    write_tree(tmp_path / "own" / "train", {"only": 2})
    write_tree(tmp_path / "own" / "val", {"only": 1})
    with pytest.raises(DataError) as error:
        source(tmp_path / "own").load(None)
    one_line(error, tmp_path / "own" / "train", "found one class, only (2 images)")
    with pytest.raises(DataError) as error:  # one level too low
        source(tmp_path / "pictures" / "dataset" / "cat").load(None)
    one_line(error, "has no class folders, and 3 images", LAYOUT)


@pytest.mark.parametrize("names", [("training", "testing"), ("Validation", "test")])
def test_splits_are_no_classes(tmp_path, names):
    for name in names:
        write_tree(tmp_path / name, {"cat": 1, "dog": 1})
    with pytest.raises(DataError) as error:
        source(tmp_path).load(None)
    one_line(error, tmp_path, "splits rather than classes", *names, LAYOUT)


def test_what_was_found_is_said(tmp_path, caplog):
    write_tree(tmp_path, {"cat": 8, "dog": 4})
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "cat" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / ".ipynb_checkpoints" / "0.png").write_bytes(b"")
    with caplog.at_level(logging.INFO, logger="tsflora"):
        source(tmp_path, train_size=6).load(None)
    assert caplog.messages == [
        f"{tmp_path}: found 2 classes (cat, dog) and 12 images; "
        "skipped 2 other or hidden files (cat/.ipynb_checkpoints/0.png, notes.txt)",
        f"image_folder: 6 of 9 training images, 2 classes, from {tmp_path}",
        f"image_folder: 3 of 3 test images, 2 classes, from {tmp_path}",
    ]


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PICTURES", "own")
    write_tree(tmp_path / "own", {"cat": 2, "dog": 2})
    for path in ("~/own", "~/$PICTURES"):
        assert len(data_sources.build({"name": "image_folder", "path": path, "image_size": 8}).load(None)[0]) == 3
    with pytest.raises(ConfigError, match=r"\$NO_SUCH_NAME is not set"):
        source("$NO_SUCH_NAME/own").load(None)


def test_images_too_large_for_memory_are_refused_before_any_is_read(tmp_path):
    write_tree(tmp_path, {"cat": 3, "dog": 2})
    for size in (100_000, 10**9):
        with pytest.raises(ConfigError) as error:
            source(tmp_path, image_size=size).load(None)
        one_line(error, tmp_path, f"{size}x{size} pixels", "GiB of memory", "image_size")
