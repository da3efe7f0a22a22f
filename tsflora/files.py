"""Paths as people write them, and atomic writes: a file is the old one or the new one, whatever kills the writer."""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tsflora.errors import ConfigError, StorageError


def expanded(path: Path | str) -> Path:
    """`path` with `~`, `~user`, `$NAME` and `${NAME}` replaced, where a shell had no chance to do it.

    Raises:
        ConfigError: there is no such user, or the variable is not set.
    """
    text = os.path.expandvars(os.path.expanduser(path))  # noqa: PTH111  (pathlib's fails where there is no home)
    if text.startswith("~"):
        raise ConfigError(f"{path}: there is no home folder for {Path(text).parts[0]}")
    if unset := re.search(r"\$(\w+|\{[^}]*\})", text):
        raise ConfigError(f"{path}: the environment variable {unset[0]} is not set")
    return Path(text)


def check_writable(folder: Path) -> None:
    """Create `folder` and try it, so that a long run does not end in a folder that cannot take its result.

    Raises:
        StorageError: it cannot be created or written.
    """
    probe = folder / ".writable"
    write_atomically(probe, b"")
    probe.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder, flushed to disk, then renamed.

    Raises:
        StorageError: the folder cannot be written or the disk is full; what was at `path` is untouched.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `path` when it is full; where filling it fails, nothing is left.

    Raises:
        StorageError: there is a file or folder at `path` already, or its place cannot be written.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(path)
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
