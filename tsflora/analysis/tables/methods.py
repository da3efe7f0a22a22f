"""Tables: raw numbers in long form for machines, and printed cells in the layout of the paper for people."""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsflora.analysis.runs.dataframes import DIRECTIONS
from tsflora.analysis.runs.naming import (
    REFERENCE,
    dataset_label,
    method_rank,
    partition_label,
    partition_rank,
    significant_digits,
)
from tsflora.analysis.runs.summaries import accuracy_differences, accuracy_means, traffic_means
from tsflora.analysis.units import MIB
from tsflora.planned import ExperimentConfig
from tsflora.records import KINDS, RunRecord

MISSING = "–"
NOT_SIGNIFICANT = "n.s."
_SMALL_KINDS = ("labels", "control", "headers")
"""Printed in bytes: in MiB they would be zeros."""


def accuracy_table(
    records: Sequence[RunRecord],
    planned_seeds: int | None = None,
    planned: Sequence[ExperimentConfig] = (),
    *,
    compressed: bool = True,
) -> pd.DataFrame:
    """The layout of the TSFLora paper's Table III: methods down, data sets and partitions across, in percent.

    A cell is `mean ± half-width (n)`, the 95 % t-interval over n seeds; one seed has no `±`. With `planned_seeds`, a
    cell with fewer shows `(n/planned)`. Where runs diverged the cell says how many and nothing else. A method that was
    not run shows `–`. With the `planned` runs, every method, data set and partition among them has its place,
    `– (0/3)` where none of three is in. Nothing run and nothing planned is an empty table whose one heading says so.

    Raises:
        DataError: as `runs_frame`.
    """

    def cell(row: Mapping[Hashable, Any]) -> str:
        return accuracy_cell(row, seeds.get((row["dataset"], row["partition"], row["method"]), planned_seeds))

    seeds = Counter((run.dataset_name, run.partition_name, run.method_key) for run in planned)
    absent = {name: f"{MISSING} (0/{count})" for name, count in seeds.items()}
    return (
        _by_method(accuracy_means(records, compressed=compressed), cell, planned, absent)
        if records or planned
        else no_table("No runs yet.")
    )


def accuracy_cell(row: Mapping[Hashable, Any], planned: int | None = None) -> str:
    """One mean with its interval for people, in percent; `n/planned` where runs of the cell are missing."""
    n = row["n"]
    if row.get("diverged"):
        return f"{row['diverged']} of {n} diverged"
    count = f"{n}/{planned}" if planned is not None and n < planned else f"{n}"
    spread = f" ± {50 * (row['high'] - row['low']):.1f}" if n > 1 else ""
    return f"{100 * row['mean']:.1f}{spread} ({count})"


def difference_table(
    records: Sequence[RunRecord],
    reference: str = REFERENCE,
    planned: Sequence[ExperimentConfig] = (),
    *,
    compressed: bool = True,
) -> pd.DataFrame:
    """`accuracy_differences` for people: `difference [low, high] (n)` in percentage points, layout of `accuracy_table`.

    A difference whose interval includes 0 carries `n.s.`; one seed, or seeds without any spread, are `untested`.
    `planned` as in `accuracy_table`.

    Raises:
        DataError: as `accuracy_differences`.
    """
    differences = accuracy_differences(records, reference, planned, compressed=compressed)
    if differences.empty and reference not in {run.method for run in records}:
        return no_table(f"No runs of the reference {reference} yet, so no differences.")
    others = [run for run in planned if run.method_key != reference]
    return _by_method(differences, difference_cell, others)


def difference_cell(row: Mapping[Hashable, Any]) -> str:
    """One row of `DIFFERENCE` columns for people, in percentage points."""
    if row.get("diverged"):
        return f"{row['diverged']} of {row['n']} pairs diverged"
    difference = signed(100 * row["difference"])
    if row["n"] == 1:
        return f"{difference} (1) untested"
    if row["low"] == row["high"]:
        return f"{difference} on every seed ({row['n']}) untested"
    mark = "" if row["significant"] else f" {NOT_SIGNIFICANT}"
    return f"{difference} [{signed(100 * row['low'])}, {signed(100 * row['high'])}] ({row['n']}){mark}"


def traffic_table(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """`traffic_means` for people, per device and round; a kind that no method sends in a direction has no column.

    Raises:
        DataError: as `runs_frame`.
    """
    if not records:
        return no_table("No runs yet.")
    means = traffic_means(records, reference)
    columns: dict[tuple[str, str], list[str]] = {
        ("", "Dataset"): [dataset_label(name) for name in means["dataset"]],
        ("", "Partition"): [partition_label(name) for name in means["partition"]],
        ("", "Method"): means["label"].tolist(),
    }
    for direction in DIRECTIONS:
        group = direction.capitalize()
        for kind in KINDS:
            sent_mib = means.get(f"{direction}_{kind}_mib")
            if sent_mib is None or not sent_mib.any():
                continue
            if kind in _SMALL_KINDS:
                columns[group, f"{kind} (bytes)"] = [f"{MIB * value:,.0f}" for value in sent_mib]
            else:
                columns[group, f"{kind} (MiB)"] = [significant_digits(value, 4) for value in sent_mib]
        columns[group, "all (MiB)"] = [significant_digits(value, 4) for value in means[f"{direction}_mib"]]
    columns["Total", "up + down (MiB)"] = [significant_digits(value, 4) for value in means["total_mib"]]
    names = dict(zip(means["method"], means["label"], strict=True))
    group = f"Reduction vs {names.get(reference, reference)}"
    for part, name in (("uplink_activations", "uplink activations"), ("total", "total")):
        columns[group, name] = [MISSING if np.isnan(value) else f"{value:.2f}×" for value in means[f"{part}_ratio"]]
    return pd.DataFrame(columns)


def no_table(sentence: str) -> pd.DataFrame:
    """A table without rows whose one heading says why."""
    return pd.DataFrame(columns=[sentence], dtype=str)


def _by_method(
    long: pd.DataFrame,
    cell: Callable[[Mapping[Hashable, Any]], str],
    planned: Sequence[ExperimentConfig] = (),
    absent: Mapping[tuple[str, str, str], str] | None = None,
) -> pd.DataFrame:
    """Methods down (by label), data set and partition across, the `planned` ones too.

    Where `long` has no row the cell is the one of `absent`, else `–`.
    """
    rows = {(row["dataset"], row["partition"], row["method"]): cell(row) for row in long.to_dict("records")}
    labels = {run.method_key: run.label for run in planned} | dict(zip(long["method"], long["label"], strict=True))
    methods = sorted(labels, key=method_rank)
    sides = {key[:2] for key in rows} | {(run.dataset_name, run.partition_name) for run in planned}
    columns = sorted(sides, key=lambda column: (column[0], partition_rank(column[1])))
    rows = {**(absent or {}), **rows}
    return pd.DataFrame(
        [[rows.get((*column, method), MISSING) for column in columns] for method in methods],
        index=pd.Index([labels[method] for method in methods], name="Method"),
        columns=pd.MultiIndex.from_arrays(
            [
                [dataset_label(dataset) for dataset, _ in columns],
                [partition_label(partition) for _, partition in columns],
            ]
        ),
    )


def signed(value: float) -> str:
    """One decimal with its sign; a value that rounds to zero has none."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")
