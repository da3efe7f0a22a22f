"""Who chooses tokens best, for people."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from tsflora.analysis.runs.naming import dataset_label, partition_label
from tsflora.analysis.runs.points import PANEL
from tsflora.analysis.runs.sweeps import (
    CHOICES,
    CLS_ATTENTION,
    selection_differences,
    selection_means,
    selection_runs,
)
from tsflora.analysis.tables.methods import (
    MISSING,
    accuracy_cell,
    difference_cell,
    no_table,
    signed,
)
from tsflora.records import RunRecord
from tsflora.study import StudyConfig


def selection_table(records: Sequence[RunRecord], study: StudyConfig) -> pd.DataFrame:
    """`selection_means` and `selection_differences` for people, in percent and percentage points, a row per choice.

    The difference is `mean [t-interval] (n)`, with `n.s.` where that interval holds 0, and `untested` for one seed; the
    bootstrap interval stands beside it and decides nothing. No runs give an empty table whose one heading says so.
    """
    means = selection_means(records, study)
    if means.empty:
        return no_table(selection_runs(records, study).sentence)
    key = [*PANEL, "cut", "choice"]
    found = {tuple(row[name] for name in key): row for row in selection_differences(records, study).to_dict("records")}
    rows = [(row, found.get(tuple(row[name] for name in key))) for row in means.to_dict("records")]
    return pd.DataFrame(
        {
            "Dataset": [dataset_label(name) for name in means["dataset"]],
            "Partition": [partition_label(name) for name in means["partition"]],
            "Cut": means["cut"],
            "Choice": means["choice"],
            "Accuracy (%)": [accuracy_cell(row) for row, _ in rows],
            f"Minus {CHOICES[CLS_ATTENTION]}": [
                MISSING if other is None else difference_cell(other) for _, other in rows
            ],
            "Bootstrap": [MISSING if other is None else _bootstrap_cell(other) for _, other in rows],
        }
    )


def _bootstrap_cell(row: Mapping[Hashable, Any]) -> str:
    if np.isnan(row["bootstrap_low"]):
        return MISSING
    return f"[{signed(100 * row['bootstrap_low'])}, {signed(100 * row['bootstrap_high'])}]"
