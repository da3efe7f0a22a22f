"""Means over seeds, differences paired by seed, and bytes of a device in a round: raw numbers in long form."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from tsflora.analysis.runs.dataframes import CELL, DIRECTIONS, kinds_of, runs_frame
from tsflora.analysis.runs.naming import (
    METHODS,
    REFERENCE,
)
from tsflora.analysis.runs.statistics import PairedDifference, mean_interval, paired_difference
from tsflora.analysis.units import MIB
from tsflora.config import did_you_mean
from tsflora.errors import DataError
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord

DIFFERENCE = ("difference", "low", "high", "n", "p_value", "bootstrap_low", "bootstrap_high", "significant")
"""Columns of a paired difference in a frame of raw numbers."""


def accuracy_means(records: Sequence[RunRecord], *, compressed: bool = True) -> pd.DataFrame:
    """Final accuracy per data set, partition and method: mean and 95 % t-interval over n seeds, as fractions.

    Where some of the runs `diverged`, there is neither: a mean over them says nothing of the method. Tested as
    deployed, or the same adapters with compression off. No records give an empty frame.

    Raises:
        DataError: as `runs_frame`.
    """
    columns = [*CELL, "label", "mean", "low", "high", "n", "diverged"]
    if not records:
        return pd.DataFrame(columns=columns)
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), runs in runs_frame(records).groupby(CELL, sort=False):
        interval = mean_interval(runs[_column(compressed)])
        n_diverged = int(runs["diverged"].sum())
        numbers = (interval.mean, interval.low, interval.high) if n_diverged == 0 else (math.nan,) * 3
        rows.append(
            {
                "dataset": dataset,
                "partition": partition,
                "method": method,
                "label": runs["label"].iloc[0],
                **dict(zip(("mean", "low", "high"), numbers, strict=True)),
                "n": interval.n,
                "diverged": n_diverged,
            }
        )
    return pd.DataFrame(rows, columns=columns)


def _column(compressed: bool) -> str:
    return "accuracy" if compressed else "accuracy_uncompressed"


def accuracy_differences(
    records: Sequence[RunRecord],
    reference: str = REFERENCE,
    planned: Sequence[ExperimentConfig] = (),
    *,
    compressed: bool = True,
) -> pd.DataFrame:
    """Final accuracy of each method minus the reference's, paired by seed, as fractions.

    One row per data set, partition and method that shares a seed with the reference. `significant` is whether the
    95 % t-interval of that one difference leaves out 0; there is no correction for several methods. Where runs of
    either side `diverged`, their number stands in place of a difference. No rows while the reference, a method of the
    suite or a `planned` one, has not been run.

    Raises:
        DataError: a reference that is neither run nor known nor planned, or as `runs_frame`.
    """
    columns = [*CELL, "label", "reference", *DIFFERENCE, "diverged"]
    if not records:
        return pd.DataFrame(columns=columns)
    runs = runs_frame(records)
    diverged = {cell: set(group.loc[group["diverged"], "seed"]) for cell, group in runs.groupby(CELL, sort=False)}
    if reference not in {*runs["method"], *METHODS, *(run.method_key for run in planned)}:
        known = did_you_mean(reference, set(runs["method"]))
        raise DataError(f"reference method {reference!r} is not in the records; {known}")
    by_seed = {
        cell: dict(zip(group["seed"].tolist(), group[_column(compressed)].tolist(), strict=True))
        for cell, group in runs.groupby(CELL, sort=False)
    }
    labels = dict(zip(runs["method"], runs["label"], strict=True))
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), accuracies in by_seed.items():
        base = by_seed.get((dataset, partition, reference), {})
        shared = accuracies.keys() & base.keys()
        if method == reference or not shared:
            continue
        lost = shared & (diverged[dataset, partition, method] | diverged[dataset, partition, reference])
        found = difference_numbers(paired_difference(accuracies, base))
        if lost:
            found |= {**dict.fromkeys(DIFFERENCE, math.nan), "n": len(shared), "significant": False}
        names = {"dataset": dataset, "partition": partition, "method": method, "label": labels[method]}
        rows.append({**names, "reference": reference, **found, "diverged": len(lost)})
    return pd.DataFrame(rows, columns=columns)


def difference_numbers(found: PairedDifference) -> dict[str, Any]:
    """A paired difference as the columns `DIFFERENCE` of a frame."""
    interval = found.interval
    bootstrap = (found.bootstrap_low, found.bootstrap_high)
    values = (interval.mean, interval.low, interval.high, interval.n, found.p_value, *bootstrap, found.significant)
    return dict(zip(DIFFERENCE, values, strict=True))


def traffic_means(records: Sequence[RunRecord], reference: str = REFERENCE) -> pd.DataFrame:
    """MiB of one participant in one round, mean over seeds, by direction and kind, with ratios to the reference.

    `uplink_activations_ratio` is the reference's uplink activation payload over the method's, `total_ratio` the same
    for all bytes in both directions, each formed within a seed and then averaged; NaN where the method sends none or
    shares no seed with the reference. Control has columns where a run sent some.

    Raises:
        DataError: as `runs_frame`.
    """
    parts = [f"{way}_{kind}" for way in DIRECTIONS for kind in kinds_of(records)] + ["uplink", "downlink", "total"]
    numbers = [f"{part}_mib" for part in parts] + ["uplink_activations_ratio", "total_ratio"]
    if not records:
        return pd.DataFrame(columns=[*CELL, "label", *numbers])
    runs = runs_frame(records)
    traffic = runs[[*CELL, "label", "seed"]].copy()
    for part in parts:
        traffic[f"{part}_mib"] = runs[f"{part}_bytes"] / runs["device_rounds"] / MIB
    same_seed = ["dataset", "partition", "seed"]
    base = traffic.loc[traffic["method"] == reference, [*same_seed, "uplink_activations_mib", "total_mib"]]
    paired = traffic.merge(base, on=same_seed, how="left", suffixes=("", "_reference"))
    for part in ("uplink_activations", "total"):
        sent_mib = paired[f"{part}_mib"].where(paired[f"{part}_mib"] > 0)
        paired[f"{part}_ratio"] = paired[f"{part}_mib_reference"] / sent_mib
    return paired.groupby([*CELL, "label"], sort=False)[numbers].mean().reset_index()


def summary(records: Sequence[RunRecord]) -> dict[str, Any]:
    """Accuracy in percent and MiB of a device and round, by data set, partition and method: what `dvc metrics` shows.

    Six digits that count; an accuracy is missing where runs diverged.

    Raises:
        DataError: as `runs_frame`.
    """
    found: dict[str, Any] = {}
    joined = accuracy_means(records).merge(traffic_means(records).drop(columns="label"), on=CELL)
    for row in joined.to_dict("records"):
        numbers = {
            "accuracy_percent": 100 * row["mean"],
            "uplink_mib": row["uplink_mib"],
            "total_mib": row["total_mib"],
        }
        cell = found.setdefault(row["dataset"], {}).setdefault(row["partition"], {})
        cell[row["method"]] = {
            name: float(f"{value:.6g}") for name, value in numbers.items() if not math.isnan(value)
        } | {"seeds": row["n"]}
    return found
