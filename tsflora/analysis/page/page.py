"""Everything that a study produced as one HTML page: it opens from a file, asks for nothing else, and can be mailed."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import pandas as pd

from tsflora.analysis.page.embedding import Picture, Table, embed_csv, embed_figure, embed_table
from tsflora.analysis.page.items import Entry, Section, read_sections
from tsflora.analysis.runs.coverage import PlannedRun, coverage, coverage_sentence
from tsflora.errors import ConfigError, DataError
from tsflora.records import RunRecord

_TEMPLATES = Path(__file__).parent / "templates"
_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Runs:
    """A study's plan, and the records that are in: complete and failed ones together."""

    planned: Sequence[PlannedRun]
    records: Sequence[RunRecord]


@dataclass(frozen=True)
class Page:
    """The page, and a line for each thing that is missing, damaged or left out."""

    html: bytes
    notices: tuple[str, ...]
    n_items: int
    """Items shown."""
    largest: tuple[str, ...]
    """The three items that take the most bytes, largest first, with their size."""


@dataclass
class _Shown:
    """An item as the template takes it."""

    anchor: str
    place: str
    entry: Entry
    picture: Picture | None = None
    table: Table | None = None
    numbers: str | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        cells = 0 if self.table is None else sum(len(cell) + 9 for row in self.table.rows for cell in row)
        return len(self.picture.source if self.picture else "") + len(self.numbers or "") + cells


def build_page(
    folder: Path,
    title: str,
    runs: Runs | None = None,
    settings: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
    max_width_px: int = 2100,
) -> Page:
    """Join the tables and figures below `folder`, and what is known of the runs, into one page.

    The same input always gives the same bytes. What is missing or damaged is marked in its place and named in
    `notices`; the page is built all the same.

    Args:
        folder: as `read_sections`; where it does not exist, the page tells of the runs alone.
        title: the study's name.
        runs: None says nothing of runs.
        settings: what the study was run with, name and value as printed.
        order: names of sections (folders below `folder`) that come first; one that is not there is marked as missing.
        max_width_px: wider figures are made narrower.

    Raises:
        ConfigError: `max_width_px` is not positive.
        DataError: an `items.json` is damaged.
    """
    if max_width_px < 1:
        raise ConfigError(f"max_width_px: 1 or more; given: {max_width_px}")
    sections, notices = read_sections(folder, order)
    shown = [(section, [_show(section, entry, max_width_px) for entry in section.entries]) for section in sections]
    items = [item for _, entries in shown for item in entries]
    for item in items:
        notices.extend(f"{item.place}{problem}" for problem in item.problems)
    content = {
        "title": title,
        "sections": [
            {"anchor": f"section/{quote(section.name)}", "section": section, "items": entries}
            for section, entries in shown
        ],
        "problems": [item for item in items if item.entry.is_missing or item.problems],
        "n_missing_sections": sum(section.is_missing for section in sections),
        "n_items": len(items),
        "settings": dict(settings or {}),
        "runs": None if runs is None else _runs_content(runs),
    }
    largest = sorted((item for item in items if item.size_bytes), key=lambda item: -item.size_bytes)[:3]
    return Page(
        html=_render(content),
        notices=tuple(notices),
        n_items=sum(not item.entry.is_missing for item in items),
        largest=tuple(f"{item.place} ({item.size_bytes / 2**20:.2f} MiB)" for item in largest),
    )


def _show(section: Section, entry: Entry, max_width_px: int) -> _Shown:
    place = section.place(entry)
    shown = _Shown(f"item/{quote(place)}", place, entry)
    files = entry.files
    if ".png" in files:
        try:
            shown.picture = embed_figure(files[".png"], max_width_px)
        except DataError as error:
            shown.problems.append(f".png is not shown: {error}")
    # The numbers beside a figure or a printed table are for machines: they travel along, and are not printed.
    if ".md" in files or (".csv" in files and ".png" not in files):
        try:
            shown.table = embed_table(files)
        except DataError as error:
            shown.problems.append(f"{'.md' if '.md' in files else '.csv'} is not shown: {error}")
    if ".csv" in files:
        try:
            shown.numbers = embed_csv(files[".csv"])
        except DataError as error:
            shown.problems.append(f".csv is not shown: {error}")
    return shown


def _runs_content(runs: Runs) -> dict[str, Any]:
    table = coverage(runs.planned, runs.records)
    complete = [run for run in runs.records if run.status == "complete"]
    n_in, n_planned = int(table["in"].sum()), int(table["planned"].sum())
    return {
        "n_in": n_in,
        "n_planned": n_planned,
        "is_complete": n_in == n_planned > 0,
        "sentence": coverage_sentence(runs.planned, runs.records),
        "table": _coverage_table(table),
        "provenance": provenance_facts(complete) if complete else {},
    }


def _coverage_table(found: pd.DataFrame) -> Table:
    """`coverage` as printed; columns that would be empty are left out."""
    columns = {
        "Data set": found["dataset"].tolist(),
        "Method or sweep": found["label"].tolist(),
        "Runs in": [f"{n_in} of {n}" for n_in, n in zip(found["in"], found["planned"], strict=True)],
        "Missing": found["missing"].tolist(),
        "Failed": found["failed"].tolist(),
        "Of other settings": [str(count or "") for count in found["other_settings"]],
    }
    columns = {name: cells for name, cells in columns.items() if any(cells)}
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    return Table(list(columns), rows, [name in ("Runs in", "Of other settings") for name in columns])


def provenance_facts(records: Sequence[RunRecord]) -> dict[str, str]:
    """Where and with what records were made, name and value as printed; values that differ say how many runs each."""
    origins = [run.provenance for run in records]
    packages = sorted({name for origin in origins for name in origin.versions})
    days = sorted(run.started_at[:10] for run in records)
    return {
        "Git commit": _values(_commit(origin.git_commit) for origin in origins),
        "Training code": _values(origin.code_sha256[:_DIGEST_LENGTH] for origin in origins),
        "Backbone weights": _values(run.geometry.weights_sha256[:_DIGEST_LENGTH] for run in records if run.geometry),
        **{f"{name} version": _values(origin.versions.get(name, "unknown") for origin in origins) for name in packages},
        "Host": _values(_host(origin.host) for origin in origins),
        "Run on": days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
        "Time, all runs": _duration(sum(run.seconds for run in records)),
    }


def _commit(described: str | None) -> str:
    if described is None:
        return "unknown"
    commit, dirty, _ = described.partition("-dirty")
    return commit[:_DIGEST_LENGTH] + (" with uncommitted changes" if dirty else "")


def _host(host: Mapping[str, str]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(host.items()))


def _values(values: Iterable[str]) -> str:
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{value} ({n} {'run' if n == 1 else 'runs'})" for value, n in counts)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return (
        f"{minutes // 60} h {minutes % 60} min"
        if minutes >= 60
        else f"{minutes} min"
        if minutes
        else f"{seconds:.0f} s"
    )


def _render(content: Mapping[str, Any]) -> bytes:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,  # every value that a file or a params.yaml gave is text, never markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (_TEMPLATES / "page.css").read_text(encoding="utf-8")
    # The page forbids itself every script and every address but its own data, so that a browser holds it to that.
    style_digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    html = environment.get_template("page.html").render(content, style=style, style_digest=style_digest)
    return html.encode("utf-8", errors="replace")
