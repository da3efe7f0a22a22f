"""Sweeps of a study: grids around one of its methods, and what their points are called."""

import copy
import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, Field, field_validator

from tsflora.config import Config, did_you_mean
from tsflora.errors import ConfigError
from tsflora.planned import MethodConfig

_LONGEST_KEY = 64

ValueT = TypeVar("ValueT")


def _each_once(values: tuple[ValueT, ...]) -> tuple[ValueT, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"each one once; given: {list(values)}")
    return values


Names = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_each_once)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)]


class Sweep(Config):
    """A grid around one method: `base` with every combination of the values in `vary`, on part of the study's axes."""

    base: str
    """A key of `methods`."""
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    """Values by setting: `cut`, or with its component, as in `tokens.n_tokens` and `quantizer.bits`."""
    datasets: Names | None = None
    """None takes the whole axis; the same for `partitions` and `seeds`."""
    partitions: Names | None = None
    seeds: Seeds | None = None

    @field_validator("vary")
    @classmethod
    def _settings_of_their_own(cls, vary: dict[str, list[Any]]) -> dict[str, list[Any]]:
        if "label" in vary:
            raise ValueError("a point is labelled by its values; remove label")
        for outer, inner in itertools.permutations(vary, 2):
            if inner.startswith(f"{outer}."):
                raise ValueError(f"{inner} is a part of {outer}; vary one of them")
        return vary

    def points(self, name: str, base: MethodConfig) -> Iterator[tuple[str, MethodConfig]]:
        """Key and method of every point of the sweep `name`; the key is safe as the name of a folder.

        Raises:
            ConfigError: a setting that the base does not have, or a value that it cannot have.
        """
        for values in itertools.product(*self.vary.values()):
            yield _point(name, base, dict(zip(self.vary, values, strict=True)))


def _point(sweep: str, base: MethodConfig, values: Mapping[str, object]) -> tuple[str, MethodConfig]:
    """Key and method of one point of a sweep."""
    content = json.loads(base.model_dump_json(exclude_unset=True))
    for setting, value in values.items():
        *path, last = setting.split(".")
        place = content
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            if path[0] in MethodConfig.model_fields:
                raise ConfigError(f"vary: the base sets no {setting}; vary {path[0]} as a whole")
            raise ConfigError(f"vary: unknown setting {setting!r}; {did_you_mean(path[0], content)}")
        place[last] = copy.deepcopy(value)
    short = [setting.rsplit(".", 1)[-1] for setting in values]
    names = short if len(set(short)) == len(short) else list(values)
    texts = [f"{name} {_text(value)}" for name, value in zip(names, values.values(), strict=True)]
    content["label"] = ", ".join(texts)
    key = "-".join([sweep, *(re.sub(r"[^A-Za-z0-9_.-]+", "_", text) for text in texts)]).rstrip(".")
    if len(key) > _LONGEST_KEY:
        key = f"{key[: _LONGEST_KEY - 9]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    return key, MethodConfig.parse(content, f"point ({content['label']})")


def _text(value: object) -> str:
    """A value as labels and keys have it: a component is its name and its options."""
    if not isinstance(value, Mapping):
        return str(value)
    options = [f"{key} {_text(option)}" for key, option in value.items() if key != "name"]
    return " ".join([str(value.get("name", "")), *options]).strip()
