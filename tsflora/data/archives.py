"""The official archives of CIFAR (binary version) and Tiny-ImageNet, read in memory.

Nothing is unpacked to disk: members are looked up by their full official names, so a name that points elsewhere is
never followed, and CIFAR's binary version is plain records where the Python version would be a pickle.
"""

import gzip
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from tsflora.data.decode import decode_all
from tsflora.data.listing import Listing
from tsflora.errors import DataError, reason

_PIXEL_BYTES = 3 * 32 * 32
_TINY_ROOT = "tiny-imagenet-200"
_TINY_TRAIN = re.compile(rf"{_TINY_ROOT}/train/(n\d+)/images/[^./\\][^/\\]*\.JPEG")


def cifar_listings(
    path: Path, train: tuple[str, ...], test: str, label_bytes: int, class_names: tuple[str, ...]
) -> tuple[Listing, Listing]:
    """Train and test of a CIFAR archive: records of `label_bytes` labels (the last one counts), then 3 x 32 x 32 bytes.

    CIFAR-10 has one label; CIFAR-100 a coarse and a fine one, of which the fine one is used.

    Raises:
        DataError: not an intact gzip-compressed tar, a member missing or not made of whole records, or a wrong label.
    """
    members = _tar_members(path, {*train, test})
    whole = b"".join(_records(path, name, members, label_bytes) for name in train)
    rest = _records(path, test, members, label_bytes)
    return (
        _record_listing(f"{path} (train)", whole, label_bytes, class_names),
        _record_listing(f"{path} (test)", rest, label_bytes, class_names),
    )


def _tar_members(path: Path, names: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        # Stream mode: one pass, and reading to the end makes gzip compare its checksum.
        with gzip.open(path) as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    if member.name in names and member.isfile():
                        content = archive.extractfile(member)
                        assert content is not None
                        found[member.name] = content.read()
            while stream.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path}: not an intact .tar.gz archive ({reason(error)}); delete it or fetch it again"
        ) from None
    return found


def _records(path: Path, name: str, members: dict[str, bytes], label_bytes: int) -> bytes:
    if name not in members:
        raise DataError(f"{path}: has no file {name}; is it the official binary version?")
    size, record_bytes = len(members[name]), label_bytes + _PIXEL_BYTES
    if size % record_bytes or not size:
        raise DataError(f"{path}: {name} has {size} bytes, which is no whole number of {record_bytes}-byte records")
    return members[name]


def _record_listing(where: str, content: bytes, label_bytes: int, class_names: tuple[str, ...]) -> Listing:
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, label_bytes + _PIXEL_BYTES)

    def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k 32 32 3"]:
        planes = records[rows, label_bytes:].reshape(-1, 3, 32, 32)
        return np.ascontiguousarray(planes.transpose(0, 2, 3, 1))

    return Listing(where, records[:, label_bytes - 1].astype(np.int64), class_names, read)


def tiny_imagenet_listings(path: Path) -> tuple[Listing, Listing]:
    """Train and validation split of `tiny-imagenet-200.zip`; classes in the order of their sorted WordNet ids.

    The validation split serves as the test set, since the official test labels were never published.

    Raises:
        DataError: not an intact zip, another layout, an image missing, or one of an unknown class.
    """
    with _open_zip(path) as archive:
        files = set(archive.namelist())
        wnids = sorted(_text(path, archive, "wnids.txt").split())
        # words.txt covers all of WordNet; it only makes names readable, so an archive without it will do.
        lines = _text(path, archive, "words.txt").splitlines() if f"{_TINY_ROOT}/words.txt" in files else []
        annotations = [line.split("\t") for line in _text(path, archive, "val/val_annotations.txt").splitlines()]
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    class_names = readable_names(wnids, words)
    index = {wnid: label for label, wnid in enumerate(wnids)}

    train = [(match[0], match[1]) for match in map(_TINY_TRAIN.fullmatch, sorted(files)) if match]
    test = [(f"{_TINY_ROOT}/val/images/{fields[0]}", fields[1]) for fields in annotations if len(fields) > 1]
    for name, wnid in (*train, *test):
        if wnid not in index:
            raise DataError(f"{path}: {name} is of class {wnid!r}, which wnids.txt does not list")
        if name not in files:
            raise DataError(f"{path}: val_annotations.txt lists {name}, which is not there")
    without = sorted(set(wnids) - {wnid for _, wnid in train})
    if without:
        raise DataError(f"{path}: no training image of {len(without)} classes, e.g. {without[0]}")

    def listing(split: str, members: list[tuple[str, str]]) -> Listing:
        names = [name for name, _ in members]
        labels = np.array([index[wnid] for _, wnid in members], dtype=np.int64)

        def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
            def contents() -> Iterator[tuple[str, bytes]]:
                with _open_zip(path) as archive:
                    for row in rows:
                        yield f"{path}: {names[row]}", archive.read(names[row])

            return decode_all(contents(), len(rows), f"{path.name} {split}")

        return Listing(f"{path} ({split})", labels, class_names, read)

    return listing("train", train), listing("test", test)


def readable_names(wnids: list[str], words: dict[str, str]) -> tuple[str, ...]:
    """The first of each WordNet id's words, the id itself where there is none."""
    return tuple(words.get(wnid, wnid).split(",")[0].strip() for wnid in wnids)


@contextmanager
def _open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    # NotImplementedError: an unknown compression method; RuntimeError: a member that is encrypted.
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path}: not an intact .zip archive ({reason(error)}); delete it or fetch it again") from None


def _text(path: Path, archive: zipfile.ZipFile, name: str) -> str:
    try:
        return archive.read(f"{_TINY_ROOT}/{name}").decode()
    except (KeyError, UnicodeDecodeError):
        raise DataError(f"{path}: has no readable file {_TINY_ROOT}/{name}; is it the official archive?") from None
