"""What devices did, by the plans that a scheduler gave them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from tsflora.analysis.runs.naming import in_order
from tsflora.analysis.units import MIB
from tsflora.planned import run_of
from tsflora.records import RunRecord

DROPPED = "dropped"


def plans_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row for each plan of each method whose scheduler gave plans: how often, and what a device then sent.

    `plan` names what differs from the method's own plan, `device_rounds` counts devices over rounds and seeds, and
    `*_mib` are means of one device in one round. Devices that were dropped are a plan of their own.
    """
    rows = [
        {
            "dataset": run.dataset,
            "partition": run.partition,
            "method": run.method,
            "label": run.label,
            "plan": DROPPED if device.dropped else _changes(device.plan, run),
            "samples": device.n_samples,
            "uplink_mib": device.uplink_bytes / MIB,
            "downlink_mib": device.downlink_bytes / MIB,
        }
        for run in in_order(records)
        if any(device.plan or device.dropped for entry in run.history for device in entry.devices)
        for entry in run.history
        for device in entry.devices
    ]
    columns = ["dataset", "partition", "method", "label", "plan"]
    if not rows:
        return pd.DataFrame(columns=[*columns, "device_rounds", "samples", "uplink_mib", "downlink_mib"])
    groups = pd.DataFrame(rows).groupby(columns, sort=False)
    means = groups[["samples", "uplink_mib", "downlink_mib"]].mean()
    means.insert(0, "device_rounds", groups.size())
    return means.reset_index()


def _changes(plan: Mapping[str, Any] | None, run: RunRecord) -> str:
    """What of a plan differs from the method's own, as `n_tokens 29`."""
    if not plan:
        return "the method's own"
    own = dict(_leaves(run_of(run).method.plan.model_dump(mode="json")))
    named = {path.rsplit(".", 1)[-1]: value for path, value in _leaves(plan) if own.get(path) != value}
    return ", ".join(f"{name} {value}" for name, value in named.items())


def _leaves(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
