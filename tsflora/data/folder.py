"""A tree of image files with one folder per class."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from tsflora.data.decode import decode_all
from tsflora.data.listing import Listing
from tsflora.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name endings (any case) that count as images."""

LAYOUT = "expected in it: one folder for each class, or the folders train and test (or val) with those in each"

# What archivers, file managers, interpreters and file systems leave behind. A dot in front says the same.
_SYSTEM_NAMES = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "__pycache__", "lost+found"}
_SPLIT_NAMES = {"train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev"}
_N_SHOWN = 5

_log = logging.getLogger(__name__)


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the class folders in `root`, sorted; hidden folders and a system's are none.

    Raises:
        DataError: `root` cannot be read, has fewer than two classes, or has splits where classes should be.
    """
    names = _folders(root)
    if not names:
        raise DataError(f"{root}: has no class folders, and {len(_images(root))} images; {LAYOUT}")
    if len(names) == 1:
        within = _folders(root / names[0])
        where = f", in its folders {_some(within)}" if within else ""
        raise DataError(
            f"{root}: found one class, {names[0]} ({len(_images(root))} images{where}), "
            f"and at least two are needed; {LAYOUT}"
        )
    if _SPLIT_NAMES.issuperset(map(str.lower, names)):
        raise DataError(f"{root}: its folders {_some(names)} are splits rather than classes; {LAYOUT}")
    return tuple(names)


def folder_listing(root: Path, class_names: tuple[str, ...], image_size: int) -> Listing:
    """Every image below `root/<class>/`, by class and then by path, as image_size x image_size pixels.

    Logs what was found: classes, images, and the files that were passed over.

    Raises:
        DataError: a folder that is no known class, or that holds no images.
    """
    paths: list[Path] = []
    labels: list[int] = []
    names = _folders(root)
    for name in names:
        if name not in class_names:
            raise DataError(f"{root / name}: no such class; the training classes are {', '.join(class_names)}")
        files = _images(root / name)
        if not files:
            raise DataError(f"{root / name}: holds no images; file names must end in {' '.join(SUFFIXES)}")
        paths += files
        labels += [class_names.index(name)] * len(files)
    skipped = sorted(str(path.relative_to(root)) for path in {*_files(root)} - {*paths})
    _log.info(
        "%s: found %d classes (%s) and %d images; skipped %d other or hidden files%s",
        root,
        len(names),
        _some(names),
        len(paths),
        len(skipped),
        f" ({_some(skipped)})" if skipped else "",
    )

    def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        def contents() -> Iterator[tuple[str, bytes]]:
            for row in rows:
                try:
                    yield str(paths[row]), paths[row].read_bytes()
                except OSError as error:
                    raise DataError(f"{paths[row]}: cannot be read ({error.strerror})") from None

        return decode_all(contents(), len(rows), str(root), square=image_size)

    return Listing(str(root), np.array(labels, dtype=np.int64), class_names, read)


def _folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and _is_data(Path(entry.name)))
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror})") from None


def _files(root: Path) -> Iterator[Path]:
    return (path for path in root.rglob("*") if path.is_file())


def _images(root: Path) -> list[Path]:
    return sorted(p for p in _files(root) if p.suffix.lower() in SUFFIXES and _is_data(p.relative_to(root)))


def _is_data(path: Path) -> bool:
    """Whether no part of a path below the root is hidden or a system's."""
    return not any(part.startswith(".") or part.lower() in _SYSTEM_NAMES for part in path.parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:_N_SHOWN]) + (", ..." if len(names) > _N_SHOWN else "")
