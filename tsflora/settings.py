"""Where things are and on what they run: never part of what a run computes, so never part of its identity."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tsflora.config import did_you_mean, explain
from tsflora.errors import ConfigError
from tsflora.files import expanded
from tsflora.machine import usable_cores

_PREFIX = "TSFLORA_"
_MOST_PER_CORE = 4
"""Threads, and workers, for each core: a larger machine's record can be made again, and a typo starts no thousands."""


def _folder(value: Any) -> Any:
    if value == "":
        return None
    if not isinstance(value, str | Path):
        return value
    try:
        path = expanded(value)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if os.path.isfile(path):  # noqa: PTH113  (pathlib's raises where a parent folder is closed)
        raise ValueError(f"{path} is a file; a folder is needed")
    return path


Folder = Annotated[Path | None, BeforeValidator(_folder)]
"""A folder that need not exist yet; `~` and environment variables are expanded, and an empty text is None."""


class Settings(BaseSettings):
    """Read from the environment: `TSFLORA_DATA_DIR`, `TSFLORA_WEIGHTS_DIR`, `TSFLORA_DEVICE`, ...

    An empty variable counts as unset, and one that is no setting is refused.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    data_dir: Folder = None
    """Folder of the image sets' files."""
    weights_dir: Folder = None
    """Folder of backbone weight files."""
    prepared_dir: Folder = None
    """Folder in which the `data` and `backbone` stages left checked copies; they are used instead of the originals."""
    checkpoint_dir: Folder = None
    """Folder for half-finished runs; None keeps none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = Field(default=None, ge=1)
    """Processes that run cells side by side; None means one for each core, or one on an accelerator."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of each run on the CPU. Records are bit-identical only at equal thread counts."""

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_variables(cls, values: Any) -> Any:
        known = [_PREFIX + name.upper() for name in cls.model_fields]
        for name in sorted(os.environ):
            if name.upper().startswith(_PREFIX) and name.upper() not in known:
                raise ValueError(f"unknown environment variable {name}; {did_you_mean(name.upper(), known)}")
        return values

    @field_validator("workers", "threads")
    @classmethod
    def _within_the_machine(cls, value: int | None) -> int | None:
        cores = usable_cores()
        if value is not None and value > _MOST_PER_CORE * cores:
            raise ValueError(f"{value} is too many for {cores} usable cores; allowed: 1 to {_MOST_PER_CORE * cores}")
        return value

    @classmethod
    def from_environment(cls, **overrides: object) -> "Settings":
        """Settings from the environment; arguments that are not None win.

        Raises:
            ConfigError: a value that is not allowed, or a `TSFLORA_` variable that is no setting.
        """
        try:
            return cls(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]
        except ValidationError as error:
            raise ConfigError(explain(error, "settings (TSFLORA_*)", cls)) from None

    def torch_device(self) -> torch.device:
        """The device to compute on.

        Raises:
            ConfigError: asked for by name, but not there.
        """
        there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
        if self.device == "auto":
            return torch.device(next(name for name in ("cuda", "mps", "cpu") if there[name]))
        if not there[self.device]:
            allowed = ", ".join(["auto", *(name for name, ok in there.items() if ok)])
            raise ConfigError(f"device: {self.device!r} is not available here; allowed: {allowed}")
        return torch.device(self.device)
