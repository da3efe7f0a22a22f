"""Half-finished runs on disk: written atomically after a round, verified on reading, never pickled."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from tsflora.errors import CheckpointError
from tsflora.files import write_atomically

_log = logging.getLogger(__name__)
_NAME = re.compile(r"round-(\d{6})-([0-9a-f]{32})\.safetensors")
_KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round` and the history that led to it."""

    round: int
    state: dict[str, Tensor]
    history: list[dict[str, Any]]


class CheckpointStore:
    """The checkpoints of one run. A file's name holds the digest of its content, so that damage is seen.

    Processes that are at the same run share the folder: they write the same files, and one that is gone is no error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, round_: int, state: Mapping[str, Tensor], history: list[dict[str, Any]]) -> None:
        """Write the checkpoint of a round; the one before it is kept beside, older ones go.

        Raises:
            StorageError: the folder cannot be written; earlier checkpoints are untouched.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        content = save(tensors, metadata={"history": json.dumps(history)})
        digest = hashlib.sha256(content).hexdigest()[:32]
        write_atomically(self.folder / f"round-{round_:06d}-{digest}.safetensors", content)
        self._remove(self._paths()[_KEPT:])

    def latest(self, at_most: int) -> Checkpoint | None:
        """The newest intact checkpoint up to round `at_most`, or None. A damaged one is reported and passed over."""
        for path in self._paths():
            try:
                checkpoint = _read(path)
            except FileNotFoundError:
                continue
            except CheckpointError as error:
                _log.warning("%s; going back to the checkpoint before it", error)
                continue
            if checkpoint.round <= at_most:
                return checkpoint
        return None

    def keep_newest(self) -> None:
        """Remove all others, once the record is written: from the newest one, a longer run can go on."""
        self._remove(self._paths()[1:])

    def _paths(self) -> list[Path]:
        """Newest first."""
        try:
            return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
        except FileNotFoundError:
            return []

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)  # another process, at the same run, may have been quicker


def _read(path: Path) -> Checkpoint:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest()[:32] != match[2]:
            raise CheckpointError(f"checkpoint {path} is damaged: its content does not match its digest")
        # safetensors gives metadata only from a file's header: eight bytes of length, then JSON.
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return Checkpoint(int(match[1]), load(content), json.loads(header["__metadata__"]["history"]))
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error})") from None
