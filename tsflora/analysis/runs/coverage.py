"""Which of a study's planned runs are in, which are not, and what went wrong with those that failed: in words."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from tsflora.analysis.runs.naming import method_rank, partition_label, partition_rank
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord, config_digest

_COLUMNS = ["dataset", "method", "label", "is_sweep", "planned", "in", "missing", "failed", "other_settings"]


_Name = tuple[str, str, str, int]


def coverage(planned: Sequence[ExperimentConfig], records: Sequence[RunRecord]) -> pd.DataFrame:
    """How much of a plan is in, one row per data set and method or sweep; complete and failed records together.

    A run is in when a complete record has its name (data set, method, partition, seed) and its configuration, by
    digest. `missing` and `failed` say in words which ones are not and with which error; `other_settings` counts
    records that bear a planned name and another configuration: those of an earlier plan.
    """
    found = _Found(records)
    rows = [
        {
            "dataset": dataset,
            "method": name,
            "label": f"sweep {name}" if is_sweep else cells[0].label,
            "is_sweep": is_sweep,
            "planned": len(cells),
            "in": sum(found.is_in(cell) for cell in cells),
            "missing": _missing(cells, found),
            "failed": "; ".join(_failures(cells, found)),
            "other_settings": sum(found.is_other(cell) for cell in cells),
        }
        for (dataset, is_sweep, name), cells in _grouped(planned).items()
    ]
    return pd.DataFrame(rows, columns=_COLUMNS)


def coverage_sentence(planned: Sequence[ExperimentConfig], records: Sequence[RunRecord]) -> str:
    """`coverage` as a sentence or two: how many planned runs are in, what is missing at large, what failed and why."""
    found = _Found(records)
    n_in = sum(found.is_in(cell) for cell in planned)
    if not planned:
        return "No runs are planned."
    if n_in == len(planned):
        return f"All {n_in} planned runs are in."
    groups = _grouped(planned)
    parts = []
    for dataset in dict.fromkeys(key[0] for key in groups):
        cells = {key: cells for key, cells in groups.items() if key[0] == dataset}
        if missing := _missing_at_large(cells, found):
            parts.append(f"{dataset} {', '.join(missing)}")
    missing_text = f"; missing: {'; '.join(parts)}" if n_in else ""
    sentences = [f"{n_in} of {len(planned)} planned runs are in{missing_text}."]
    failures = [
        f"{dataset}, {cells[0].sweep or cells[0].label}, {failure}"
        for (dataset, _, _), cells in groups.items()
        for failure in _failures(cells, found)
    ]
    if failures:
        sentences.append(f"{len(failures)} failed: {'; '.join(failures)}.")
    if n_other := sum(found.is_other(cell) for cell in planned):
        records_are = "record is" if n_other == 1 else "records are"
        sentences.append(f"{n_other} {records_are} of other settings than planned.")
    return " ".join(sentences)


class _Found:
    """Records by name and digest of their configuration."""

    def __init__(self, records: Iterable[RunRecord]) -> None:
        self.complete: set[tuple[_Name, str]] = set()
        self.errors: dict[tuple[_Name, str], str] = {}
        self.names: set[_Name] = set()
        self.digests: dict[int, tuple[_Name, str]] = {}
        for run in records:
            name = (run.dataset, run.method, run.partition, run.seed)
            self.names.add(name)
            if run.status == "complete":
                self.complete.add((name, config_digest(run.config)))
            else:
                self.errors[name, config_digest(run.config)] = run.error or "no reason given"

    def key(self, cell: ExperimentConfig) -> tuple[_Name, str]:
        # A digest costs a dump, and every cell is asked for several times.
        if id(cell) not in self.digests:
            name = (cell.dataset_name, cell.method_key, cell.partition_name, cell.seed)
            self.digests[id(cell)] = (name, config_digest(cell.dump()))
        return self.digests[id(cell)]

    def is_in(self, cell: ExperimentConfig) -> bool:
        return self.key(cell) in self.complete

    def error(self, cell: ExperimentConfig) -> str | None:
        """The error of a cell whose only record is a failed one."""
        return None if self.is_in(cell) else self.errors.get(self.key(cell))

    def is_other(self, cell: ExperimentConfig) -> bool:
        """Whether the cell's name has records, and none of them its configuration."""
        return self.key(cell)[0] in self.names and not self.is_in(cell) and self.key(cell) not in self.errors


def _grouped(planned: Sequence[ExperimentConfig]) -> dict[tuple[str, bool, str], list[ExperimentConfig]]:
    """Cells by data set, whether they are a sweep's, and method or sweep; in report order, sweeps last."""
    groups: dict[tuple[str, bool, str], list[ExperimentConfig]] = {}
    for cell in planned:
        key = (cell.dataset_name, cell.sweep is not None, cell.sweep or cell.method_key)
        groups.setdefault(key, []).append(cell)
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], key[1], method_rank(key[2])))}


def _by_partition(cells: Iterable[ExperimentConfig]) -> dict[str, list[ExperimentConfig]]:
    groups: dict[str, list[ExperimentConfig]] = {}
    for cell in cells:
        groups.setdefault(cell.partition_name, []).append(cell)
    return {name: groups[name] for name in sorted(groups, key=partition_rank)}


def _missing(cells: Sequence[ExperimentConfig], found: _Found) -> str:
    """The missing runs of one method or sweep: whole partitions first, then points and seeds."""
    if not any(found.is_in(cell) for cell in cells):
        return "everything"
    parts = []
    for partition, planned in _by_partition(cells).items():
        missing = [cell for cell in planned if not found.is_in(cell)]
        if len(missing) == len(planned):
            parts.append(f"{partition_label(partition)} entirely")
        elif missing:
            parts.append(f"{partition_label(partition)} {', '.join(_points(planned, missing))}")
    return "; ".join(parts)


def _points(planned: Sequence[ExperimentConfig], missing: Sequence[ExperimentConfig]) -> list[str]:
    """Missing runs of one partition: seeds of a method; of a sweep its points, with seeds where some are in."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for cell in missing:
        seeds.setdefault((cell.method_key, cell.label), []).append(cell.seed)
    texts = []
    for (key, label), lacking in seeds.items():
        which = f"{'seed' if len(lacking) == 1 else 'seeds'} {', '.join(map(str, sorted(lacking)))}"
        if missing[0].sweep is None:
            texts.append(which)
        elif len(lacking) == sum(cell.method_key == key for cell in planned):
            texts.append(f"({label})")
        else:
            texts.append(f"({label}: {which})")
    return texts


def _missing_at_large(groups: Mapping[tuple[str, bool, str], list[ExperimentConfig]], found: _Found) -> list[str]:
    """What one data set lacks: all of it, whole partitions, whole methods, and of the others how many runs."""
    cells = [cell for group in groups.values() for cell in group]
    if not any(found.is_in(cell) for cell in cells):
        return ["entirely"]
    # A sweep is often planned on one partition, so it says nothing about whether a partition is missing.
    partitions = _by_partition(cell for cell in cells if cell.sweep is None)
    absent = [name for name, planned in partitions.items() if not any(found.is_in(cell) for cell in planned)]
    texts = [f"{partition_label(name)} entirely" for name in absent]
    for (_, is_sweep, name), group in groups.items():
        rest = [cell for cell in group if is_sweep or cell.partition_name not in absent]
        missing = sum(not found.is_in(cell) for cell in rest)
        if missing:
            count = "entirely" if missing == len(group) else f"({missing} of {len(rest)})"
            texts.append(f"{f'sweep {name}' if is_sweep else group[0].label} {count}")
    return texts


def _failures(cells: Iterable[ExperimentConfig], found: _Found) -> list[str]:
    """Failed runs with their errors, of one method or sweep."""
    return [
        f"{f'({cell.label}) ' if cell.sweep else ''}{partition_label(cell.partition_name)}, seed {cell.seed}: {error}"
        for cell in cells
        if (error := found.error(cell)) is not None
    ]
