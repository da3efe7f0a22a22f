"""Bars of what a device sends in a round, by kind of byte."""

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import KIND_COLOURS
from tsflora.analysis.runs.naming import significant_digits
from tsflora.records import KINDS


def stacked_bars(axis: Axes, traffic: pd.DataFrame, widest_mib: float) -> None:
    """One horizontal bar per method, stacked by kind, its sum printed at the end; `traffic` is of one direction."""
    wide = traffic.pivot(index="method", columns="kind", values="mib_per_device_round")
    wide = wide.loc[traffic["method"].unique()]
    places = np.arange(len(wide))
    left = np.zeros(len(wide))
    for kind in [kind for kind in KINDS if kind in wide]:
        axis.barh(places, wide[kind], left=left, height=0.68, color=KIND_COLOURS[kind], lw=0)
        left += wide[kind].to_numpy()
    for place, sum_mib in enumerate(left.tolist()):
        number = significant_digits(sum_mib, 3)
        axis.annotate(
            number, (sum_mib, place), (2, 0), textcoords="offset points", va="center", fontsize=panels.NUMBER_PT
        )
    axis.set_xlim(0, 1.3 * widest_mib if widest_mib > 0 else 1)
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.grid(visible=False, axis="y")


def totals(axis: Axes, traffic: pd.DataFrame) -> None:
    """Up + down of each method as a column of numbers right of `axis`; `traffic` is of both directions."""
    _right_of(axis, -0.75, "up +\ndown", "bottom")
    sums = traffic.groupby("method", sort=False)["mib_per_device_round"].sum()
    for place, sum_mib in enumerate(sums):
        _right_of(axis, place, significant_digits(sum_mib, 3), "center")


def _right_of(axis: Axes, place: int | float, text: str, align: Literal["center", "bottom"]) -> None:
    axis.annotate(
        text,
        (1, place),
        (30, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va=align,
        fontsize=panels.NUMBER_PT,
    )


def kind_handles(traffic: pd.DataFrame) -> list[Artist]:
    """Legend entries of the kinds of byte that `traffic` really has."""
    sent = set(traffic.loc[traffic["bytes_per_round"] > 0, "kind"])
    return [Patch(color=KIND_COLOURS[kind], label=kind, lw=0) for kind in KINDS if kind in sent]
