"""A tree of image files with one folder per class."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from tsflora.data.decode import decode_all
from tsflora.data.listing import Listing
from tsflora.errors import DataError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""File name endings (any case) that count as images."""


def class_folders(root: Path) -> tuple[str, ...]:
    """Names of the visible folders in `root`, sorted.

    Raises:
        DataError: `root` cannot be read, or has no folders.
    """
    try:
        names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror})") from None
    if not names:
        raise DataError(f"{root}: has no class folders")
    return tuple(names)


def folder_listing(root: Path, class_names: tuple[str, ...], image_size: int) -> Listing:
    """Every image below `root/<class>/`, by class and then by path, as image_size x image_size pixels.

    Raises:
        DataError: a folder that is no known class, or that holds no images.
    """
    paths: list[Path] = []
    labels: list[int] = []
    for name in class_folders(root):
        if name not in class_names:
            raise DataError(f"{root / name}: no such class; the training classes are {', '.join(class_names)}")
        files = sorted(path for path in (root / name).rglob("*") if _is_image(path))
        if not files:
            raise DataError(f"{root / name}: holds no images; file names must end in {' '.join(SUFFIXES)}")
        paths += files
        labels += [class_names.index(name)] * len(files)

    def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        def contents() -> Iterator[tuple[str, bytes]]:
            for row in rows:
                try:
                    yield str(paths[row]), paths[row].read_bytes()
                except OSError as error:
                    raise DataError(f"{paths[row]}: cannot be read ({error.strerror})") from None

        return decode_all(contents(), len(rows), root.name, square=image_size)

    return Listing(str(root), np.array(labels, dtype=np.int64), class_names, read)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
