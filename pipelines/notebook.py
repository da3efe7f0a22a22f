"""Execute a parameterised notebook as a stage, and keep the executed copy."""

import contextlib
import json
import logging
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TextIO

# jsonschema, which nbformat checks notebooks with, would compile a grammar of URIs at import: 1.3 s, a tenth of a
# figure's stage, for a format that no notebook uses. It does without where the package is missing.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]

import command
import nbformat
import papermill
import typer
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError

from tsflora import errors
from tsflora.errors import ConfigError, StorageError, TsfloraError
from tsflora.files import check_writable
from tsflora.params import parse_yaml


def main(
    notebook: Annotated[Path, typer.Argument(help="The notebook to execute.")],
    output: Annotated[Path, typer.Argument(help="Where the executed copy goes: a new name that ends in .ipynb.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml.")] = Path("params.yaml"),
    parameter: Annotated[
        list[str] | None, typer.Option("--parameter", "-p", help="name=value for its parameters cell; YAML values.")
    ] = None,
) -> None:
    """Execute NOTEBOOK with its parameters cell overridden and write the executed copy to OUTPUT.

    A notebook that fails is written with the failing cell, and its error is printed as one line. Runs that failed in a
    notebook that did not are named at the end: they are records like others.
    """
    with command.one_line_errors():
        values = {"params": str(params), **_parsed(parameter or [])}
        execute(notebook, output, values)
        if values.get("records_dir"):
            _name_failed(Path(values["records_dir"]), values.get("methods"))


def execute(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    """Execute a notebook with these values in its parameters cell; every fault is an error of one line.

    Raises:
        TsfloraError: the notebook cannot be read, lacks a parameter or failed, or the copy cannot be written.
    """
    known = _parameters_of(notebook)
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ConfigError(f"{notebook} has no parameter {unknown[0]!r}; allowed: {', '.join(sorted(known))}")
    if output.suffix != ".ipynb" or (output.exists() and output.samefile(notebook)):
        raise ConfigError(f"the executed copy needs a name of its own that ends in .ipynb; given: {output}")
    check_writable(output.parent)
    try:
        _run(notebook, output, values)
    except OSError as error:
        raise StorageError(f"cannot use {error.filename or output}: {error.strerror or error}") from None
    except NoSuchKernel as error:
        raise ConfigError(f"{notebook}: {error}; install ipykernel in this environment") from None
    except papermill.PapermillExecutionError as error:
        # The traceback is in the executed notebook; a stage's log gets the line that says what to do.
        sort = "" if hasattr(errors, error.ename) else f"{error.ename}: "
        line = f"{notebook.name}: {sort}{error.evalue} (executed copy: {output})"
        raise TsfloraError(" ".join(line.split())) from None
    except DeadKernelError:
        raise TsfloraError(
            f"{notebook.name}: its kernel was killed, too little memory is the usual cause; "
            "what is finished is kept, and the same command goes on from there"
        ) from None
    except RuntimeError as error:
        raise TsfloraError(f"{notebook.name}: its kernel did not start: {' '.join(str(error).split())}") from None


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
        # Sets and keys that are no text would be something else in the notebook, or no notebook at all.
        with contextlib.suppress(TypeError, ValueError):
            if json.loads(json.dumps(values[name], allow_nan=False)) == values[name]:
                continue
        raise ConfigError(
            f"{expected}; a notebook takes numbers, true, false, null, text, and lists or mappings of these"
        )
    return values


def _parameters_of(notebook: Path) -> set[str]:
    if not notebook.exists():
        raise ConfigError(f"notebook {notebook} does not exist")
    try:
        return set(papermill.inspect_notebook(_as_it_is(notebook)))
    except OSError as error:
        raise ConfigError(f"notebook {notebook} cannot be read: {error.strerror}") from None
    except (ValueError, nbformat.reader.NotJSONError) as error:
        raise ConfigError(f"{notebook} is not a notebook: {' '.join(str(error).split())[:200]}") from None


def _as_it_is(path: Path) -> str:
    """A path for papermill, which would put parameters in the place of `{names}`."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _name_failed(records: Path, methods: str | list[str] | None) -> None:
    """Failed records below the folder, which other stages write to as well: those of `methods`, where any are named."""
    mine = {methods} if isinstance(methods, str) else set(methods or ())
    paths = [path for path in sorted(records.rglob("*.failed.json")) if not mine or path.parent.parent.name in mine]
    failed = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    for path, record in failed:
        logging.warning("%s: %s", path, record["error"])
    if failed:
        logging.warning("%d runs failed; tables and figures go without them and say so", len(failed))


class EveryMinute:
    """What a bar says last, as a line a minute: for logs, in which every refresh would be one."""

    def __init__(self, stream: TextIO, seconds: float = 60.0) -> None:
        self._stream, self._seconds = stream, seconds
        self._next = time.monotonic() + seconds

    def write(self, text: str) -> None:
        """Pass on the last refresh in `text` if it is time."""
        refreshes = [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]
        if refreshes and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._seconds
            self._stream.write(refreshes[-1] + "\n")
            self._stream.flush()

    def flush(self) -> None:
        """Lines go out as they come."""


def _run(notebook: Path, output: Path, values: dict[str, Any]) -> None:
    papermill.execute_notebook(
        _as_it_is(notebook),
        _as_it_is(output),
        values,
        progress_bar=False,
        # The notebook's own bar, with loss, accuracy and MiB, shows in the terminal that waits for the stage.
        stderr_file=sys.stderr if sys.stderr.isatty() else EveryMinute(sys.stderr),
        # The kernel would warn at every start that its loopback connection is not encrypted.
        extra_arguments=["--log-level=ERROR"],
        # A bar is one line in the executed copy, not one for every refresh.
        coalesce_streams=True,
        # Asked politely, a kernel at work prints where it was; its workers end with it in any case.
        shutdown_kernel="immediate",
    )


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    for name in ("asyncio", "papermill", "traitlets"):  # tell with tracebacks what is raised as well
        logging.getLogger(name).setLevel(logging.CRITICAL)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
