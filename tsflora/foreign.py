"""Code by others: where a component's class comes from, what text it was made of, and which of its lines failed."""

import contextlib
import functools
import hashlib
import inspect
import sys
import traceback
from pathlib import Path

from tsflora.errors import ConfigError, TsfloraError


@functools.cache
def source_digest(cls: type) -> str | None:
    """SHA-256 of the file that a component's class is in, and of those of the classes that it derives from.

    None for a built-in one. It is taken when the class is registered: from then on an edit of the file changes nothing
    in this process.

    Raises:
        ConfigError: the class was made in a notebook or at a prompt, and what it computes is in no file.
    """
    try:
        files = dict.fromkeys(inspect.getfile(base) for base in cls.__mro__ if _is_foreign(base))
        contents = [Path(file).read_bytes() for file in files]
    except (TypeError, OSError):
        raise ConfigError(f"{cls.__qualname__} has no source file; write one, and name it under plugins") from None
    return hashlib.sha256(b"".join(contents)).hexdigest() if contents else None


def origin(cls: type) -> str:
    """Where a class comes from: a module of ours, or somebody's file."""
    if _is_foreign(cls):
        with contextlib.suppress(TypeError, OSError):
            return inspect.getfile(cls)
    return cls.__module__


def blame(error: BaseException, package: str) -> str:
    """One line for an error in a module or package by others: what, and the last of its own lines that led there."""
    text = str(error) if isinstance(error, TsfloraError) else f"{type(error).__name__}: {error}"
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] == package
    ]
    if isinstance(error, SyntaxError) and error.filename:
        text, places = f"{type(error).__name__}: {error.msg}", [f"{error.filename}:{error.lineno}"]
    return " ".join(f"{text}{f' ({places[-1]})' if places else ''}".split())


def _is_foreign(cls: type) -> bool:
    return cls.__module__.partition(".")[0] not in {"tsflora", "pydantic", *sys.stdlib_module_names}
