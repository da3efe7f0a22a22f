"""Final accuracy and traffic of the same runs, in the paper's count and in ours."""

from collections.abc import Sequence

import pandas as pd

from tsflora.analysis.runs.dataframes import CELL, runs_frame
from tsflora.analysis.runs.summaries import accuracy_means
from tsflora.analysis.units import MIB
from tsflora.records import RunRecord

COUNTS = {
    "uplink_payload_mib": ("uplink_activations_bytes", "uplink_adapters_bytes", "uplink_images_bytes"),
    "all_bytes_mib": ("total_bytes",),
}
"""What the TSFLora paper counts of a split method, and everything: gradients, adapters back, labels and headers too."""


def tradeoff_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """Accuracy (mean and 95 % t-interval, fractions) and MiB per device and round under each count, by method.

    Raises:
        DataError: as `runs_frame`.
    """
    means = accuracy_means(records)
    runs = runs_frame(records)
    sent = {name: runs[list(columns)].sum(axis=1) / runs["device_rounds"] / MIB for name, columns in COUNTS.items()}
    return means.merge(runs[CELL].assign(**sent).groupby(CELL, sort=False, as_index=False).mean(), on=CELL)
