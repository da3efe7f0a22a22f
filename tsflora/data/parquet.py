"""Image sets as Parquet files with the columns `image {bytes, path}` and `label`."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8

from tsflora.data.decode import decode_all
from tsflora.data.listing import Listing
from tsflora.errors import DataError


def parquet_class_names(path: Path) -> tuple[str, ...] | None:
    """The class names that the `datasets` library writes into a file's metadata, or None where it wrote none.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an intact Parquet file ({_line(error)})") from None
    try:
        return tuple(map(str, json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def parquet_listing(path: Path, class_names: tuple[str, ...]) -> Listing:
    """The images of one file, rows in file order; labels index `class_names`.

    Raises:
        DataError: not an intact Parquet file, another layout, no rows, or a label outside the classes.
    """
    try:
        table = pq.read_table(path, columns=["image", "label"])
        labels = table["label"].to_numpy()
        encoded = pc.struct_field(table["image"], "bytes").cast(pa.binary())
    except (pa.ArrowException, OSError) as error:
        expected = "an intact Parquet file with columns image {bytes, path} and label"
        raise DataError(f"{path}: not {expected} ({_line(error)})") from None
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{path}: labels must be whole numbers without gaps, not {labels.dtype}")
    if encoded.null_count:
        raise DataError(f"{path}: {encoded.null_count} rows without image bytes")

    def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        def contents() -> Iterator[tuple[str, bytes]]:
            for row, content in zip(rows, encoded.take(pa.array(rows)), strict=True):
                yield f"{path} row {row}", content.as_py()

        return decode_all(contents(), len(rows), path.name)

    return Listing(str(path), labels.astype(np.int64), class_names, read)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
