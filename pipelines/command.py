"""What the stage scripts share: which code runs, and one line with a non-zero exit instead of a traceback."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

import tsflora
from tsflora.errors import ConfigError, TsfloraError


class _Stopped(KeyboardInterrupt):
    """Asked to end by a signal that is not Ctrl-C: whatever cleans up after the one does after the other."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print a `TsfloraError` as one line and exit with status 1; when told to stop, do so and say what is kept."""
    try:
        with _stopped_by_signals():
            _check_imported_from_here()
            yield
    except TsfloraError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        raise SystemExit(128 + _say_stopped(stop)) from None


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    def stop(number: int, _: FrameType | None) -> None:
        raise _Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}  # nohup
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_stopped(stop: BaseException) -> int:
    number = signal.Signals(stop.args[0]) if isinstance(stop, _Stopped) else signal.SIGINT
    print(
        f"stopped by {number.name}; what is finished is kept, and the same command goes on from there", file=sys.stderr
    )
    return number


def _uncaught(sort: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        _say_stopped(error)
    else:
        sys.__excepthook__(sort, error, trace)


sys.excepthook = _uncaught  # imports take seconds, in which Ctrl-C is likely


def _check_imported_from_here() -> None:
    """A stage belongs to its checkout, and so must the library that it runs.

    Raises:
        ConfigError: another one comes first, as with the environment of another checkout.
    """
    here, there = (Path(path).resolve().parent.parent for path in (__file__, tsflora.__file__))
    if here != there:
        raise ConfigError(f"tsflora is imported from {there}, not from this checkout {here}; `make` installs its own")
