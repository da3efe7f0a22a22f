"""How a command ends: one line with a non-zero exit instead of a traceback, and a word on what is kept."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType, TracebackType

from tsflora.errors import TsfloraError


class _Stopped(KeyboardInterrupt):
    """Asked to end by a signal that is not Ctrl-C: whatever cleans up after the one does after the other."""


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Show a `TsfloraError` as one line and exit with status 1; when told to stop, do so and say what is kept."""
    try:
        with _stopped_by_signals():
            yield
    except TsfloraError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        raise SystemExit(128 + _say_stopped(stop)) from None


def uncaught(sort: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For `sys.excepthook`: a Ctrl-C while a program is still importing is no fault to trace back."""
    if isinstance(error, KeyboardInterrupt):
        _say_stopped(error)
    else:
        sys.__excepthook__(sort, error, trace)


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
    kept = "what is finished is kept, and the same command goes on from there"
    sys.stderr.write(f"stopped by {number.name}; {kept}\n")
    return number
