"""What devices did, by the plans that a scheduler gave them."""

from collections.abc import Sequence

import pandas as pd

from tsflora.analysis.runs.naming import dataset_label, partition_label, significant_digits
from tsflora.analysis.runs.plans import DROPPED, plans_frame
from tsflora.analysis.tables.methods import MISSING, no_table
from tsflora.records import RunRecord


def plans_table(records: Sequence[RunRecord]) -> pd.DataFrame:
    """`plans_frame` for people."""
    frame = plans_frame(records)
    if frame.empty:
        return no_table("No scheduler gave a device a plan of its own.")
    sends = frame["plan"] != DROPPED
    return pd.DataFrame(
        {
            "Dataset": frame["dataset"].map(dataset_label),
            "Partition": frame["partition"].map(partition_label),
            "Method": frame["label"],
            "Plan": frame["plan"],
            "Device rounds": frame["device_rounds"].astype(str),
            "Up (MiB)": frame["uplink_mib"].map(lambda mib: significant_digits(mib, 4)).where(sends, MISSING),
            "Down (MiB)": frame["downlink_mib"].map(lambda mib: significant_digits(mib, 4)).where(sends, MISSING),
        }
    )
