"""What stands in a folder of tables and figures, ready to be put on a page.

A folder is one section, and so is each folder below it. Its `items.json` gives its title, and title and caption of what
is in it, in order; what is not named there comes after, under a title made of its file's name.
"""

import base64
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from PIL import Image
from pydantic import Field, ValidationError

from tsflora.config import Config, explain
from tsflora.errors import DataError
from tsflora.files import write_atomically

MANIFEST = "items.json"
_SHOWN = (".png", ".html", ".csv")
"""A figure, a table as people read it, and the numbers of either."""
_NAMED = (".pdf", ".md", ".tex")
"""The same figure or table for a paper."""
_MAX_CSV_BYTES = 256 * 1024
_DPI = 300
"""Assumed of a PNG that does not say."""
_CSS_DPI = 96 * 1.35
"""A CSS inch, a third larger: the 7 pt text of a figure for a paper is read from a screen."""
_TABLE_NAMES = {"table", "thead", "tbody", "tr", "th", "td", "span", "class", "colspan", "scope", "data-label"}
"""Of elements and their attributes in a table."""


class Item(Config):
    """A table or figure: the files of one stem, and the words that go with them."""

    stem: str = Field(pattern=r"^\w[\w.\-]*$")
    """The files' name without suffix; never a path."""
    title: str
    caption: str = ""


class Manifest(Config):
    """The content of an `items.json`."""

    title: str = ""
    items: tuple[Item, ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """Read an `items.json`.

        Raises:
            DataError: it cannot be read, or a key or value in it is not allowed.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise DataError(explain(error, str(path), cls)) from None

    def write(self, folder: Path) -> None:
        """Write it as the folder's `items.json`, atomically.

        Raises:
            StorageError: the folder cannot be written.
        """
        content = json.dumps(self.model_dump(exclude_defaults=True), indent=1, ensure_ascii=False)
        write_atomically(folder / MANIFEST, content.encode() + b"\n")


@dataclass
class Entry:
    """An item with the content of its files, and a sentence for each that is missing or damaged."""

    place: str
    """The path of its files below the page's folder, without suffix."""
    item: Item
    suffixes: list[str]
    picture: dict[str, Any] | None = None
    table: str | None = None
    """Markup, as `html_table` writes it and nothing else."""
    numbers: str | None = None
    problems: list[str] = field(default_factory=list)


@dataclass
class Section:
    """A folder's items, at least one; without any it was asked for and is missing."""

    name: str
    title: str
    entries: list[Entry]


def read_sections(folder: Path, order: Sequence[str], max_width_px: int) -> tuple[list[Section], list[str]]:
    """The sections of `folder`, and a line for each thing that is missing or left out.

    Those named in `order` come first; of the others the paper's tables, then its figures, then what it has not.

    Raises:
        DataError: an `items.json` is damaged.
    """
    found: dict[str, list[Path]] = {name: [] for name in order}
    notices = []
    for path in sorted(folder.rglob("*"), key=lambda path: (*_rank(path.parent), path.name)):
        place = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        if path.name == MANIFEST or path.suffix in (*_SHOWN, *_NAMED):
            found.setdefault("" if place.parent == Path() else place.parent.as_posix(), []).append(path)
        else:
            notices.append(f"{place.as_posix()} is not shown: a page takes {', '.join(_SHOWN)} and {MANIFEST}")
    sections = [_section(name, paths, max_width_px) for name, paths in found.items()]
    for section in sections:
        if not section.entries:
            notices.append(f"section {section.name} is missing: {folder / section.name} holds no tables or figures")
        notices += [f"{entry.place}{problem}" for entry in section.entries for problem in entry.problems]
    return sections, notices


def _rank(folder: Path) -> tuple[int, str]:
    """Sort key of a section's folder."""
    first = {"table": 0, "fig": 1}
    return first.get(folder.name.partition("_")[0], len(first)), folder.as_posix()


def _section(name: str, paths: Sequence[Path], max_width_px: int) -> Section:
    manifest, stems = Manifest(), dict[str, dict[str, Path]]()
    for path in paths:
        if path.name == MANIFEST:
            manifest = Manifest.read(path)
        else:
            stems.setdefault(path.stem, {})[path.suffix] = path
    items = {item.stem: item for item in manifest.items}
    # A file's name need not be a valid stem: it was found, not given.
    items |= {stem: Item.model_construct(stem=stem, title=_readable(stem)) for stem in stems if stem not in items}
    entries = []
    for stem, item in items.items():
        files = stems.get(stem, {})
        entries.append(Entry("/".join(part for part in (name, stem) if part), item, list(files)))
        _embed(entries[-1], files, max_width_px)
    return Section(name, manifest.title or _readable(name.rsplit("/", 1)[-1]) or "Results", entries)


def _embed(entry: Entry, files: Mapping[str, Path], max_width_px: int) -> None:
    for suffix, path in files.items():
        try:
            if suffix == ".png":
                entry.picture = embed_figure(path, max_width_px)
            elif suffix == ".html":
                entry.table = _fragment(path)
            elif suffix == ".csv" and path.stat().st_size <= _MAX_CSV_BYTES:
                entry.numbers = _data_uri(path.read_bytes(), "text/csv;charset=utf-8")
        except OSError as error:
            entry.problems.append(f"{suffix} is not shown: it cannot be read ({error.strerror or error})")
        except DataError as error:
            entry.problems.append(f"{suffix} is not shown: {error}")
    if not files.keys() & set(_SHOWN):
        beside = f" beside {', '.join(path.name for path in files.values())}" if files else ""
        entry.problems.append(f" is missing: no {' or '.join(_SHOWN)}{beside}")


def embed_figure(path: Path, max_width_px: int) -> dict[str, Any]:
    """An image's attributes: a PNG as lossless WebP on white, made narrower where it is wider than `max_width_px`.

    Lossless WebP takes about half the bytes of the PNG, for plots and for pictures, and no colour changes. Plots are
    best left at 300 dpi: a smaller copy has more shades and takes more bytes.

    Raises:
        DataError: the file is not a PNG that can be read.
    """
    try:
        with Image.open(path, formats=["PNG"]) as file:
            dpi = float(file.info.get("dpi", (_DPI,))[0]) or _DPI
            width, height = (max(1, round(side * _CSS_DPI / dpi)) for side in file.size)
            layers = file.convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"it is not a PNG that can be read ({' '.join(str(error).split())})") from None
    image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB")
    if image.width > max_width_px:
        narrower = (max_width_px, max(1, round(image.height * max_width_px / image.width)))
        image = image.resize(narrower, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return {"src": _data_uri(buffer.getvalue(), "image/webp"), "width": width, "height": height}


def _fragment(path: Path) -> str:
    """A table's HTML as `html_table` writes it: whole, and nothing but a table."""
    try:
        text = path.read_text(encoding="utf-8")
        parts = list(ElementTree.fromstring(text).iter())
    except (UnicodeDecodeError, ElementTree.ParseError) as error:
        raise DataError(f"it is not a whole table ({error})") from None
    names = {part.tag for part in parts} | {name for part in parts for name in part.attrib}
    if parts[0].tag != "table" or not names <= _TABLE_NAMES:
        raise DataError("it holds more than a table")
    return text


def _data_uri(content: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _readable(name: str) -> str:
    """A title made of a file's or folder's name: `accuracy_by_bytes` becomes `Accuracy by bytes`."""
    words = " ".join(re.split(r"[_\s]+", name)).strip()
    return words[:1].upper() + words[1:]
