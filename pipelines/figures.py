"""Draw a study's tables and figures: every notebook of a folder, found by being there, side by side."""

import logging
from pathlib import Path
from typing import Annotated, Any

import joblib
import typer
from command import one_line_errors
from notebook import execute
from tqdm import tqdm

from tsflora.config import did_you_mean
from tsflora.errors import ConfigError, DataError, TsfloraError
from tsflora.settings import Settings
from tsflora.study import StudyConfig
from tsflora.workers import Died, Report, side_by_side


def main(
    folder: Annotated[Path, typer.Argument(help="The notebooks; each takes `params`, `records`, `output_dir`.")],
    output: Annotated[Path, typer.Argument(help="Where tables and figures go, into a subfolder for each notebook.")],
    records: Annotated[Path, typer.Option(help="The study's records, one a line.")],
    executed: Annotated[Path, typer.Option(help="Where the executed copies go.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml.")] = Path("params.yaml"),
    name: Annotated[
        list[str] | None, typer.Option(help="A notebook, again for each. [default: the study's `figures`, or all]")
    ] = None,
) -> None:
    """Execute the notebooks of FOLDER on a study's records and write what they show below OUTPUT."""
    with one_line_errors():
        known = {path.stem: path for path in sorted(folder.glob("*.ipynb"))}
        if not known:
            raise DataError(f"{folder} holds no notebook")
        chosen = name or StudyConfig.read(params).figures or list(known)
        for each in chosen:
            if each not in known:
                raise ConfigError(f"figures: there is no {folder / each}.ipynb; {did_you_mean(each, known)}")
        jobs = [
            (
                known[each],
                executed / f"{each}.ipynb",
                {"params": str(params), "records": str(records), "output_dir": str(output / each)},
            )
            for each in chosen
        ]
        _draw(jobs, Settings.from_environment().workers or joblib.cpu_count())


def _draw(jobs: list[tuple[Path, Path, dict[str, Any]]], n_workers: int) -> None:
    """Every job, as many at once as there are cores; the first error ends the others."""
    with tqdm(total=len(jobs), unit="notebook") as bar:
        if n_workers == 1 or len(jobs) == 1:
            for job in jobs:
                execute(*job)
                bar.update()
            return
        for index, outcome in side_by_side(_execute, jobs, min(n_workers, len(jobs)), 1, lambda *_: None):
            if isinstance(outcome, Died):
                raise TsfloraError(f"{jobs[index][0].name}: its process ended by {outcome.how}")
            bar.update()


def _execute(job: tuple[Path, Path, dict[str, Any]], _: Report) -> None:
    execute(*job)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
