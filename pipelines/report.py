"""Join a study's tables, figures and records into one HTML page: `tsflora report` as a stage of this checkout."""

import logging

import typer
from command import one_line_errors

from tsflora.cli.report import report

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(one_line_errors()(report))
    app()
