"""One printed table in three languages: Markdown for a repository's page, LaTeX (booktabs), HTML for the report page.

Any cell and heading prints as it is, whatever signs it holds. A column of numbers stands right in all three.
"""

import html
import itertools
import re
from collections.abc import Iterable

import pandas as pd

_NUMBER = re.compile(r"[+\-−]?(\d[\d,]*(\.\d+)?|\.\d+)( ?[%×])?")
_MEASURED = re.compile(rf"{_NUMBER.pattern}( .*)?")
_MISSING = "–"
_PROSE_CHARACTERS = 26
"""A longer cell takes a line of its own where there is little room."""
_LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "±": r"$\pm$",
        "−": "$-$",
        "–": r"\textendash{}",
        "×": r"$\times$",
    }
)


def printed(table: pd.DataFrame) -> pd.DataFrame:
    """All cells as text and a named index as columns; an unnamed one is row numbers, which nobody reads."""
    if table.index.name is not None:
        # On two-line headers the index name belongs on the lower line, beside the partitions.
        table = table.reset_index(col_level=-1) if table.columns.nlevels > 1 else table.reset_index()
    return table.astype(object).map(_cell)


def flat(table: pd.DataFrame) -> pd.DataFrame:
    """Two-line headings as one line."""
    if table.columns.nlevels == 1:
        return table
    return table.set_axis([", ".join(part for part in column if part) for column in table.columns], axis=1)


def is_numeric(cells: list[str]) -> bool:
    """Whether a column is one of numbers: most of what is not missing is, as `1,024`, `−0.5`, `41 %` or `6.8×`.

    One word among numbers (`infeasible`) does not make it a column of words, nor one number a column of numbers. A
    number with its interval is none of these: its digits meet at the left.
    """
    found = [cell for cell in cells if cell and not cell.startswith(_MISSING)]
    return 2 * sum(_NUMBER.fullmatch(cell) is not None for cell in found) > len(found)


def markdown_table(table: pd.DataFrame) -> str:
    """The pipe table of a `printed` frame."""
    text = flat(table).rename(columns=_markdown).map(_markdown)
    sides = ["right" if is_numeric(cells) else "left" for cells in _columns(table)]
    return text.to_markdown(index=False, disable_numparse=True, colalign=sides) + "\n"


def latex_table(table: pd.DataFrame) -> str:
    """The booktabs table of a `printed` frame, in commands that every engine knows."""
    sides = "".join("r" if is_numeric(cells) else "l" for cells in _columns(table))
    text = table.rename(columns=_latex).map(_latex)
    lines = text.to_latex(index=False, escape=False, multicolumn_format="c", column_format=sides)
    # At the start of a row these would belong to the command that ended the row before.
    return re.sub(r"^(?=[\[*])", "{}", lines, flags=re.MULTILINE)


def html_table(table: pd.DataFrame) -> str:
    """The `<table>` of a `printed` frame.

    The first columns, as long as they hold words, head their row; every other cell carries its column's name, so that a
    narrow page can show a row as a list.
    """
    columns = list(zip(flat(table).columns, _columns(table), strict=True))
    n_names = len(list(itertools.takewhile(lambda column: not any(map(_MEASURED.fullmatch, column[1])), columns)))
    kinds = [_kind(cells) for _, cells in columns]
    labels = [html.escape(name).replace("-", "\u2011") for name, _ in columns]  # not broken at its hyphens either
    heads = []
    if table.columns.nlevels > 1:
        groups = itertools.groupby(table.columns.get_level_values(0))
        heads.append(f'<th colspan="{len(list(group))}">{_html(name)}</th>' for name, group in groups)
    lowest = zip(table.columns.get_level_values(-1), kinds, strict=True)
    heads.append(f'<th scope="col"{kind}>{_html(name)}</th>' for name, kind in lowest)
    rows = [
        (
            f'<th scope="row">{_html(cell)}</th>'
            if place < n_names
            else f'<td{kinds[place]} data-label="{labels[place]}">{_html(cell)}</td>'
            for place, cell in enumerate(row)
        )
        for row in table.itertuples(index=False, name=None)
    ]
    return f"<table>\n<thead>\n{_lines(heads)}</thead>\n<tbody>\n{_lines(rows)}</tbody>\n</table>\n"


def _cell(value: object) -> str:
    if isinstance(value, float):
        return _MISSING if pd.isna(value) else f"{value:.6g}"
    return " ".join(str(value).split())


def _columns(table: pd.DataFrame) -> list[list[str]]:
    return [table.iloc[:, place].tolist() for place in range(table.shape[1])]


def _kind(cells: list[str]) -> str:
    """The class of a column's cells, as an attribute."""
    if is_numeric(cells):
        return ' class="number"'
    return ' class="prose"' if max(map(len, cells), default=0) > _PROSE_CHARACTERS else ""


def _lines(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"<tr>{''.join(row)}</tr>\n" for row in rows)


def _markdown(text: str) -> str:
    """`text` with a backslash before each sign that would do something in CommonMark, a table or GitHub's formulas."""
    text = re.sub(r"([\\`*<|$~]|\](?=[(\[])|&(?=#?\w+;))", r"\\\1", text)
    # Inside a word an underscore is one.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def _latex(text: str) -> str:
    # Two of these in a row would be joined to a dash or a quotation mark.
    return re.sub(r"([-'`])(?=\1)", r"\1{}", text.translate(_LATEX))


def _html(text: str) -> str:
    # A word is not broken at its hyphen.
    return re.sub(r"\S*\w-\w\S*", r"<span>\g<0></span>", html.escape(text))
