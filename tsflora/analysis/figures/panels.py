"""What the figures share: the grid of panels, curves with bands, the legend and the note."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tsflora.analysis.figures.style import COLUMN_IN, MethodStyle, drawn, styles_of, theme
from tsflora.analysis.runs.coverage import coverage
from tsflora.analysis.runs.naming import dataset_label, method_rank, partition_label, partition_rank
from tsflora.analysis.runs.statistics import mean_interval
from tsflora.planned import ExperimentConfig
from tsflora.records import RunRecord

_BAND_ALPHA = 0.13
_NOTE_PT = 6
_NOTE_CHARACTERS_PER_IN = 23
NUMBER_PT = 6.5
_REACH_PERCENT = 8
_LEGEND_IN = 0.75
"""Height that figures leave for their legend."""


def grid(
    frame: pd.DataFrame, width_in: float, panel_height_in: float, share_x: Literal["all", "row"]
) -> tuple[Figure, list[list[Axes]]]:
    """A titled panel for each data set (rows) and partition (columns) of `frame`."""
    join = "\n" if narrow(width_in) else " · "
    datasets, partitions = _sides(frame)
    figure, axes = plt.subplots(
        len(datasets),
        len(partitions),
        figsize=(width_in, 0.9 + panel_height_in * len(datasets)),
        sharex=share_x,
        sharey="row",
        squeeze=False,
    )
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, partition in zip(row, partitions, strict=True):
            axis.set_title(f"{dataset_label(dataset)}{join}{partition_label(partition)}")
    return figure, axes.tolist()


def each_panel(frame: pd.DataFrame, axes: list[list[Axes]]) -> Iterator[tuple[Axes, pd.DataFrame]]:
    """Panels of `grid` with their rows of `frame`; a panel without any says so and is left out."""
    datasets, partitions = _sides(frame)
    for row, dataset in zip(axes, datasets, strict=True):
        for axis, partition in zip(row, partitions, strict=True):
            runs = frame[(frame["dataset"] == dataset) & (frame["partition"] == partition)]
            if runs.empty:
                axis.text(0.5, 0.5, "not run", transform=axis.transAxes, ha="center", va="center")
            else:
                yield axis, runs


def styles(frame: pd.DataFrame) -> dict[str, MethodStyle]:
    """The style of every method of a figure, from the frame that all of its panels are drawn from."""
    return styles_of(dict(zip(frame["method"], frame["label"], strict=True)))


def each_method(
    runs: pd.DataFrame, styles: Mapping[str, MethodStyle]
) -> Iterator[tuple[str, MethodStyle, pd.DataFrame]]:
    """Method keys with their style and rows, in the frame's order."""
    for method, rows in runs.groupby("method", sort=False):
        yield str(method), styles[str(method)], rows


def over_seeds(rounds: pd.DataFrame) -> pd.DataFrame:
    """Per round: mean, low and high of accuracy in percent, and mean traffic so far in MiB."""
    rows = []
    for number, seeds in rounds.groupby("round"):
        interval = mean_interval(100 * seeds["accuracy"])
        rows.append((number, interval.mean, interval.low, interval.high, seeds["cumulative_mib"].mean()))
    return pd.DataFrame(rows, columns=["round", "mean", "low", "high", "cumulative_mib"])


def curve(axis: Axes, method: str, style: MethodStyle, seeds: pd.DataFrame, x: str) -> None:
    """Mean line and its band (none where the interval is NaN) of rows of `rounds_frame` against column `x`.

    Where a run diverged a mean says nothing: each seed has a thin line, and one that diverged ends in a cross.
    """
    if seeds["diverged"].any():
        for place, (_, run) in enumerate(seeds.groupby("seed")):
            named: dict[str, Any] = {"label": style.label, "gid": method} if place == 0 else {}
            axis.plot(run[x], 100 * run["accuracy"], **look(style), lw=0.6, markevery=[0], **named)
            if run["diverged"].iloc[-1]:
                axis.plot(run[x].iloc[-1], 100 * run["accuracy"].iloc[-1], "x", color=style.colour, markersize=5)
        return
    points = over_seeds(seeds)
    axis.fill_between(points[x], points["low"], points["high"], color=style.colour, alpha=_BAND_ALPHA, lw=0)
    axis.plot(
        points[x],
        points["mean"],
        **look(style),
        markevery=max(1, len(points) // 8),
        label=style.label,
        gid=method,
    )


def look(style: MethodStyle) -> dict[str, Any]:
    """A style as matplotlib's arguments."""
    return {"color": style.colour, "marker": style.marker, "linestyle": style.linestyle}


def diverged(axis: Axes, x: float, style: MethodStyle) -> None:
    """The word in place of a point whose runs diverged."""
    word = axis.annotate(
        "diverged",
        (x, 0.03),
        xycoords=axis.get_xaxis_transform(),
        rotation=90,
        ha="center",
        va="bottom",
        color=style.colour,
        fontsize=NUMBER_PT,
    )
    word.set_in_layout(False)


def point(axis: Axes, method: str, style: MethodStyle, last: pd.Series, x: str) -> None:
    """The last of `over_seeds` points with its interval, where a line against column `x` would stand upright."""
    if np.isfinite(last["low"]):
        axis.vlines(last[x], last["low"], last["high"], color=style.colour, lw=0.9)
    axis.plot(last[x], last["mean"], color=style.colour, marker=style.marker, ls="", label=style.label, gid=method)


def level(axis: Axes, method: str, style: MethodStyle, last: pd.Series) -> None:
    """The last round of a method that sends nothing, as a level line and band: zero has no place on a log axis."""
    if np.isfinite(last["low"]):
        axis.axhspan(last["low"], last["high"], color=style.colour, alpha=_BAND_ALPHA, lw=0)
    axis.axhline(
        last["mean"], color=style.colour, linestyle=style.linestyle, label=f"{style.label}: 0 bytes, final", gid=method
    )


def method_handles(axes: list[list[Axes]]) -> list[Artist]:
    """Legend entries of all methods drawn in any panel, once each, in report order."""
    found: dict[str, Artist] = {}
    for row in axes:
        for axis in row:
            for handle in axis.get_legend_handles_labels()[0]:
                found.setdefault(str(handle.get_gid()), handle)
    return [found[method] for method in sorted(found, key=method_rank)]


def name_axes(axes: list[list[Axes]], x: str, y: str) -> None:
    """Axis names on the outer panels only."""
    for axis in axes[-1]:
        axis.set_xlabel(x)
    for row in axes:
        row[0].set_ylabel(y)


def percent_axes(axes: list[list[Axes]]) -> None:
    """More ticks, and the view cut at 0 and 100 %: t-intervals of few seeds may reach where no accuracy can be."""
    for row in axes:
        row[0].yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
        low, high = row[0].get_ylim()
        row[0].set_ylim(max(low, 0), min(high, 100))


def points_in_view(axes: list[list[Axes]]) -> None:
    """The view reaches a little beyond the points: an interval of two digits would press all of them together."""
    for row in axes:
        drawn_lines = [np.asarray(line.get_ydata(), float) for axis in row for line in axis.lines if line.get_gid()]
        means = np.concatenate([*drawn_lines, np.empty(0)])
        means = means[np.isfinite(means)]
        if not means.size:
            row[0].set_ylim(0, 100)
        else:
            reach = max(_REACH_PERCENT, np.ptp(means) / 2)
            bottom, top = row[0].get_ylim()
            row[0].set_ylim(max(bottom, means.min() - reach), min(top, means.max() + reach))


def means_in_view(axes: list[list[Axes]]) -> None:
    """The view starts below the lowest mean: a wide interval of one method would press all the others together."""
    for row in axes:
        low = min((np.min(line.get_ydata()) for axis in row for line in axis.lines), default=0.0)
        bottom, top = row[0].get_ylim()
        row[0].set_ylim(max(bottom, low - 0.06 * (top - low)), top)


def wrapped(labels: Sequence[str], width_in: float) -> list[str]:
    """Method names on two lines where the figure is narrow."""
    return [drawn(textwrap.fill(label, 16) if narrow(width_in) else label) for label in labels]


def narrow(width_in: float) -> bool:
    """Whether a figure of this width stands in one column."""
    return width_in <= COLUMN_IN


def finish(figure: Figure, handles: Sequence[Artist], note: str, legend_columns: int) -> None:
    """Legend above the panels; below them the note that says what is drawn, wrapped to the figure's width."""
    characters = round(_NOTE_CHARACTERS_PER_IN * figure.get_figwidth())
    text = "\n".join(textwrap.fill(" ".join(line.split()), characters) for line in note.split("\n"))
    if handles:
        _legend(figure, handles, legend_columns)
    figure.supxlabel(text, fontsize=_NOTE_PT, color="#444444", parse_math=False)
    # pyplot forgets it, so that a notebook shows it once; the figure itself stays whole.
    plt.close(figure)


def _legend(figure: Figure, handles: Sequence[Artist], most_columns: int) -> None:
    """A legend in as many columns as the figure has room for: names of one's own may be long."""
    for columns in range(most_columns, 0, -1):
        legend = figure.legend(
            handles=list(handles),
            loc="outside upper center",
            ncols=columns,
            handlelength=2.6 if narrow(float(figure.get_figwidth())) else 3.4,
            columnspacing=1.0,
        )
        box = legend.get_window_extent()
        if columns == 1 or box.width <= figure.bbox.width:
            # Panels keep their height where names are many.
            more_in = max(0.0, box.height / figure.dpi - _LEGEND_IN)
            figure.set_figheight(figure.get_figheight() + more_in)
            return
        legend.remove()


def sentence(text: str, width_in: float) -> Figure:
    """What stands where there is nothing to draw."""
    with theme():
        figure = plt.figure(figsize=(width_in, 0.8))
        figure.text(0.5, 0.5, textwrap.fill(text, int(20 * width_in)), ha="center", va="center")
    plt.close(figure)
    return figure


def seed_counts(runs: pd.DataFrame, cell: Sequence[str] = ("dataset", "partition", "method")) -> str:
    """`n = 3 seeds.`, or the span where cells differ; a cell with one seed has no interval, which is said too."""
    counts = runs.groupby(list(cell), dropna=False)["seed"].nunique()
    least, most = int(counts.min()), int(counts.max())
    span = f"n = {least}" if least == most else f"n = {least}–{most}"
    alone = " No interval at n = 1." if least == 1 else ""
    return f"{span} {'seed' if most == 1 else 'seeds'}.{alone}"


def diverged_note(rounds: pd.DataFrame) -> str:
    """How `curve` draws what diverged, where anything did."""
    return "\nThin lines: seeds, where one of them diverged (cross)." if rounds["diverged"].any() else ""


def plan_note(planned: Sequence[ExperimentConfig], records: Sequence[RunRecord]) -> str:
    """` 42 of 60 planned runs.`, or nothing without a plan."""
    if not planned:
        return ""
    counts = coverage(planned, records)
    return f" {counts['in'].sum()} of {counts['planned'].sum()} planned runs."


def _sides(frame: pd.DataFrame) -> tuple[list[str], list[str]]:
    return sorted(set(frame["dataset"])), sorted(set(frame["partition"]), key=partition_rank)
