"""Tables to files: numbers as CSV, and what people read as Markdown, LaTeX and HTML, all from one frame."""

from pathlib import Path

import pandas as pd

from tsflora.analysis.tables.markup import flat, html_table, latex_table, markdown_table, printed
from tsflora.files import write_atomically


def write_table(table: pd.DataFrame, stem: Path, raw: pd.DataFrame | None = None) -> tuple[Path, ...]:
    """Write `stem`.csv, .md, .tex and .html, each atomically; the same table always gives the same bytes.

    The CSV holds `raw`, the long frame of numbers, where there is one; the others hold `table`. An unnamed index of row
    numbers is not written.

    Raises:
        StorageError: the folder cannot be written.
    """
    text = printed(table)
    paths = [write_csv(flat(text) if raw is None else raw, stem)]
    for suffix, content in ((".md", markdown_table(text)), (".tex", latex_table(text)), (".html", html_table(text))):
        paths.append(_beside(stem, suffix))
        write_atomically(paths[-1], content.encode())
    return tuple(paths)


def write_csv(numbers: pd.DataFrame, stem: Path) -> Path:
    """Write `stem`.csv: six digits of each fraction, of which the last would differ by machine; whole numbers whole.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = _beside(stem, ".csv")
    write_atomically(path, numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode())
    return path


def _beside(stem: Path, suffix: str) -> Path:
    """`stem` with a suffix added: `with_suffix` would cut a name such as `dirichlet_0.5`."""
    return stem.with_name(stem.name + suffix)
