"""RunRecord: everything one run measured, with its provenance, as one JSON file."""

import hashlib
import json
import math
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from tsflora.config import Config, explain
from tsflora.errors import DataError
from tsflora.federation.plan import DeviceRound
from tsflora.files import write_atomically
from tsflora.machine import usable_cores

KINDS = ("activations", "labels", "gradients", "adapters", "images", "control", "headers")
"""What a byte on the wire is: payload of one of six sorts, or a frame's header, ranges and checksum."""

_VOLATILE = {"provenance", "seconds", "peak_memory_mib", "started_at", "basis", "traceback"}


class Geometry(Config):
    """The model and its cut: what cost models need besides the history."""

    backbone: str
    n_blocks: int
    cut: int
    dim: int
    n_heads: int
    n_patches: int
    n_classes: int
    batch_size: int
    device_adapter_entries: int
    server_adapter_entries: int
    weights_sha256: str
    """Digest of the frozen backbone's tensors, wherever they came from."""


class Round(Config):
    """One communication round. Accuracies are fractions of the global test set."""

    round: int
    participants: tuple[int, ...]
    n_samples: int
    """Training images seen in this round, over all participants."""
    train_loss: float | None
    """Mean over the round's samples; None where nobody took part."""
    accuracy: float | None
    """Top-1 with the method's compression on, as deployed; None where this round was not evaluated."""
    accuracy_uncompressed: float | None
    """Top-1 of the same adapters with compression off."""
    uplink_bytes: dict[str, int]
    """Bytes that really left devices, by kind (`KINDS`)."""
    downlink_bytes: dict[str, int]
    devices: tuple[DeviceRound, ...] = ()
    """What each device that was drawn did; empty in records that were made before this was kept."""
    seconds: dict[str, float]
    """Wall time by phase: `train`, `evaluate`."""


class Basis(Config):
    """All that a record's numbers depend on beside its configuration, each by its name.

    What is left out cannot change a number: a comment in the code, the names of methods, the machine's other packages.
    """

    trajectory: int
    """`tsflora.federation.TRAJECTORY`, the loop's own revision."""
    revisions: dict[str, int]
    """The revision of each component of the run, as `Quantizer.uniform`."""
    sources: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of the source file of each component that another package or the user brought along."""
    weights_sha256: str
    """Digest of the frozen backbone's tensors, wherever they came from."""
    images_sha256: str
    """Digest of the training and test images with their labels."""
    versions: dict[str, str]
    """Of the packages that compute."""
    device: str
    threads: int

    def difference(self, other: "Basis") -> str | None:
        """The first thing that a run would depend on otherwise now, in words: what, then, now; None: nothing.

        A component that one side does not list is at its first revision: it may have been a part of another one then.
        """
        for name in type(self).model_fields:
            mine, theirs = getattr(self, name), getattr(other, name)
            if not isinstance(mine, dict):
                mine, theirs = {"": mine}, {"": theirs}
            missing = 1 if name == "revisions" else None
            for key in sorted(mine.keys() | theirs.keys()):
                then, now = mine.get(key, missing), theirs.get(key, missing)
                if then != now:
                    return f"{' '.join([name, key]).strip()}: {then} then, {now} now"
        return None


class Provenance(Config):
    """Where and with what a record was made: facts to read, on which nothing hangs."""

    versions: dict[str, str]
    git_commit: str | None
    code_sha256: str
    host: dict[str, str]


class RunRecord(Config):
    """One run of one method on one data set, partition and seed."""

    schema_version: Literal[2] = 2
    status: Literal["complete", "failed"]
    error: str | None = None
    traceback: str | None = None
    """Of a failed run, where the fault was not foreseen: for the author of the code that raised it."""
    dataset: str
    method: str
    label: str
    partition: str
    seed: int
    config: dict[str, Any]
    """The resolved configuration; `experiment.run_of` makes it a run again."""
    basis: Basis | None = None
    """None where the run failed."""
    geometry: Geometry | None = None
    shard_sizes: tuple[int, ...] = ()
    """Training images per device, devices in order."""
    history: tuple[Round, ...] = ()
    started_at: str
    """When this record's process began the run or resumed it."""
    seconds: float
    """Training and evaluation, over all rounds."""
    peak_memory_mib: float
    """Peak of the accelerator's allocator in this run; on the CPU, of the process's resident set so far."""
    provenance: Provenance

    @property
    def final(self) -> Round:
        """The last round: the one that is reported (never the best one)."""
        return self.history[-1]

    @property
    def diverged(self) -> bool:
        """Whether training ended above the loss of guessing, the logarithm of the number of classes.

        Such a run has an accuracy, at chance, and it says that the settings failed, not how good the method is.
        """
        if self.geometry is None or not self.history or self.final.train_loss is None:
            return False
        return self.final.train_loss > math.log(self.geometry.n_classes)

    def comparable(self) -> dict[str, Any]:
        """The part that two runs of one configuration share to the bit: all but clocks, memory and host."""
        content = self.model_dump(mode="json", exclude=_VOLATILE)
        for entry in content["history"]:
            del entry["seconds"]
        return content

    def write(self, path: Path) -> None:
        """Write the record as JSON, atomically."""
        # pydantic writes NaN as null; a complete record holds none, and a failed one may.
        text = json.dumps(json.loads(self.model_dump_json()), indent=1)
        write_atomically(path, text.encode() + b"\n")

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a record.

        Raises:
            DataError: the file is missing, not JSON, or not a record.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
        except ValidationError as error:
            raise DataError(f"{path} is not a run record: {explain(error, 'record', cls)}") from None


def config_digest(config: dict[str, Any]) -> str:
    """SHA-256 of a resolved configuration."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _code_digest() -> str:
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


CODE_SHA256 = _code_digest()
"""SHA-256 over the library's code as it was when this process imported it."""


def _git_commit() -> str | None:
    """The checkout's commit, with `-dirty` where files differ from it; None outside a checkout or without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return git.stdout.strip() or None


def provenance(device: torch.device, threads: int) -> Provenance:
    """Versions, commit and host of this process, which computes on `threads` torch threads."""
    packages = ("tsflora", "torch", "timm", "peft", "numpy", "constriction")
    return Provenance(
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        git_commit=_git_commit(),
        code_sha256=CODE_SHA256,
        host={
            "system": platform.system(),
            "machine": platform.machine(),
            "cores": str(usable_cores()),
            "torch_threads": str(threads),
            "device": device_name(device),
        },
    )


def device_name(device: torch.device) -> str:
    """What computes, as records name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
