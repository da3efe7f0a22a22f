"""A study's own components: Python files that its params.yaml names under `plugins`."""

import hashlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, model_validator

from tsflora.config import Config, Registry
from tsflora.errors import ConfigError
from tsflora.foreign import blame

_loaded: dict[str, str] = {}
"""SHA-256 of the text that each module of this process was made of."""


def load_plugins(paths: Any, base: Path) -> tuple[str, ...]:
    """Run Python files, so that what they register is known; paths are relative to `base`, and come back absolute.

    A file that this process has run already is not run again, unless its text is another one by now.

    Raises:
        ConfigError: not a list of files, or an error in one of them: one line with the file's own line.
    """
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
        raise ConfigError(f"plugins: a list of Python files is expected; given: {paths!r}")
    return tuple(str(_load(base / path)) for path in paths)


class PluginConfig(Config):
    """A configuration whose components may be those of files: they are loaded before the components are looked up."""

    plugins: tuple[str, ...] = Field(default=(), exclude=True)
    """Python files, absolute once they are read. They are in no dump, for they lie elsewhere on another machine: what a
    run depends on is the text of the components that it uses (`source_digest`)."""

    @model_validator(mode="before")
    @classmethod
    def _load_plugins(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "plugins" not in values:
            return values
        try:
            return {**values, "plugins": load_plugins(values["plugins"], Path())}
        except ConfigError as error:
            raise ValueError(str(error)) from None


def _load(path: Path) -> Path:
    """Run one file if need be; returns where it lies."""
    try:
        file = path.resolve()
        content = file.read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(f"plugins: {str(path)!r} cannot be read ({getattr(error, 'strerror', error)})") from None
    text, place = hashlib.sha256(content).hexdigest(), hashlib.sha256(str(file).encode()).hexdigest()
    name = re.sub(r"\W", "_", f"tsflora_plugin_{file.stem}_{place[:8]}")
    if _loaded.get(name) == text:
        return file
    _forget(name)
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        # Not through the import system, whose compiled copies go by an edit's second.
        exec(compile(content, str(file), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        _forget(name)
        raise ConfigError(f"plugins: {blame(error, name)}") from None
    _loaded[name] = text
    return file


def _forget(name: str) -> None:
    Registry.forget(name)
    sys.modules.pop(name, None)
    _loaded.pop(name, None)
