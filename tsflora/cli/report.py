"""`tsflora report`: a study's tables and figures as one page."""

from pathlib import Path
from typing import Annotated

import typer

from tsflora.cli.common import PARAMS, read_study
from tsflora.errors import DataError


def report(
    folder: Annotated[
        Path, typer.Argument(help="Folder with the study's tables and figures; subfolders are sections.")
    ],
    output: Annotated[Path, typer.Option(help="The .html file to write.")],
    records: Annotated[
        Path | None, typer.Option(help="The study's records, one a line. Without it, the page says nothing of runs.")
    ] = None,
    params: Annotated[
        Path, typer.Option(help="The study's params.yaml: its name, settings and planned runs.")
    ] = PARAMS,
    title: Annotated[str | None, typer.Option(help="The page's title instead of the study's name.")] = None,
    section: Annotated[
        list[str] | None,
        typer.Option(help="A subfolder, again for each: these come first, in this order, the others after by name."),
    ] = None,
    max_width_px: Annotated[int, typer.Option(min=1, help="Wider figures are made narrower.")] = 2100,
) -> None:
    """Join a study's tables and figures into one page.

    The page holds everything in FOLDER and opens offline: figures (.png), tables (.html), numbers (.csv). An
    items.json in a folder gives its items' order, titles and captions; where there is none, titles are made of file
    names. What is missing is marked on the page and named here, and the page is written all the same.
    """
    import logging

    from tsflora.analysis.page.page import Runs, build_page
    from tsflora.analysis.runs.collection import read_jsonl
    from tsflora.analysis.runs.setting import setting
    from tsflora.files import write_atomically

    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the one that tables and figures were written to")
    study = read_study(params)
    runs = None
    if records is not None:
        found = read_jsonl(records)
        runs = Runs(study.all_cells(), [*found.complete, *found.failed])
    page = build_page(folder, title or study.name, runs, setting(study), section or (), max_width_px)
    write_atomically(output, page.html)
    for notice in page.notices:
        logging.warning(notice)
    typer.echo(f"{page.n_items} tables and figures, {len(page.html) / 2**20:.2f} MiB -> {output}")
