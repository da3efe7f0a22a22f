"""A study: one params.yaml -> its cells -> their records, over worker processes."""

import datetime
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Manager
from pathlib import Path
from typing import Annotated, Any

import joblib
from pydantic import Field, field_validator
from tqdm import tqdm

from tsflora.config import Config, did_you_mean
from tsflora.data import AugmentConfig
from tsflora.errors import ConfigError, StorageError, TsfloraError
from tsflora.experiment import AnyDataSource, AnyPartition, ExperimentConfig, MethodConfig, Progress, run
from tsflora.federation import TrainingConfig
from tsflora.files import check_writable
from tsflora.models import BackboneConfig, LoraConfig
from tsflora.params import read_yaml
from tsflora.records import RunRecord, config_digest, provenance
from tsflora.settings import Settings

_log = logging.getLogger(__name__)
_REPORT_EVERY_S = 0.5

Reports = Any
"""A manager's proxy of a queue of (text, rounds finished), ended by None; the proxy's class is made at run time."""


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
            ConfigError: the file is missing, not YAML, or holds a key or value that is not allowed (see `read_yaml`).
        """
        values = read_yaml(path)
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


def run_cells(
    cells: Sequence[ExperimentConfig], settings: Settings, records_dir: Path | str | None = None
) -> list[RunRecord]:
    """Run cells side by side, with one progress bar over all their rounds. Records come back in the cells' order.

    A record that `records_dir` already holds and that is still valid is read, not run again (see `experiment.run`). A
    run that fails leaves `*.failed.json` there, the others go on, and the first error is raised at the end.

    Raises:
        StorageError: `records_dir` cannot be written; found out before anything runs.
        TsfloraError: at least one run failed; the line says how many and why the first one did.
    """
    records_dir = None if records_dir is None else Path(records_dir)
    if records_dir is not None:
        check_writable(records_dir)
    workers = settings.workers or (os.cpu_count() or 1 if settings.torch_device().type == "cpu" else 1)
    rounds = sum(cell.training.rounds for cell in cells)
    if workers == 1 or len(cells) == 1:
        with tqdm(total=rounds, unit="round") as bar:

            def show(text: str, finished: int) -> None:
                bar.set_postfix_str(text, refresh=not finished)
                bar.update(finished)

            outcomes = [_run_cell(cell, settings, records_dir, _named(cell, show)) for cell in cells]
    else:
        with Manager() as manager, tqdm(total=rounds, unit="round") as bar:
            reports = manager.Queue()
            reader = threading.Thread(target=_show_reports, args=(reports, bar), daemon=True)
            reader.start()
            jobs = (joblib.delayed(_run_cell_in_worker)(cell, settings, records_dir, reports) for cell in cells)
            try:
                outcomes = joblib.Parallel(n_jobs=workers)(jobs)
            finally:
                reports.put(None)
                reader.join()
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        first = failed[0]
        raise TsfloraError(
            f"{len(failed)} of {len(cells)} runs failed; "
            f"{first.method} on {first.dataset}, {first.partition}, seed {first.seed}: {first.error}"
        )
    return outcomes


def record_path(folder: Path, cell: ExperimentConfig) -> Path:
    """Where a cell's record lies."""
    return folder / cell.dataset_name / cell.method_key / f"{cell.partition_name}-seed{cell.seed}.json"


def _run_cell(cell: ExperimentConfig, settings: Settings, records_dir: Path | None, progress: Progress) -> RunRecord:
    path = None if records_dir is None else record_path(records_dir, cell)
    failed_path = None if path is None else path.with_suffix(".failed.json")
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    try:
        record = run(cell, settings, progress, path)
    except StorageError:
        raise
    except Exception as error:  # whatever a component does, the other cells go on and the study says what happened
        expected = isinstance(error, TsfloraError)
        line = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
        _log.error("%s, %s, seed %d failed: %s", cell.method_key, cell.partition_name, cell.seed, line)
        if not expected:
            _log.info("traceback of the failed run", exc_info=True)
        record = RunRecord(
            status="failed",
            error=line,
            dataset=cell.dataset_name,
            method=cell.method_key,
            label=cell.label,
            partition=cell.partition_name,
            seed=cell.seed,
            config=cell.dump(),
            config_sha256=config_digest(cell.dump()),
            started_at=started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - clock,
            peak_memory_mib=0.0,
            provenance=provenance(settings.torch_device(), settings.threads),
        )
        if path is not None and failed_path is not None:
            path.unlink(missing_ok=True)
            record.write(failed_path)
        return record
    if failed_path is not None:
        failed_path.unlink(missing_ok=True)
    return record


def _run_cell_in_worker(
    cell: ExperimentConfig, settings: Settings, records_dir: Path | None, reports: Reports
) -> RunRecord:
    return _run_cell(cell, settings, records_dir, _named(cell, lambda text, finished: reports.put((text, finished))))


def _named(cell: ExperimentConfig, report: Progress) -> Progress:
    """`report` with the cell's name before the text, and not more often than anyone can read."""
    last = 0.0

    def named(text: str, finished: int) -> None:
        nonlocal last
        if finished or time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            report(f"{cell.method_key}/{cell.partition_name}/{cell.seed} {text}", finished)

    return named


def _show_reports(reports: Reports, bar: tqdm) -> None:
    while (message := reports.get()) is not None:
        bar.set_postfix_str(message[0], refresh=not message[1])
        bar.update(message[1])
