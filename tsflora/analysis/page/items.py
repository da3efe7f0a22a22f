"""What stands in a folder of tables and figures: files by stem, and `items.json`, which says how to present them.

A folder is one section of a page, and so is each folder below it. `items.json` is optional in each: without it, every
table and figure is shown in order of its name, under a title made of its name.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from tsflora.config import Config, explain
from tsflora.errors import DataError
from tsflora.files import write_atomically

MANIFEST = "items.json"
SHOWN = (".png", ".md", ".csv")
"""A figure, a table as people read it, and a table's numbers."""
_ALSO = (".pdf", ".tex")
"""The same figure or table for a paper; named on the page."""


class Item(Config):
    """A table or figure, or one of each: the files of one stem, and the words that go with them."""

    stem: str = Field(pattern=r"^\w[\w.\-]*$")
    """The files' name without suffix; never a path."""
    title: str
    caption: str = ""


class Manifest(Config):
    """The content of an `items.json`."""

    title: str = ""
    text: str = ""
    """A paragraph below the title."""
    items: tuple[Item, ...] = ()

    @field_validator("items")
    @classmethod
    def _distinct(cls, items: tuple[Item, ...]) -> tuple[Item, ...]:
        stems = [item.stem for item in items]
        if len(set(stems)) < len(stems):
            raise ValueError(f"every stem once; given: {stems}")
        return items

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

    def write(self, path: Path) -> None:
        """Write it, atomically; the same manifest always gives the same bytes.

        Raises:
            StorageError: the folder cannot be written.
        """
        content = json.dumps(self.model_dump(exclude_defaults=True), indent=1, ensure_ascii=False)
        write_atomically(path, content.encode() + b"\n")


def write_items(folder: Path, items: Iterable[Item] = (), title: str = "", text: str = "") -> Path:
    """Say what stands in `folder`, in this order; replaces what was said before.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = folder / MANIFEST
    Manifest(title=title, text=text, items=tuple(items)).write(path)
    return path


def add_item(folder: Path, item: Item) -> Path:
    """Say of one more item what it is; an item of the same stem keeps its place and is replaced.

    Raises:
        DataError: the folder's `items.json` is damaged.
        StorageError: the folder cannot be written.
    """
    path = folder / MANIFEST
    known = Manifest.read(path) if path.exists() else Manifest()
    items = {**{old.stem: old for old in known.items}, item.stem: item}
    known.model_copy(update={"items": tuple(items.values())}).write(path)
    return path


@dataclass(frozen=True)
class Entry:
    """An item and its files by suffix; without a file in `SHOWN` it is missing."""

    item: Item
    files: dict[str, Path]

    @property
    def is_missing(self) -> bool:
        """Whether there is nothing to show."""
        return not self.files.keys() & set(SHOWN)


@dataclass(frozen=True)
class Section:
    """A folder's items. `name` is its path below the page's folder, empty for that folder itself."""

    name: str
    title: str
    text: str = ""
    entries: list[Entry] = field(default_factory=list)
    is_missing: bool = False
    """Asked for, and not there."""

    def place(self, entry: Entry) -> str:
        """The path of an entry's files below the page's folder, without suffix."""
        return "/".join(part for part in (self.name, entry.item.stem) if part)


def read_sections(folder: Path, order: Sequence[str] = ()) -> tuple[list[Section], list[str]]:
    """The sections of `folder`, those named in `order` first, and a line for each thing that is missing or left out.

    Nothing outside `folder` is opened, wherever links point.

    Raises:
        DataError: an `items.json` is damaged.
    """
    root, notices = folder.resolve(), []
    by_name: dict[str, list[Path]] = {name: [] for name in order}
    for path in sorted(folder.rglob("*"), key=_natural):
        place = path.relative_to(folder)
        if not path.is_file() or any(part.startswith(".") for part in place.parts):
            continue
        if not path.resolve().is_relative_to(root):
            notices.append(f"{place.as_posix()} is not shown: it is a link to outside of {folder}")
        elif path.name == MANIFEST or path.suffix in (*SHOWN, *_ALSO):
            by_name.setdefault("" if len(place.parts) == 1 else place.parent.as_posix(), []).append(path)
        else:
            notices.append(f"{place.as_posix()} is not shown: a page takes {', '.join(SHOWN)} and {MANIFEST}")
    sections = [_section(name, paths) for name, paths in by_name.items()]
    for section in sections:
        for entry in section.entries:
            if entry.is_missing:
                others = ", ".join(path.name for path in entry.files.values())
                notices.append(
                    f"{section.place(entry)} is missing: no {' or '.join(SHOWN)}"
                    + (f" beside {others}" if others else "")
                )
        if section.is_missing:
            notices.append(f"section {section.name} is missing: {folder / section.name} holds no tables or figures")
    return sections, notices


def readable(name: str) -> str:
    """A title made of a file's or folder's name: `accuracy_by_bytes` becomes `Accuracy by bytes`."""
    words = " ".join(re.split(r"[_\s]+", name)).strip()
    return words[:1].upper() + words[1:]


def _section(name: str, paths: Sequence[Path]) -> Section:
    manifest, files = Manifest(), dict[str, dict[str, Path]]()
    for path in paths:
        if path.name == MANIFEST:
            manifest = Manifest.read(path)
        else:
            files.setdefault(path.stem, {})[path.suffix] = path
    described = [Entry(item, files.pop(item.stem, {})) for item in manifest.items]
    # A file's name need not be a valid stem: it was found, not given.
    others = [Entry(Item.model_construct(stem=stem, title=readable(stem)), found) for stem, found in files.items()]
    title = manifest.title or readable(name.rsplit("/", 1)[-1]) or "Results"
    return Section(name, title, manifest.text, [*described, *others], is_missing=not paths)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Sort key under which `fig_2` stands before `fig_10`; numbers before words."""
    parts = re.findall(r"\d+|\D+", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]
