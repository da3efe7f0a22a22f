"""Figures: records in, a matplotlib figure out. Intervals are 95 % t-intervals over seeds; the note counts the seeds.

Every function takes complete records and the figure's width in inches (3.35 for one column of a paper, 7 for two),
and raises `DataError` as `runs_frame` does; where there are no records yet, the figure says so. With the `planned`
runs, the note counts how many of them are in.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tsflora.analysis.figures import byte_bars, panels
from tsflora.analysis.figures.style import DOUBLE_COLUMN_IN, theme
from tsflora.analysis.runs.dataframes import DIRECTIONS, bytes_frame, rounds_frame, runs_frame
from tsflora.analysis.runs.naming import dataset_label, method_rank, partition_label, significant_digits
from tsflora.analysis.runs.statistics import mean_interval
from tsflora.planned import ExperimentConfig
from tsflora.records import KINDS, RunRecord

_CURVE_HEIGHT_IN = 2.1
_NOTHING = "No runs yet."


def accuracy_by_round(
    records: Sequence[RunRecord], width_in: float = DOUBLE_COLUMN_IN, planned: Sequence[ExperimentConfig] = ()
) -> Figure:
    """Test accuracy against communication round: a panel per data set (rows) and partition (columns)."""
    if not records:
        return panels.sentence(_NOTHING, width_in)
    with theme():
        rounds = rounds_frame(records).dropna(subset="accuracy")
        styles = panels.styles(rounds)
        figure, axes = panels.grid(rounds, width_in, _CURVE_HEIGHT_IN, "all")
        for axis, runs in panels.each_panel(rounds, axes):
            for method, style, seeds in panels.each_method(runs, styles):
                panels.curve(axis, method, style, seeds, "round")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        panels.name_axes(axes, "Communication round", "Test accuracy (%)")
        panels.percent_axes(axes)
        panels.means_in_view(axes)
        note = f"Line: mean; band: 95 % t-interval. {panels.seed_counts(rounds)}{panels.plan_note(planned, records)}"
        note += panels.diverged_note(rounds)
        panels.finish(figure, panels.method_handles(axes), note, 2 if panels.narrow(width_in) else 4)
    return figure


def accuracy_by_bytes(
    records: Sequence[RunRecord], width_in: float = DOUBLE_COLUMN_IN, planned: Sequence[ExperimentConfig] = ()
) -> Figure:
    """Test accuracy against all bytes sent so far, both directions and all devices, on a log axis.

    A method that sends nothing has no place on a log axis: it is a level line at its final accuracy, named as such.
    """
    if not records:
        return panels.sentence(_NOTHING, width_in)
    with theme():
        rounds = rounds_frame(records).dropna(subset="accuracy")
        styles = panels.styles(rounds)
        figure, axes = panels.grid(rounds, width_in, _CURVE_HEIGHT_IN, "all")
        for axis, runs in panels.each_panel(rounds, axes):
            if runs["cumulative_mib"].max() > 0:
                axis.set_xscale("log")
                # One decade or two: 1, 2, 5 in plain numbers; powers at every minor tick would overlap.
                axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.xaxis.set_major_formatter(FuncFormatter(lambda mib, _: f"{mib:g}"))
                axis.xaxis.set_minor_formatter(NullFormatter())
            for method, style, seeds in panels.each_method(runs, styles):
                points = panels.over_seeds(seeds)
                if points["cumulative_mib"].nunique() > 1:
                    panels.curve(axis, method, style, seeds, "cumulative_mib")
                elif points["cumulative_mib"].max() > 0:  # all is sent in the first round
                    panels.point(axis, method, style, points.iloc[-1], "cumulative_mib")
                else:
                    panels.level(axis, method, style, points.iloc[-1])
        panels.name_axes(axes, "Traffic so far (MiB)", "Test accuracy (%)")
        panels.percent_axes(axes)
        panels.means_in_view(axes)
        note = (
            "Up + down, all devices. Line: mean; band, bar: 95 % t-interval. "
            f"{panels.seed_counts(rounds)}{panels.plan_note(planned, records)}{panels.diverged_note(rounds)}"
        )
        panels.finish(figure, panels.method_handles(axes), note, 2 if panels.narrow(width_in) else 4)
    return figure


def bytes_per_round(
    records: Sequence[RunRecord], width_in: float = DOUBLE_COLUMN_IN, planned: Sequence[ExperimentConfig] = ()
) -> Figure:
    """MiB of one participant in one round by kind: uplink left, downlink right, a row per data set and partition."""
    if not records:
        return panels.sentence(_NOTHING, width_in)
    with theme():
        traffic = bytes_frame(records)
        cells = list(traffic.groupby(["dataset", "partition"], sort=False))
        bars = sum(runs["method"].nunique() for _, runs in cells)
        bar_in = 0.24 if panels.narrow(width_in) else 0.17  # names take two lines in one column
        figure, grid = plt.subplots(
            len(cells),
            len(DIRECTIONS),
            figsize=(width_in, 1.0 + 0.4 * len(cells) + bar_in * bars),
            sharex="row",
            sharey="row",
            squeeze=False,
        )
        axes = grid.tolist()
        bar = ["dataset", "partition", "method", "direction"]
        for row, ((dataset, partition), runs) in zip(axes, cells, strict=True):
            labels = runs.drop_duplicates("method")["label"].tolist()
            widest_mib = float(runs.groupby(bar)["mib_per_device_round"].sum().max())
            for axis, direction in zip(row, DIRECTIONS, strict=True):
                byte_bars.stacked_bars(axis, runs[runs["direction"] == direction], widest_mib)
            byte_bars.totals(row[-1], runs)
            row[0].set_yticks(range(len(labels)), panels.wrapped(labels, width_in))
            row[0].set_ylabel(f"{dataset_label(str(dataset))} · {partition_label(str(partition))}")
            row[0].set_ylim(len(labels) - 0.4, -0.6)
        for axis, direction in zip(axes[0], DIRECTIONS, strict=True):
            axis.set_title(direction)
        for axis in axes[-1]:
            axis.set_xlabel("MiB")
        small = traffic[traffic["kind"].isin(["labels", "headers"])]
        most_kib = 1024 * float(small.groupby(bar)["mib_per_device_round"].sum().max())
        note = (
            "One device in one round, mean over seeds.\n"
            f"Labels and headers are in, at most {significant_digits(most_kib, 2)} KiB a bar."
            f"{panels.plan_note(planned, records)}"
        )
        if (traffic.loc[traffic["kind"] == "images", "bytes_per_round"] > 0).any():
            note += "\nImages travel once; here they are divided by the rounds."
        panels.finish(figure, byte_bars.kind_handles(traffic), note, 3 if panels.narrow(width_in) else len(KINDS))
    return figure


def final_accuracy(
    records: Sequence[RunRecord], width_in: float = DOUBLE_COLUMN_IN, planned: Sequence[ExperimentConfig] = ()
) -> Figure:
    """Accuracy after the last round: mean, its interval, and every seed as a small dot; of runs that diverged, dots."""
    if not records:
        return panels.sentence(_NOTHING, width_in)
    with theme():
        frame = runs_frame(records)
        styles = panels.styles(frame)
        methods = sorted(set(frame["method"]), key=method_rank)
        labels = dict(zip(frame["method"], frame["label"], strict=True))
        bar_in = 0.24 if panels.narrow(width_in) else 0.18
        figure, axes = panels.grid(frame, width_in, 0.45 + bar_in * len(methods), "row")
        for axis, runs in panels.each_panel(frame, axes):
            for method, style, seeds in panels.each_method(runs, styles):
                place = methods.index(method)
                percent = 100 * seeds["accuracy"]
                if n_diverged := int(seeds["diverged"].sum()):
                    said = f"{n_diverged} of {len(seeds)} diverged"
                    across = axis.get_yaxis_transform()
                    axis.text(0.99, place, said, transform=across, ha="right", va="center", color=style.colour)
                else:
                    interval = mean_interval(percent)
                    axis.plot([interval.low, interval.high], [place, place], color=style.colour)
                    axis.plot(interval.mean, place, marker=style.marker, color=style.colour, markersize=4.2, ls="")
                axis.plot(percent, np.full(len(percent), place + 0.3), ".", color=style.colour, markersize=2.5)
        for row in axes:
            row[0].set_yticks(range(len(methods)), panels.wrapped([labels[method] for method in methods], width_in))
            row[0].set_ylim(len(methods) - 0.4, -0.6)
            low, high = row[0].get_xlim()
            row[0].set_xlim(max(low, 0), min(high, 100))
        panels.name_axes(axes, "Final accuracy (%)", "")
        note = (
            f"Marker: mean; bar: 95 % t-interval; dots: seeds. {panels.seed_counts(frame)}"
            f"{panels.plan_note(planned, records)}"
        )
        panels.finish(figure, [], note, 1)
    return figure
