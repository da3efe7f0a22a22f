"""What the figures of costs share: panels of bars, log axes in plain numbers, the styles of settings, and the notes."""

import math
from collections.abc import Iterator
from itertools import chain, zip_longest
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from tsflora.analysis.costs import Deployment
from tsflora.analysis.costs.cases import Scenario
from tsflora.analysis.costs.traffic import gradient_layouts, payload_bits
from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import BITS_COLOURS, FULL_COLOUR, TOKEN_COLOURS, TOKEN_MARKERS
from tsflora.analysis.units import FULL_BITS

NUMBER_PT = 6
GREY = "#666666"
HATCH = "////"


def bar_panels(costs: pd.DataFrame, width_in: float) -> tuple[Figure, list[list[Axes]]]:
    """Horizontal bars, methods down: a panel per backbone, side by side or, in one column, one below the other."""
    backbones = list(dict.fromkeys(costs["backbone"]))
    labels = list(dict.fromkeys(costs["label"]))
    narrow = panels.narrow(width_in)
    shape = (len(backbones), 1) if narrow else (1, len(backbones))
    # In one column names, legend and note take more lines.
    panel_in, around_in = (0.25 + 0.24 * len(labels), 1.4) if narrow else (0.25 + 0.19 * len(labels), 0.95)
    figure, axes = plt.subplots(
        *shape, figsize=(width_in, around_in + panel_in * shape[0]), sharex=True, sharey=True, squeeze=False
    )
    axes[0][0].set_yticks(range(len(labels)), panels.wrapped(labels, width_in))
    axes[0][0].set_ylim(len(labels) - 0.4, -0.6)
    for axis, backbone in zip(axes.flat, backbones, strict=True):
        axis.set_title(backbone)
        axis.grid(visible=False, axis="y")
    return figure, axes.tolist()


def each_bar_panel(axes: list[list[Axes]], costs: pd.DataFrame) -> Iterator[tuple[Axes, list[tuple[int, Any]]]]:
    """Panels of `bar_panels`, each with its methods: the place of the bar, and the row of `costs`."""
    flat = [axis for row in axes for axis in row]
    labels = list(dict.fromkeys(costs["label"]))
    for axis, (_, methods) in zip(flat, costs.groupby("backbone", sort=False), strict=True):
        yield axis, [(labels.index(row.label), row) for row in methods.itertuples()]


def name_bars(axes: list[list[Axes]], x: str) -> None:
    """The amount's name below the lowest panels."""
    panels.name_axes(axes, x, "")
    for axis in axes[-1]:
        axis.xaxis.set_major_locator(MaxNLocator(5))


def number(axis: Axes, amount: float, place: int, text: str) -> None:
    """The number of a bar, at its end."""
    axis.annotate(text, (amount, place), (2, 0), textcoords="offset points", va="center", fontsize=NUMBER_PT)


def cut(axis: Axes, place: int, text: str) -> None:
    """The number of a bar that goes on beyond the axis, on white at the axis's end."""
    axis.annotate(
        text,
        (1, place),
        (-2, 0),
        xycoords=axis.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=NUMBER_PT,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
    )


def plain_ticks(axis: Axis) -> None:
    """1, 2, 5 in plain numbers on a log axis."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def two_in_a_row(n_panels: int, width_in: float, panel_in: float) -> tuple[Figure, list[list[Axes]]]:
    """Panels in two columns, or one panel alone; the last row's second may be missing."""
    columns = min(2, n_panels)
    rows = math.ceil(n_panels / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width_in, 1.2 + panel_in * rows), sharex=True, sharey="row", squeeze=False
    )
    if n_panels < rows * columns:
        axes[-1][-1].set_axis_off()
        axes[-2][-1].tick_params(labelbottom=True)
    return figure, axes.tolist()


def token_mark(n_tokens: int) -> dict[str, Any]:
    """Marker of a number of tokens; more tokens are larger."""
    return {"marker": TOKEN_MARKERS.get(n_tokens, "o"), "markersize": 3.0 + n_tokens / 25}


def token_style(n_tokens: int) -> dict[str, Any]:
    """Line of a number of tokens, where the axis is bits."""
    return {
        "color": TOKEN_COLOURS.get(n_tokens, GREY),
        "marker": TOKEN_MARKERS.get(n_tokens, "o"),
        "label": f"{n_tokens} tokens",
    }


def bits_colour(bits: int) -> str:
    """Colour of a bit width, where the axis is something else."""
    return FULL_COLOUR if bits == FULL_BITS else BITS_COLOURS.get(bits, GREY)


def setting_handles(points: pd.DataFrame, two_rows: bool) -> list[Artist]:
    """Legend entries of the bits and the tokens that `points` has.

    A legend fills its columns from above: with `two_rows` they alternate, so that bits stand above tokens.
    """
    bits: list[Artist] = [
        Patch(facecolor=bits_colour(width), label="full precision" if width == FULL_BITS else f"{width} bits", lw=0)
        for width in sorted(set(points["bits"].tolist()))
    ]
    tokens: list[Artist] = [
        Line2D([], [], color=GREY, linestyle="", label=f"{n_tokens} tokens", **token_mark(n_tokens))
        for n_tokens in sorted(set(points["n_tokens"].tolist()))
    ]
    if not two_rows:
        return bits + tokens
    blank = Line2D([], [], linestyle="", label=" ")
    return list(chain.from_iterable(zip_longest(bits, tokens, fillvalue=blank)))


def work_note(deployment: Deployment) -> str:
    """A device's round in words."""
    work = deployment.workload
    epochs = "" if work.local_epochs == 1 else f" x {work.local_epochs} epochs"
    return f"One device's round: {work.n_samples} images{epochs}, rank {deployment.lora.rank}, cut {deployment.cut}."


def gradient_note(deployment: Deployment) -> str:
    """How the gradient at the cut comes back, in words."""
    if deployment.plan.gradient is None:
        return "no gradient comes back."
    bits = payload_bits(gradient_layouts(deployment, 1)) / (deployment.n_tokens * deployment.vit.dim)
    return f"gradients come back at {bits:g} bits."


def latency_note(costs: pd.DataFrame, scenario: Scenario) -> str:
    """What latencies assume, in words."""
    in_turn = ", ".join(dict.fromkeys(costs.loc[costs["in_turn"], "label"]))
    turns = f" {in_turn}: devices take turns." if in_turn else ""
    return f"{scenario.machines}; phases do not overlap.{turns}"
