"""Image sets as Parquet files with one column of encoded images and one of labels."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64, UInt8

from tsflora.data.decode import decode_all
from tsflora.data.listing import Listing
from tsflora.errors import DataError, reason

IMAGE_COLUMNS = ("image", "img")
"""Names of the column of structs `{bytes, path}`; the first that is there is read. Likewise for labels."""
LABEL_COLUMNS = ("label", "fine_label")
_N_SHOWN = 10


def parquet_class_names(path: Path) -> tuple[str, ...] | None:
    """The class names that the `datasets` library writes into a file's metadata, or None where it wrote none.

    Raises:
        DataError: the file cannot be read, or has no column of labels.
    """
    schema = _schema(path)
    label = _column(path, schema, LABEL_COLUMNS)
    try:
        return tuple(map(str, json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]))
    except (KeyError, TypeError, ValueError):
        return None


def parquet_listing(path: Path, class_names: tuple[str, ...]) -> Listing:
    """The images of one file, rows in file order; labels index `class_names`.

    Raises:
        DataError: not an intact Parquet file, another layout, no rows, or a label outside the classes.
    """
    schema = _schema(path)
    image, label = _column(path, schema, IMAGE_COLUMNS), _column(path, schema, LABEL_COLUMNS)
    image_type = schema.field(image).type
    if not (pa.types.is_struct(image_type) and image_type.get_field_index("bytes") >= 0):
        raise DataError(f"{path}: column {image} is no struct {{bytes, path}}, but {str(image_type)[:100]}")
    try:
        table = pq.read_table(path, columns=[image, label])
        encoded = pc.struct_field(table[image], "bytes").cast(pa.binary())
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an intact Parquet file ({reason(error)})") from None
    if not pa.types.is_integer(table[label].type) or table[label].null_count:
        raise DataError(
            f"{path}: labels must be whole numbers without gaps; "
            f"column {label} is {str(table[label].type)[:100]} with {table[label].null_count} gaps"
        )
    if encoded.null_count:
        raise DataError(f"{path}: {encoded.null_count} rows without image bytes")

    def read(rows: Int64[np.ndarray, " k"]) -> UInt8[np.ndarray, "k height width 3"]:
        def contents() -> Iterator[tuple[str, bytes]]:
            for row, content in zip(rows, encoded.take(pa.array(rows)), strict=True):
                yield f"{path} row {row}", content.as_py()

        return decode_all(contents(), len(rows), path.name)

    return Listing(str(path), table[label].to_numpy().astype(np.int64), class_names, read)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not an intact Parquet file ({reason(error)})") from None


def _column(path: Path, schema: pa.Schema, allowed: Sequence[str]) -> str:
    for name in allowed:
        if schema.get_field_index(name) >= 0:
            return name
    there = ", ".join(schema.names[:_N_SHOWN]) + (", ..." if len(schema.names) > _N_SHOWN else "")
    raise DataError(f"{path}: has no column {' or '.join(allowed)}; its columns are {there or 'none at all'}")
