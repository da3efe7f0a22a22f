"""A study: one params.yaml -> its runs."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, field_validator

from tsflora.config import Config, did_you_mean
from tsflora.data import AugmentConfig
from tsflora.errors import ConfigError
from tsflora.experiment import AnyDataSource, AnyPartition, ExperimentConfig, MethodConfig
from tsflora.federation import TrainingConfig
from tsflora.models import BackboneConfig, LoraConfig


class Sweep(Config):
    """A grid around one method: `base` with every combination of the values in `vary`, on part of the study's axes."""

    base: str
    """A key of `methods`."""
    vary: dict[str, list[Any]] = Field(min_length=1)
    """Values by setting: `cut`, or with its component, as in `tokens.n_tokens` and `quantizer.bits`."""
    datasets: tuple[str, ...] | None = None
    """None takes the whole axis; the same for `partitions` and `seeds`."""
    partitions: tuple[str, ...] | None = None
    seeds: tuple[Annotated[int, Field(ge=0)], ...] | None = None


class StudyConfig(Config):
    """The content of a params.yaml: what all cells share, and the axes along which they differ."""

    name: str
    datasets: dict[str, AnyDataSource] = Field(min_length=1)
    partitions: dict[str, AnyPartition] = Field(min_length=1)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1)
    backbone: BackboneConfig
    lora: LoraConfig = LoraConfig()
    cut: int = Field(default=2, ge=1)
    training: TrainingConfig = TrainingConfig()
    augment: AugmentConfig | None = None
    methods: dict[str, MethodConfig] = Field(min_length=1)
    sweeps: dict[str, Sweep] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"every seed once; given: {list(seeds)}")
        return seeds

    @classmethod
    def read(cls, path: Path | str) -> "StudyConfig":
        """Read a params.yaml.

        Raises:
            ConfigError: the file is missing, not YAML, or holds a key or value that is not allowed.
        """
        try:
            values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
        except yaml.YAMLError as error:
            raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: a mapping of keys to values is expected; given: {type(values).__name__}")
        return cls.parse(values, str(path))

    def cells(
        self,
        dataset: str | None = None,
        methods: Sequence[str] | None = None,
        partitions: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        backbone: Mapping[str, object] | None = None,
    ) -> list[ExperimentConfig]:
        """The study's runs of its methods, or those of a part of its axes; None takes the whole axis.

        `backbone` replaces the study's.

        Raises:
            ConfigError: a name that the study does not have, or a wrong backbone.
        """
        for seed in seeds or ():
            if seed < 0:
                raise ConfigError(f"seeds: 0 or more; given: {seed}")
        chosen = {key: self.methods[key] for key in _chosen("method", methods, self.methods)}
        datasets = _chosen("dataset", None if dataset is None else [dataset], self.datasets)
        return self._runs(datasets, chosen, _chosen("partition", partitions, self.partitions), seeds, backbone)

    def sweep_cells(
        self,
        sweep: str,
        dataset: str | None = None,
        seeds: Sequence[int] | None = None,
        backbone: Mapping[str, object] | None = None,
    ) -> list[ExperimentConfig]:
        """The runs of a sweep, but for the points that are methods of the study anyway.

        Raises:
            ConfigError: as `cells`, or a value in `vary` that no method can have.
        """
        (name,) = _chosen("sweep", [sweep], self.sweeps)
        chosen = self.sweeps[name]
        (base,) = _chosen("method", [chosen.base], self.methods)
        known = [_without_label(method) for method in self.methods.values()]
        points = {
            key: method
            for values in itertools.product(*chosen.vary.values())
            for key, method in [_varied(name, self.methods[base], dict(zip(chosen.vary, values, strict=True)))]
            if _without_label(method.model_copy(update={"cut": None} if method.cut == self.cut else {})) not in known
        }
        datasets = _chosen("dataset", chosen.datasets if dataset is None else [dataset], self.datasets)
        partitions = _chosen("partition", chosen.partitions, self.partitions)
        return self._runs(datasets, points, partitions, chosen.seeds if seeds is None else seeds, backbone, name)

    def all_cells(self) -> list[ExperimentConfig]:
        """Every planned run, methods first, then the sweeps' points."""
        return [*self.cells(), *(cell for name in self.sweeps for cell in self.sweep_cells(name))]

    def _runs(
        self,
        datasets: Sequence[str],
        methods: Mapping[str, MethodConfig],
        partitions: Sequence[str],
        seeds: Sequence[int] | None,
        backbone: Mapping[str, object] | None,
        sweep: str | None = None,
    ) -> list[ExperimentConfig]:
        return [
            ExperimentConfig(
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
            for seed in (self.seeds if seeds is None else seeds)
        ]


def _varied(sweep: str, base: MethodConfig, values: Mapping[str, object]) -> tuple[str, MethodConfig]:
    """Key and method of one point of a sweep."""
    content = json.loads(base.model_dump_json(exclude_unset=True))
    for setting, value in values.items():
        *path, last = setting.split(".")
        place = content
        for part in path:
            place = place.get(part) if isinstance(place, dict) else None
        if not isinstance(place, dict):
            raise ConfigError(f"sweeps.{sweep}.vary: unknown setting {setting!r}; {did_you_mean(path[0], content)}")
        place[last] = value
    named = {setting.rsplit(".", 1)[-1]: value for setting, value in values.items()}
    content["label"] = ", ".join(f"{name} {value}" for name, value in named.items())
    key = "-".join([sweep, *(f"{name}_{value}" for name, value in named.items())])
    return key, MethodConfig.parse(content, f"sweeps.{sweep} at {content['label']}")


def _without_label(method: MethodConfig) -> MethodConfig:
    return method.model_copy(update={"label": None})


def _chosen(axis: str, names: Sequence[str] | None, known: Mapping[str, object]) -> Sequence[str]:
    for name in names or ():
        if name not in known:
            raise ConfigError(f"unknown {axis} {name!r}; {did_you_mean(name, known)}")
    return tuple(known) if names is None else names
