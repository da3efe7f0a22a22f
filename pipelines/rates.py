"""Choose a study's learning rate: the reference method alone, on training images held back for it."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.files import write_atomically
from tsflora.rates import rate_cells, rate_table
from tsflora.runs import run_cells
from tsflora.settings import Settings
from tsflora.study import StudyConfig


def main(
    output: Annotated[Path, typer.Argument(help="The .csv file to write.")],
    rate: Annotated[list[float], typer.Option(help="A learning rate of the grid; again for each.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml.")] = Path("params.yaml"),
    dataset: Annotated[
        list[str] | None, typer.Option(help="A key of `datasets`; again for each; default: all.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; again for each; all.")] = None,
    held_back: Annotated[int, typer.Option(min=1, help="Training images to judge on.")] = 1000,
    records_dir: Annotated[Path | None, typer.Option(help="Where the runs' records go.")] = None,
    checkpoint_dir: Annotated[Path | None, typer.Option(help="Where half-finished runs go.")] = None,
) -> None:
    """Train SFLora at each rate without looking at the test set, and write which rate is best on each data set."""
    with one_line_errors():
        study = StudyConfig.read(params)
        settings = Settings.from_environment(checkpoint_dir=checkpoint_dir)
        cells = [cell for key in dataset or study.datasets for cell in rate_cells(study, key, rate, held_back, seed)]
        table = rate_table(run_cells(cells, settings, records_dir))
        write_atomically(output, table.to_csv(index=False, float_format="%.6g").encode())
        print(table.to_string(index=False))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
