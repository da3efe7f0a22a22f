"""Execute a parameterised notebook as a stage, and keep the executed copy."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import papermill
import typer
import yaml
from command import one_line_errors

from tsflora.errors import ConfigError, StorageError


def main(
    notebook: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml.")] = Path("params.yaml"),
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value for its parameters cell; YAML values.")
    ] = None,
) -> None:
    """Execute NOTEBOOK with its parameters cell overridden and write the executed copy to OUTPUT.

    A notebook that fails is written with the failing cell, and its error is printed as one line.
    """
    with one_line_errors():
        values: dict[str, Any] = {"params": str(params)}
        for pair in parameter or []:
            name, separator, value = pair.partition("=")
            if not separator:
                raise ConfigError(f"--parameter {pair!r}: name=value is expected")
            values[name] = yaml.safe_load(value)
        known = papermill.inspect_notebook(str(notebook)) if notebook.exists() else None
        if known is None:
            raise ConfigError(f"notebook {notebook} does not exist")
        unknown = sorted(values.keys() - known.keys())
        if unknown:
            raise ConfigError(f"{notebook} has no parameter {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot write {output}: {error.strerror}; choose another folder") from None
    try:
        papermill.execute_notebook(
            str(notebook),
            str(output),
            values,
            progress_bar=False,
            # The notebook's own bar, with loss, accuracy and MiB, shows in the terminal that waits for the stage.
            stderr_file=sys.stderr if sys.stderr.isatty() else None,
            # The kernel would warn at every start that its loopback connection is not encrypted.
            extra_arguments=["--log-level=ERROR"],
        )
    except papermill.PapermillExecutionError as error:
        # The traceback is in the executed notebook; a stage's log gets the line that says what to do.
        print(f"error: {notebook.name}: {error.evalue or error.ename} (executed copy: {output})", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    typer.run(main)
