"""A study: one params.yaml -> its runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from tsflora.config import Key, did_you_mean
from tsflora.data import AugmentConfig
from tsflora.errors import ConfigError
from tsflora.federation import TrainingConfig
from tsflora.models import BackboneConfig, LoraConfig
from tsflora.params import read_yaml
from tsflora.planned import AnyDataSource, AnyPartition, ExperimentConfig, MethodConfig
from tsflora.plugins import PluginConfig
from tsflora.sweeps import Names, Seeds, Sweep

ValueT = TypeVar("ValueT")


class StudyConfig(PluginConfig):
    """The content of a params.yaml: what all cells share, and the axes along which they differ."""

    name: Key
    datasets: dict[Key, AnyDataSource] = Field(min_length=1)
    partitions: dict[Key, AnyPartition] = Field(min_length=1)
    seeds: Seeds
    backbone: BackboneConfig
    lora: LoraConfig = LoraConfig()
    cut: int = Field(default=2, ge=1)
    training: TrainingConfig = TrainingConfig()
    augment: AugmentConfig | None = None
    methods: dict[Key, MethodConfig] = Field(min_length=1)
    sweeps: dict[Key, Sweep] = Field(default_factory=dict)
    figures: Names | None = None
    """Notebooks of tables and figures that the study draws; None draws all that there are."""

    @field_validator("datasets", "partitions", "methods", "sweeps")
    @classmethod
    def _a_folder_each(cls, entries: dict[str, Any]) -> dict[str, Any]:
        seen: dict[str, str] = {}
        for key in entries:
            if (other := seen.setdefault(key.lower(), key)) != key:
                raise ValueError(f"{other!r} and {key!r} are one folder on some disks; rename one")
        return entries

    @model_validator(mode="after")
    def _sweeps_fit(self) -> "StudyConfig":
        owners = {key.lower(): "a method" for key in self.methods}
        for name, sweep in self.sweeps.items():
            where = f"sweeps.{name}"
            try:
                _chosen("method", sweep.base, self.methods)
                _chosen("dataset", sweep.datasets, self.datasets)
                _chosen("partition", sweep.partitions, self.partitions)
                points = self._points(name)
            except ConfigError as error:
                raise ValueError(f"{where}: {error}") from None
            for key in points:
                if (owner := owners.setdefault(key.lower(), where)) != where:
                    raise ValueError(f"{where}: its point {key!r} has the name of {owner}; rename one")
        return self

    @classmethod
    def read(cls, path: Path | str) -> "StudyConfig":
        """Read a params.yaml; files in `plugins` are relative to it.

        Raises:
            ConfigError: the file is missing, not YAML, or holds a key or value that is not allowed (see `read_yaml`).
        """
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a mapping of keys to values is expected; given: {type(values).__name__}")
        if isinstance(plugins := values.get("plugins"), list):
            beside = Path(path).parent
            values["plugins"] = [str(beside / file) if isinstance(file, str) else file for file in plugins]
        return cls.parse(values, str(path))

    def cells(
        self,
        dataset: str | None = None,
        methods: Sequence[str] | str | None = None,
        partitions: Sequence[str] | str | None = None,
        seeds: Sequence[int] | int | None = None,
        backbone: Mapping[str, object] | None = None,
    ) -> list[ExperimentConfig]:
        """The study's runs of its methods, or those of a part of its axes; None takes the whole axis.

        `backbone` replaces the study's.

        Raises:
            ConfigError: a name that the study does not have, an empty part of an axis, or a wrong backbone.
        """
        chosen = {key: self.methods[key] for key in _chosen("method", methods, self.methods)}
        datasets = _chosen("dataset", dataset, self.datasets)
        return self._runs(datasets, chosen, _chosen("partition", partitions, self.partitions), seeds, backbone)

    def sweep_cells(
        self,
        sweep: str,
        dataset: str | None = None,
        seeds: Sequence[int] | int | None = None,
        backbone: Mapping[str, object] | None = None,
    ) -> list[ExperimentConfig]:
        """The runs of a sweep, but for the points that are methods of the study anyway.

        Raises:
            ConfigError: as `cells`.
        """
        (name,) = _chosen("sweep", [sweep], self.sweeps)
        chosen = self.sweeps[name]
        datasets = _chosen("dataset", chosen.datasets if dataset is None else dataset, self.datasets)
        partitions = _chosen("partition", chosen.partitions, self.partitions)
        seeds = chosen.seeds if seeds is None else seeds
        return self._runs(datasets, self._points(name), partitions, seeds, backbone, name)

    def _points(self, name: str) -> dict[str, MethodConfig]:
        """The points of a sweep by key, without those that are methods of the study."""
        sweep = self.sweeps[name]
        planned = {self._content(method) for method in self.methods.values()}
        points: dict[str, MethodConfig] = {}
        seen: dict[str, str | None] = {}
        for key, method in sweep.points(name, self.methods[sweep.base]):
            content = self._content(method)
            for mark in (key.lower(), content):
                if mark in seen:
                    raise ConfigError(f"vary: {seen[mark]} and {method.label} are one point")
                seen[mark] = method.label
            if content not in planned:
                points[key] = method
        return points

    def _content(self, method: MethodConfig) -> str:
        """What a method computes in this study, whatever it is called."""
        return method.model_copy(update={"label": None, "cut": method.cut or self.cut}).model_dump_json()

    def all_cells(self) -> list[ExperimentConfig]:
        """Every planned run, methods first, then the sweeps' points."""
        return [*self.cells(), *(cell for name in self.sweeps for cell in self.sweep_cells(name))]

    def _runs(
        self,
        datasets: Sequence[str],
        methods: Mapping[str, MethodConfig],
        partitions: Sequence[str],
        seeds: Sequence[int] | int | None,
        backbone: Mapping[str, object] | None,
        sweep: str | None = None,
    ) -> list[ExperimentConfig]:
        return [
            ExperimentConfig(
                plugins=self.plugins,
                dataset=self.datasets[dataset],
                partition=self.partitions[partition],
                dataset_key=dataset,
                partition_key=partition,
                backbone=self.backbone if backbone is None else BackboneConfig.parse(backbone, "backbone"),
                lora=self.lora,
                cut=method.cut or self.cut,
                training=self.training,
                augment=self.augment,
                method=method,
                method_key=key,
                sweep=sweep,
                seed=seed,
            )
            for dataset in datasets
            for key, method in methods.items()
            for partition in partitions
            for seed in (self.seeds if seeds is None else _seeds(seeds))
        ]


def _chosen(axis: str, given: Sequence[str] | str | None, known: Mapping[str, object]) -> Sequence[str]:
    """Names of an axis: a single one, several, or all."""
    if given is None:
        return tuple(known)
    names = _several(f"{axis}s: one or more of {', '.join(known)}", given, str)
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise ConfigError(f"unknown {axis} {name!r}; {did_you_mean(name, known)}")
    return names


def _seeds(given: Sequence[int] | int) -> Sequence[int]:
    seeds = _several(expected := "seeds: whole numbers from 0", given, int)
    for seed in seeds:
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            raise ConfigError(f"{expected}; given: {seed!r}")
    return seeds


def _several(expected: str, given: object, sort: type[ValueT]) -> Sequence[ValueT]:
    """A list of things, each of them once; a single one is a list of one."""
    if isinstance(given, sort):
        return [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise ConfigError(f"{expected}, or null for all; given: {given!r}")
    if any(given.count(one) > 1 for one in given):
        raise ConfigError(f"{expected}, each one once; given: {list(given)!r}")
    return given
