"""Final accuracy against traffic, in the paper's count and in ours: the same runs, side by side."""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import DOUBLE_COLUMN_IN, MethodStyle, theme
from tsflora.analysis.runs.dataframes import runs_frame
from tsflora.analysis.runs.naming import dataset_label, partition_label, partition_rank
from tsflora.analysis.runs.tradeoff import COUNTS, tradeoff_frame
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord

_TITLES = {"uplink_payload_mib": "uplink payload", "all_bytes_mib": "all bytes, up + down"}
_TICKS = (1.0, 2.0, 5.0)
_APART = 1.08


def accuracy_against_traffic(
    records: Sequence[RunRecord], width_in: float = DOUBLE_COLUMN_IN, planned: Sequence[ExperimentConfig] = ()
) -> Figure:
    """Final accuracy against MiB per device and round: the paper's count left, every byte right, a row for each case.

    A method that sends nothing is left out: it has no place on a log axis. Methods that send the same stand side by
    side. Without records the figure says so; with the `planned` runs the note counts those that are in.

    Raises:
        DataError: as `runs_frame`.
    """
    if not records:
        return panels.sentence("No runs yet.", width_in)
    frame, runs = tradeoff_frame(records), runs_frame(records)
    styles = panels.styles(frame)
    cases = sorted(
        {*zip(frame["dataset"], frame["partition"], strict=True)}, key=lambda c: (c[0], partition_rank(c[1]))
    )
    with theme():
        figure, grid = plt.subplots(
            len(cases),
            len(COUNTS),
            figsize=(width_in, 1.3 + 1.5 * len(cases)),
            sharex=True,
            sharey="row",
            squeeze=False,
        )
        for row, (dataset, partition) in zip(grid, cases, strict=True):
            methods = frame[(frame["dataset"] == dataset) & (frame["partition"] == partition)]
            for axis, count in zip(row, COUNTS, strict=True):
                sending = methods[methods[count] > 0]
                for place, method in zip(
                    _side_by_side(sending[count].tolist()), sending.to_dict("records"), strict=True
                ):
                    _point(axis, method, styles[method["method"]], place)
                axis.set_xscale("log")
                axis.xaxis.set_major_locator(LogLocator(subs=_TICKS))
                axis.xaxis.set_major_formatter(FuncFormatter(lambda mib, _: f"{mib:g}"))
                axis.xaxis.set_minor_formatter(NullFormatter())
            row[0].set_ylabel(f"{dataset_label(dataset)}\n{partition_label(partition)}\nfinal accuracy (%)")
        for axis, count in zip(grid[0], COUNTS, strict=True):
            axis.set_title(_TITLES[count])
        for axis in grid[-1]:
            axis.set_xlabel("MiB per device and round")
        axes = grid.tolist()
        panels.percent_axes(axes)
        panels.points_in_view(axes)
        silent = frame.loc[(frame[list(COUNTS)] == 0).all(axis=1), "label"]
        note = (
            f"Bars: 95 % t-intervals. {panels.seed_counts(runs)}{panels.plan_note(planned, records)}"
            "\nUplink payload: activations, adapters, images; no labels, ranges, headers. Equal traffic side by side."
        )
        if len(silent):
            note += f"\n{', '.join(dict.fromkeys(silent))} sends nothing and is not shown."
        if runs["uplink_images_bytes"].any():
            note += "\nImages travel once; here they are divided by the rounds."
        panels.finish(figure, panels.method_handles(axes), note, 2 if panels.narrow(width_in) else 4)
    return figure


def _side_by_side(sent_mib: Sequence[float]) -> list[float]:
    """Places of methods on a log axis: those within a percent of each other stand apart, in their order."""
    places = []
    for index, mib in enumerate(sent_mib):
        near = [other for other, amount in enumerate(sent_mib) if abs(amount / mib - 1) < 0.01]
        places.append(mib * _APART ** (near.index(index) - (len(near) - 1) / 2))
    return places


def _point(axis: Axes, method: Mapping[Hashable, Any], style: MethodStyle, place: float) -> None:
    if method["diverged"]:
        panels.diverged(axis, place, style)
    mean, low, high = (100 * float(method[name]) for name in ("mean", "low", "high"))
    # One seed has no interval.
    spread = None if pd.isna(low) else [[mean - low], [high - mean]]
    (line,) = axis.plot([place], [mean], color=style.colour, marker=style.marker, ls="", label=style.label)
    line.set_gid(method["method"])
    if spread is not None:
        axis.errorbar([place], [mean], yerr=spread, color=style.colour, lw=0.8, capsize=1.5)
