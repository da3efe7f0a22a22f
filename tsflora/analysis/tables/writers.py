"""Tables to files: CSV with raw numbers, Markdown for a repository's page, LaTeX (booktabs) for a paper."""

from pathlib import Path

import pandas as pd

from tsflora.files import write_atomically

_LATEX_SIGNS = {"±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$"}


def write_table(table: pd.DataFrame, stem: Path, raw: pd.DataFrame | None = None) -> tuple[Path, Path, Path]:
    """Write `stem`.csv, `stem`.md and `stem`.tex, each atomically; the same table always gives the same bytes.

    The CSV holds `raw`, the long frame with full precision, where there is one; Markdown and LaTeX hold `table`. An
    unnamed index of row numbers is not written.

    Raises:
        StorageError: the folder cannot be written.
    """
    table = table if table.index.name is None else _index_as_column(table)
    paths = (_beside(stem, ".csv"), _beside(stem, ".md"), _beside(stem, ".tex"))
    numbers = _flat(table) if raw is None else raw
    contents = (numbers.to_csv(index=False, lineterminator="\n"), _markdown(table), _latex(table))
    for path, content in zip(paths, contents, strict=True):
        write_atomically(path, content.encode())
    return paths


def write_csv(numbers: pd.DataFrame, stem: Path) -> Path:
    """Write `stem`.csv alone: the numbers that a figure draws.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = _beside(stem, ".csv")
    write_atomically(path, numbers.to_csv(index=False, lineterminator="\n").encode())
    return path


def _beside(stem: Path, suffix: str) -> Path:
    """`stem` with a suffix added: `with_suffix` would cut a name such as `dirichlet_0.5`."""
    return stem.with_name(stem.name + suffix)


def _index_as_column(table: pd.DataFrame) -> pd.DataFrame:
    # On two-line headers the index name belongs on the lower line, beside the partitions.
    return table.reset_index(col_level=-1) if table.columns.nlevels > 1 else table.reset_index()


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """Two-line headers as one line."""
    if table.columns.nlevels == 1:
        return table
    return table.set_axis([", ".join(part for part in column if part) for column in table.columns], axis=1)


def _markdown(table: pd.DataFrame) -> str:
    # A bar inside a cell would end it, and numbers that are printed must stay as they were printed.
    text = _flat(table).astype(str).map(lambda cell: cell.replace("|", r"\|"))
    return text.to_markdown(index=False, disable_numparse=True) + "\n"


def _latex(table: pd.DataFrame) -> str:
    text = table.to_latex(index=False, escape=True, multicolumn_format="c")
    for sign, command in _LATEX_SIGNS.items():
        text = text.replace(sign, command)
    return text
