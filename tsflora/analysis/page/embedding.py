"""Files of a report as parts of one page: figures and raw numbers as data URIs, tables as rows of text."""

import base64
import csv
import io
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tsflora.errors import DataError

_DPI = 300
"""Assumed of a PNG that does not say."""
_CSS_DPI = 96 * 1.35
"""A CSS inch, a third larger: the 7 pt text of a figure for a paper is read from a screen."""
_MAX_PIXELS = 64_000_000
_MAX_ROWS = 200
_MAX_CSV_BYTES = 256 * 1024
_NUMBER = re.compile(r"[+\-−]?(\d[\d,]*\.?\d*|\.\d+)")
_BLANK = ("", "–", "-", "nan")


@dataclass(frozen=True)
class Picture:
    """A figure as a data URI, and its size on the page in CSS pixels."""

    source: str
    width: int
    height: int


@dataclass(frozen=True)
class Table:
    """A table's text, and for each column whether it holds numbers. `n_omitted` rows at the end are left out."""

    header: list[str]
    rows: list[list[str]]
    is_numeric: list[bool]
    n_omitted: int = 0


def embed_figure(path: Path, max_width_px: int) -> Picture:
    """A PNG as lossless WebP on white, made narrower where it is wider than `max_width_px`, never wider.

    Lossless WebP takes about half the bytes of the PNG, for plots and for pictures, and no colour changes. Plots are
    best left at 300 dpi: a smaller copy has more shades and takes more bytes.

    Raises:
        DataError: the file cannot be read or is not a PNG of at most 64 million pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            with Image.open(path, formats=["PNG"]) as file:
                if file.width * file.height > _MAX_PIXELS:
                    raise DataError(f"it has {file.width} x {file.height} pixels, more than {_MAX_PIXELS:,}")
                dpi = float(file.info.get("dpi", (_DPI,))[0]) or _DPI
                width, height = (max(1, round(side * _CSS_DPI / dpi)) for side in file.size)
                layers = file.convert("RGBA")
        image = Image.new("RGBA", layers.size, "white")
        image.alpha_composite(layers)
        image = image.convert("RGB")
        if image.width > max_width_px:
            image = image.resize(
                (max_width_px, max(1, round(image.height * max_width_px / image.width))), Image.Resampling.LANCZOS
            )
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", lossless=True)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"it is not a PNG that can be read ({' '.join(str(error).split())})") from None
    return Picture(data_uri(buffer.getvalue(), "image/webp"), width, height)


def embed_table(files: Mapping[str, Path]) -> Table:
    """The table of an item: the Markdown that people read, or else the CSV.

    Raises:
        DataError: a file is not UTF-8, or holds no table.
    """
    suffix = ".md" if ".md" in files else ".csv"
    try:
        text = files[suffix].read_text(encoding="utf-8")
        lines = _markdown_rows(text) if suffix == ".md" else list(csv.reader(io.StringIO(text)))
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"it is not a table in UTF-8 ({error})") from None
    lines = [line for line in lines if line]
    if not lines:
        raise DataError("it holds no table")
    header, *rows = lines
    n_columns = max(map(len, lines))
    header, *rows = ([*line, *[""] * (n_columns - len(line))] for line in lines)
    return Table(
        header, rows[:_MAX_ROWS], [_is_numeric(column) for column in _columns(rows, n_columns)], len(rows[_MAX_ROWS:])
    )


def embed_csv(path: Path) -> str | None:
    """The file as a data URI, or None where it is too large to travel with a page.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"it cannot be read ({error.strerror})") from None
    return data_uri(content, "text/csv;charset=utf-8") if len(content) <= _MAX_CSV_BYTES else None


def data_uri(content: bytes, media_type: str) -> str:
    """`content` as an address that holds it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _markdown_rows(text: str) -> list[list[str]]:
    """The cells of a pipe table, header first, as `write_table` writes it."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if len(lines) < 2 or not all(line.startswith("|") for line in lines) or not re.fullmatch(r"[|:\-\s]+", lines[1]):
        raise DataError("it is not one Markdown table, header and rows between bars")
    return [_cells(line) for line in (lines[0], *lines[2:])]


def _cells(line: str) -> list[str]:
    inner = line.removeprefix("|")
    inner = inner[:-1] if inner.endswith("|") and not inner.endswith(r"\|") else inner
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", inner)]


def _columns(rows: list[list[str]], n_columns: int) -> list[list[str]]:
    return [[row[number] for row in rows] for number in range(n_columns)]


def _is_numeric(column: list[str]) -> bool:
    cells = [cell for cell in column if cell not in _BLANK]
    return bool(cells) and all(_NUMBER.match(cell) for cell in cells)
