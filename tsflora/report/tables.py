"""Tables: raw numbers in long form for machines, and printed cells in the layout of the paper for people."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsflora.config import did_you_mean
from tsflora.errors import DataError
from tsflora.records import KINDS, RunRecord
from tsflora.report.dataframes import CELL, DIRECTIONS, MIB, runs_frame
from tsflora.report.naming import REFERENCE, method_rank, partition_label, partition_rank, significant_digits
from tsflora.report.statistics import mean_interval, paired_difference

MISSING = "–"
NOT_SIGNIFICANT = "n.s."
_SMALL_KINDS = ("labels", "headers")
"""Printed in KiB: in MiB they would be zeros."""


def accuracy_means(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Final accuracy per data set, partition and method: mean and 95 % t-interval over n seeds, as fractions.

    `mean_uncompressed` is the accuracy of the same adapters with compression off.

    Raises:
        DataError: as `runs_frame`.
    """
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), runs in runs_frame(records).groupby(CELL, sort=False):
        interval = mean_interval(runs["accuracy"])
        rows.append(
            {
                "dataset": dataset,
                "partition": partition,
                "method": method,
                "label": runs["label"].iloc[0],
                "mean": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "n": interval.n,
                "mean_uncompressed": runs["accuracy_uncompressed"].mean(),
            }
        )
    return pd.DataFrame(rows)


def accuracy_table(records: Sequence[RunRecord], planned_seeds: int | None = None) -> pd.DataFrame:
    """The layout of the TSFLora paper's Table III: methods down, data sets and partitions across, in percent.

    A cell is `mean ± half-width (n)`, the 95 % t-interval over n seeds; one seed has no `±`. With `planned_seeds`, a
    cell with fewer shows `(n/planned)`. A method that was not run shows `–`.

    Raises:
        DataError: as `runs_frame`.
    """

    def cell(row: Mapping[Hashable, Any]) -> str:
        n = row["n"]
        count = f"{n}/{planned_seeds}" if planned_seeds is not None and n < planned_seeds else f"{n}"
        spread = f" ± {50 * (row['high'] - row['low']):.1f}" if n > 1 else ""
        return f"{100 * row['mean']:.1f}{spread} ({count})"

    return _by_method(accuracy_means(records), cell)


def accuracy_differences(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """Final accuracy of each method minus the reference's, paired by seed, as fractions.

    One row per data set, partition and method that shares a seed with the reference. `significant` is whether the
    95 % t-interval of that one difference leaves out 0; there is no correction for several methods.

    Raises:
        DataError: the reference was not run, or as `runs_frame`.
    """
    runs = runs_frame(records)
    if reference not in set(runs["method"]):
        known = did_you_mean(reference, set(runs["method"]))
        raise DataError(f"reference method {reference!r} is not in the records; {known}")
    by_seed = {
        cell: dict(zip(group["seed"].tolist(), group["accuracy"].tolist(), strict=True))
        for cell, group in runs.groupby(CELL, sort=False)
    }
    labels = dict(zip(runs["method"], runs["label"], strict=True))
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), accuracies in by_seed.items():
        base = by_seed.get((dataset, partition, reference), {})
        if method == reference or not accuracies.keys() & base.keys():
            continue
        found = paired_difference(accuracies, base)
        rows.append(
            {
                "dataset": dataset,
                "partition": partition,
                "method": method,
                "label": labels[method],
                "reference": reference,
                "difference": found.interval.mean,
                "low": found.interval.low,
                "high": found.interval.high,
                "n": found.interval.n,
                "p_value": found.p_value,
                "bootstrap_low": found.bootstrap_low,
                "bootstrap_high": found.bootstrap_high,
                "significant": found.significant,
            }
        )
    columns = [*CELL, "label", "reference", "difference", "low", "high", "n", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "bootstrap_low", "bootstrap_high", "significant"])


def difference_table(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """`accuracy_differences` for people: `difference [low, high] (n)` in percentage points, layout of `accuracy_table`.

    A difference whose interval includes 0 carries `n.s.`; one seed shows `untested`.

    Raises:
        DataError: as `accuracy_differences`.
    """

    def cell(row: Mapping[Hashable, Any]) -> str:
        difference = _signed(100 * row["difference"])
        if row["n"] == 1:
            return f"{difference} (1) untested"
        mark = "" if row["significant"] else f" {NOT_SIGNIFICANT}"
        return f"{difference} [{_signed(100 * row['low'])}, {_signed(100 * row['high'])}] ({row['n']}){mark}"

    return _by_method(accuracy_differences(records, reference), cell)


def traffic_means(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """MiB of one participant in one round, mean over seeds, by direction and kind, with ratios to the reference.

    `uplink_activations_ratio` is the reference's uplink activation payload over the method's, `total_ratio` the same
    for all bytes in both directions, each formed within a seed and then averaged; NaN where the method sends none or
    shares no seed with the reference.

    Raises:
        DataError: as `runs_frame`.
    """
    runs = runs_frame(records)
    parts = [f"{direction}_{kind}" for direction in DIRECTIONS for kind in KINDS] + ["uplink", "downlink", "total"]
    traffic = runs[[*CELL, "label", "seed"]].copy()
    for part in parts:
        traffic[f"{part}_mib"] = runs[f"{part}_bytes"] / runs["device_rounds"] / MIB
    same_seed = ["dataset", "partition", "seed"]
    base = traffic.loc[traffic["method"] == reference, [*same_seed, "uplink_activations_mib", "total_mib"]]
    paired = traffic.merge(base, on=same_seed, how="left", suffixes=("", "_reference"))
    for part in ("uplink_activations", "total"):
        sent_mib = paired[f"{part}_mib"].where(paired[f"{part}_mib"] > 0)
        paired[f"{part}_ratio"] = paired[f"{part}_mib_reference"] / sent_mib
    numbers = [f"{part}_mib" for part in parts] + ["uplink_activations_ratio", "total_ratio"]
    return paired.groupby([*CELL, "label"], sort=False)[numbers].mean().reset_index()


def traffic_table(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """`traffic_means` for people, per device and round; a kind that no method sends in a direction has no column.

    Raises:
        DataError: as `runs_frame`.
    """
    means = traffic_means(records, reference)
    columns: dict[tuple[str, str], list[str]] = {
        ("", "Dataset"): means["dataset"].tolist(),
        ("", "Partition"): [partition_label(name) for name in means["partition"]],
        ("", "Method"): means["label"].tolist(),
    }
    for direction in DIRECTIONS:
        group = direction.capitalize()
        for kind in KINDS:
            sent_mib = means[f"{direction}_{kind}_mib"]
            if not sent_mib.any():
                continue
            if kind in _SMALL_KINDS:
                columns[group, f"{kind} (KiB)"] = [significant_digits(1024 * value, 4) for value in sent_mib]
            else:
                columns[group, f"{kind} (MiB)"] = [significant_digits(value, 4) for value in sent_mib]
        columns[group, "all (MiB)"] = [significant_digits(value, 4) for value in means[f"{direction}_mib"]]
    columns["Total", "up + down (MiB)"] = [significant_digits(value, 4) for value in means["total_mib"]]
    names = dict(zip(means["method"], means["label"], strict=True))
    group = f"Reduction vs {names.get(reference, reference)}"
    for part, name in (("uplink_activations", "uplink activations"), ("total", "total")):
        columns[group, name] = [MISSING if np.isnan(value) else f"{value:.2f}×" for value in means[f"{part}_ratio"]]
    return pd.DataFrame(columns)


def _by_method(long: pd.DataFrame, cell: Callable[[Mapping[Hashable, Any]], str]) -> pd.DataFrame:
    """Methods down (by label), data set and partition across; `–` where `long` has no row."""
    rows = {(row["dataset"], row["partition"], row["method"]): cell(row) for row in long.to_dict("records")}
    labels = dict(zip(long["method"], long["label"], strict=True))
    methods = sorted(labels, key=method_rank)
    columns = sorted({key[:2] for key in rows}, key=lambda column: (column[0], partition_rank(column[1])))
    return pd.DataFrame(
        [[rows.get((*column, method), MISSING) for column in columns] for method in methods],
        index=pd.Index([labels[method] for method in methods], name="Method"),
        columns=pd.MultiIndex.from_arrays(
            [[dataset for dataset, _ in columns], [partition_label(partition) for _, partition in columns]]
        ),
    )


def _signed(value: float) -> str:
    """One decimal with its sign; a value that rounds to zero has none."""
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")
