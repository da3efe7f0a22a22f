"""Everything that a study produced as one HTML page: it opens from a file, asks for nothing else, and can be mailed."""

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from tsflora.analysis.page.sections import read_sections
from tsflora.analysis.runs.coverage import coverage, coverage_sentence
from tsflora.analysis.tables.markup import html_table, printed
from tsflora.errors import ConfigError
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord

_TEMPLATES = Path(__file__).parent / "templates"
_DIGEST_LENGTH = 12


@dataclass(frozen=True)
class Runs:
    """A study's plan, and the records that are in: complete and failed ones together."""

    planned: Sequence[ExperimentConfig]
    records: Sequence[RunRecord]


@dataclass(frozen=True)
class Page:
    """The page, and a line for each thing that is missing, damaged or left out."""

    html: bytes
    notices: tuple[str, ...]
    n_items: int
    """Items of which something is shown."""


def build_page(
    folder: Path,
    title: str,
    runs: Runs | None = None,
    settings: Mapping[str, str] | None = None,
    order: Sequence[str] = (),
    max_width_px: int = 2100,
) -> Page:
    """Join the tables and figures below `folder`, and what is known of the runs, into one page.

    The same results always give the same bytes: no clock and no host stands on it. What is missing or damaged is marked
    in its place and named in `notices`; the page is built all the same.

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
    sections, notices = read_sections(folder, order, max_width_px)
    html = _render(
        title=title,
        sections=sections,
        settings=dict(settings or {}),
        runs=None if runs is None else _runs_content(runs),
    )
    entries = [entry for section in sections for entry in section.entries]
    return Page(html, tuple(notices), sum(bool(entry.picture or entry.table or entry.numbers) for entry in entries))


def _runs_content(runs: Runs) -> dict[str, Any]:
    table = coverage(runs.planned, runs.records)
    complete = [run for run in runs.records if run.status == "complete"]
    return {
        "is_complete": table["in"].sum() == table["planned"].sum() > 0,
        "sentence": coverage_sentence(runs.planned, runs.records),
        "table": html_table(printed(_coverage_table(table))),
        "provenance": provenance_facts(complete) if complete else {},
    }


def _coverage_table(found: pd.DataFrame) -> pd.DataFrame:
    """`coverage` for people; columns that would be empty are left out."""
    columns = {
        "Data set": found["dataset"].tolist(),
        "Method or sweep": found["label"].tolist(),
        "Runs in": [f"{n_in} of {n}" for n_in, n in zip(found["in"], found["planned"], strict=True)],
        "Missing": found["missing"].tolist(),
        "Failed": found["failed"].tolist(),
        "Of other settings": [str(count or "") for count in found["other_settings"]],
    }
    return pd.DataFrame({name: cells for name, cells in columns.items() if any(cells)})


def provenance_facts(records: Sequence[RunRecord]) -> dict[str, str]:
    """With what records were made, name and value as printed; values that differ say how many runs each.

    When, where and how long is left to the records: it differs from run to run of the same results.
    """
    origins = [run.provenance for run in records]
    packages = sorted({name for origin in origins for name in origin.versions})
    return {
        "Git commit": _values(_commit(origin.git_commit) for origin in origins),
        "Training code": _values(origin.code_sha256[:_DIGEST_LENGTH] for origin in origins),
        "Backbone weights": _values(run.geometry.weights_sha256[:_DIGEST_LENGTH] for run in records if run.geometry),
        "Computed on": _values(origin.host.get("device", "unknown") for origin in origins),
        **{f"{name} version": _values(origin.versions.get(name, "unknown") for origin in origins) for name in packages},
    }


def _commit(described: str | None) -> str:
    if described is None:
        return "unknown"
    commit, dirty, _ = described.partition("-dirty")
    return commit[:_DIGEST_LENGTH] + (" with uncommitted changes" if dirty else "")


def _values(values: Iterable[str]) -> str:
    counts = sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0]))
    if len(counts) == 1:
        return counts[0][0]
    return "; ".join(f"{value} ({n} {'run' if n == 1 else 'runs'})" for value, n in counts)


def _render(**content: Any) -> bytes:
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
    html = environment.get_template("page.html").render(**content, style=style, style_digest=style_digest)
    return html.encode("utf-8", errors="replace")
