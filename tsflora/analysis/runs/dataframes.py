"""Records as pandas frames: one row per run, per round, or per kind of byte. Bytes are those that were really sent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsflora.analysis.runs.naming import in_order
from tsflora.analysis.units import MIB
from tsflora.errors import DataError
from tsflora.records import KINDS, RunRecord

DIRECTIONS = ("uplink", "downlink")
CELL = ["dataset", "partition", "method"]
"""What seeds are averaged within."""


_RUN_COLUMNS = [
    *CELL,
    *("label", "seed", "rounds", "device_rounds", "accuracy", "accuracy_uncompressed", "diverged"),
    *(f"{way}_{part}bytes" for way in DIRECTIONS for part in (*(f"{kind}_" for kind in KINDS), "")),
    "total_bytes",
    *(f"{way}_{per}" for way in (*DIRECTIONS, "total") for per in ("bytes_per_round", "mib_per_device_round")),
    "seconds",
]
"""Of `runs_frame`, for when there are no runs to take them from; a test holds the two equal."""


def runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per run, in report order; without runs an empty frame with the same columns.

    Accuracies are fractions after the last round. `*_bytes` are sums over rounds and devices, `*_bytes_per_round`
    their mean per round, and `*_mib_per_device_round` the mean of one participant in one round.

    Raises:
        DataError: a failed, empty or unevaluated run, two runs of the same cell and seed, or seeds of one cell that
            were trained for different numbers of rounds.
    """
    frame = pd.DataFrame([_run_row(run) for run in _checked(records)], columns=None if records else _RUN_COLUMNS)
    for cell, runs in frame.groupby(CELL, sort=False):
        if runs["rounds"].nunique() > 1:
            counts = dict(zip(runs["seed"], runs["rounds"], strict=True))
            raise DataError(f"{', '.join(map(str, cell))}: rounds per seed differ ({counts}); report them apart")
    return frame


def rounds_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row per round of every run, with bytes of that round and `cumulative_mib`, all devices, up and down.

    Raises:
        DataError: as `runs_frame`.
    """
    rows: list[dict[str, Any]] = []
    for run in _checked(records):
        sent_bytes = 0
        for entry in run.history:
            uplink_bytes, downlink_bytes = sum(entry.uplink_bytes.values()), sum(entry.downlink_bytes.values())
            sent_bytes += uplink_bytes + downlink_bytes
            rows.append(
                _names(run)
                | {
                    "round": entry.round,
                    "participants": len(entry.participants),
                    "samples": entry.n_samples,
                    "train_loss": entry.train_loss,
                    "accuracy": _or_nan(entry.accuracy),
                    "accuracy_uncompressed": _or_nan(entry.accuracy_uncompressed),
                    "uplink_bytes": uplink_bytes,
                    "downlink_bytes": downlink_bytes,
                    "cumulative_mib": sent_bytes / MIB,
                    "diverged": run.diverged,
                }
            )
    return pd.DataFrame(rows)


def bytes_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Mean traffic over seeds, one row per data set, partition, method, direction and kind of byte.

    `bytes_per_round` counts all devices; `mib_per_device_round` is one participant's share.

    Raises:
        DataError: as `runs_frame`.
    """
    runs = runs_frame(records)
    rows: list[dict[str, Any]] = []
    for (dataset, partition, method), group in runs.groupby(CELL, sort=False):
        for direction in DIRECTIONS:
            for kind in kinds_of(records):
                total_bytes = group[f"{direction}_{kind}_bytes"]
                rows.append(
                    {
                        "dataset": dataset,
                        "partition": partition,
                        "method": method,
                        "label": group["label"].iloc[0],
                        "direction": direction,
                        "kind": kind,
                        "bytes_per_round": (total_bytes / group["rounds"]).mean(),
                        "mib_per_device_round": (total_bytes / group["device_rounds"]).mean() / MIB,
                    }
                )
    return pd.DataFrame(rows)


def kinds_of(records: Sequence[RunRecord]) -> list[str]:
    """The kinds of byte that tables tell apart: all, but control only where a run sent some, which few do."""
    sent = {kind for run in records for entry in run.history for kind in (*entry.uplink_bytes, *entry.downlink_bytes)}
    return [kind for kind in KINDS if kind != "control" or kind in sent]


def _names(run: RunRecord) -> dict[str, Any]:
    return {
        "dataset": run.dataset,
        "partition": run.partition,
        "method": run.method,
        "label": run.label,
        "seed": run.seed,
    }


def _or_nan(value: float | None) -> float:
    return np.nan if value is None else value


def _run_row(run: RunRecord) -> dict[str, Any]:
    rounds = len(run.history)
    device_rounds = sum(len(entry.participants) for entry in run.history)
    row = _names(run) | {
        "rounds": rounds,
        "device_rounds": device_rounds,
        "accuracy": run.final.accuracy,
        "accuracy_uncompressed": _or_nan(run.final.accuracy_uncompressed),
        "diverged": run.diverged,
    }
    by_direction = {
        "uplink": [entry.uplink_bytes for entry in run.history],
        "downlink": [entry.downlink_bytes for entry in run.history],
    }
    for direction, history in by_direction.items():
        row |= {f"{direction}_{kind}_bytes": sum(sent.get(kind, 0) for sent in history) for kind in KINDS}
        row[f"{direction}_bytes"] = sum(sum(sent.values()) for sent in history)
    row["total_bytes"] = row["uplink_bytes"] + row["downlink_bytes"]
    for scope in ("uplink", "downlink", "total"):
        row[f"{scope}_bytes_per_round"] = row[f"{scope}_bytes"] / rounds
        row[f"{scope}_mib_per_device_round"] = row[f"{scope}_bytes"] / device_rounds / MIB
    row["seconds"] = run.seconds
    return row


def _checked(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Records in report order, after the checks that no later number may rest on a broken run."""
    seen: set[tuple[str, str, str, int]] = set()
    for run in records:
        key = (run.dataset, run.partition, run.method, run.seed)
        name = f"{run.dataset}, {run.partition}, {run.method}, seed {run.seed}"
        if run.status != "complete":
            raise DataError(f"{name}: the run failed ({run.error}); report complete runs only")
        if not run.history or not any(entry.participants for entry in run.history):
            raise DataError(f"{name}: the run has no rounds with participants; run it again")
        if run.final.accuracy is None:
            raise DataError(f"{name}: the last round was not evaluated, and only that round is reported; evaluate it")
        if key in seen:
            raise DataError(f"{name}: two records of the same run; keep one of them")
        seen.add(key)
    return in_order(records)
