"""Atomic writes: a file is either the old one or the complete new one, whatever kills the writer."""

import os
import tempfile
from pathlib import Path

from tsflora.errors import StorageError


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
