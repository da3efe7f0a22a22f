"""A study: one params.yaml -> its cells -> their records, over worker processes."""

import datetime
import logging
import os
import threading
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Manager
from pathlib import Path
from typing import Any, TypeVar

import joblib
from pydantic import Field, field_validator, model_validator
from tqdm import tqdm

from tsflora.config import Key, did_you_mean
from tsflora.data import AugmentConfig
from tsflora.errors import ConfigError, StorageError, TsfloraError
from tsflora.experiment import AnyDataSource, AnyPartition, ExperimentConfig, MethodConfig, Progress, run
from tsflora.federation import TrainingConfig
from tsflora.files import check_writable
from tsflora.models import BackboneConfig, LoraConfig
from tsflora.params import read_yaml
from tsflora.plugins import PluginConfig
from tsflora.records import RunRecord, provenance
from tsflora.settings import Settings
from tsflora.sweeps import Seeds, Sweep

_log = logging.getLogger(__name__)
_REPORT_EVERY_S = 0.5

Reports = Any
"""A manager's proxy of a queue of (text, rounds finished), ended by None; the proxy's class is made at run time."""
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
