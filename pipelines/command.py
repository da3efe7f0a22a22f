"""What the stage scripts share: a stage belongs to its checkout, and ends as every command does."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import tsflora
from tsflora import terminal
from tsflora.errors import ConfigError

sys.excepthook = terminal.uncaught  # imports take seconds, in which Ctrl-C is likely


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """`terminal.one_line_errors` for what runs this checkout's library, and no other."""
    with terminal.one_line_errors():
        _check_imported_from_here()
        yield


def _check_imported_from_here() -> None:
    """A stage belongs to its checkout, and so must the library that it runs.

    Raises:
        ConfigError: another one comes first, as with the environment of another checkout.
    """
    here, there = (Path(path).resolve().parent.parent for path in (__file__, tsflora.__file__))
    if here != there:
        raise ConfigError(f"tsflora is imported from {there}, not from this checkout {here}; `make` installs its own")
