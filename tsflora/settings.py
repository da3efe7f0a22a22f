"""Where things are and on what they run: never part of what a run computes, so never part of its identity."""

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tsflora.config import explain
from tsflora.errors import ConfigError


class Settings(BaseSettings):
    """Read from the environment: `TSFLORA_DATA_DIR`, `TSFLORA_WEIGHTS_DIR`, `TSFLORA_DEVICE`, ..."""

    model_config = SettingsConfigDict(env_prefix="TSFLORA_", frozen=True, extra="forbid")

    data_dir: Path | None = None
    """Folder of the image sets' files."""
    weights_dir: Path | None = None
    """Folder of backbone weight files."""
    prepared_dir: Path | None = None
    """Folder in which the `data` and `backbone` stages left checked copies; they are used instead of the originals."""
    checkpoint_dir: Path | None = None
    """Folder for half-finished runs; None keeps none."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    workers: int | None = Field(default=None, ge=1)
    """Processes that run cells side by side; None means one for each core, or one on an accelerator."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of each run on the CPU. Records are bit-identical only at equal thread counts."""

    @classmethod
    def from_environment(cls, **overrides: object) -> "Settings":
        """Settings from the environment; arguments that are not None win.

        Raises:
            ConfigError: a value that is not allowed.
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
