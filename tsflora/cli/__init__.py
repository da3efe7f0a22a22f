"""The `tsflora` command. Each command imports what it needs when it is called: help must not wait for torch."""

import logging

import typer

from tsflora.cli.check import check
from tsflora.cli.compare import compare
from tsflora.cli.components import ls, test_plugin
from tsflora.cli.export import export
from tsflora.cli.report import report
from tsflora.cli.run import run
from tsflora.terminal import one_line_errors

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.callback()
def main() -> None:
    """Benchmark token-compressed split fine-tuning of Vision Transformers: plan a study, run it, compare and report."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")


for command in (check, run, compare, report, export, ls, test_plugin):
    app.command()(one_line_errors()(command))
