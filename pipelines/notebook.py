"""Execute a parameterised notebook as a stage, and keep the executed copy."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

# jsonschema, which nbformat checks notebooks with, would compile a grammar of URIs at import: 1.3 s, a tenth of a
# figure's stage, for a format that no notebook uses. It does without where the package is missing.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import nbformat
import papermill
import typer
from command import one_line_errors
from jupyter_client.kernelspec import NoSuchKernel

from tsflora.errors import ConfigError, StorageError, TsfloraError
from tsflora.params import parse_yaml


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
        values = {"params": str(params), **_parsed(parameter or [])}
        if not notebook.exists():
            raise ConfigError(f"notebook {notebook} does not exist")
        try:
            known = papermill.inspect_notebook(str(notebook))
        except (ValueError, nbformat.reader.NotJSONError) as error:
            raise ConfigError(f"{notebook} is not a notebook: {' '.join(str(error).split())[:200]}") from None
        unknown = sorted(values.keys() - known.keys())
        if unknown:
            raise ConfigError(f"{notebook} has no parameter {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            _execute(notebook, output, values)
        except OSError as error:
            raise StorageError(f"cannot write {output}: {error.strerror}; choose another place") from None
        except NoSuchKernel as error:
            raise ConfigError(f"{notebook}: {error}; install ipykernel in this environment") from None
        except papermill.PapermillExecutionError as error:
            # The traceback is in the executed notebook; a stage's log gets the line that says what to do.
            line = f"{notebook.name}: {error.evalue or error.ename} (executed copy: {output})"
            raise TsfloraError(" ".join(line.split())) from None


def _parsed(pairs: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        expected = f"--parameter {pair!r}: name=value is expected, the value as YAML, e.g. seeds=[0,1]"
        if not separator:
            raise ConfigError(expected)
        if name in values:
            raise ConfigError(f"--parameter {pair!r}: {name!r} is given twice")
        try:
            values[name] = parse_yaml(value, "the value")
        except ConfigError as error:
            raise ConfigError(f"{expected}; {error}") from None
    return values


def _execute(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    papermill.execute_notebook(
        str(notebook),
        str(output),
        values,
        progress_bar=False,
        # The notebook's own bar, with loss, accuracy and MiB, shows in the terminal that waits for the stage.
        stderr_file=sys.stderr if sys.stderr.isatty() else None,
        # The kernel would warn at every start that its loopback connection is not encrypted.
        extra_arguments=["--log-level=ERROR"],
        # A bar is one line in the executed copy, not one for every refresh.
        coalesce_streams=True,
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
