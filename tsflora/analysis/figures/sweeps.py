"""Figures of sweeps: accuracy against bits, against the cut, and by who chooses the tokens.

Every function takes complete records, of methods and of sweeps alike, and finds the study's planned runs among them by
their settings. Markers are means over seeds, bars 95 % t-intervals; points of one place stand side by side. The note
counts the runs that are not in yet. Where there is nothing to draw, the figure says so. They raise `DataError` as
`settings_frame` does.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import (
    BITS_COLOURS,
    BITS_MARKERS,
    CHOICE_LOOKS,
    COLUMN_IN,
    DOUBLE_COLUMN_IN,
    FULL_COLOUR,
    TOKEN_COLOURS,
    TOKEN_MARKERS,
    MethodStyle,
    style_of,
    theme,
)
from tsflora.analysis.runs.points import PANEL, POINT
from tsflora.analysis.runs.sweeps import CHOICES, Chosen, bits_runs, choice_rank, cut_runs, selection_runs, with_choice
from tsflora.analysis.units import FULL_BITS
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

_HEIGHT_IN = 1.75
_BAND_ALPHA = 0.13
_DODGE = 0.07
"""Distance between neighbours at one place, as a part of the distance between places."""
_FIXED = {"cut": "cut {}", "n_tokens": "{} tokens", "bits": "{} bits"}


def accuracy_by_bits(records: Sequence[RunRecord], study: StudyConfig, width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """Final accuracy against bits per entry, a line per number of tokens: Fig. 3a,b of TSFLora (arXiv 2605.23988).

    At the study's cut, where SFLora in full precision is a level line with its band.
    """
    chosen = bits_runs(records, study)
    if chosen.nothing:
        return panels.sentence(chosen.sentence, width_in)
    points = chosen.means
    full = points["bits"] == FULL_BITS
    counts = sorted({int(n_tokens) for n_tokens in points.loc[~full, "n_tokens"].dropna()})
    styles = {n_tokens: _token_style(n_tokens) for n_tokens in counts}
    lines = points[~full].assign(series=points["n_tokens"], x=np.log2(points["bits"].astype(float)))
    places = {float(np.log2(bits)): str(bits) for bits in sorted(set(points.loc[~full, "bits"]))}
    return _figure(chosen, lines, styles, places, "Bits per entry", width_in, points[full])


def accuracy_by_cut(records: Sequence[RunRecord], study: StudyConfig, width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """Final accuracy against the cut, a line per number of bits: Fig. 3c,d of TSFLora (arXiv 2605.23988).

    At the number of tokens that cut and bits are most varied at. SFLora in full precision stands where it was run.
    """
    chosen = cut_runs(records, study)
    if chosen.nothing:
        return panels.sentence(chosen.sentence, width_in)
    points = chosen.means
    styles = {int(bits): _bits_style(int(bits)) for bits in sorted(set(points["bits"]))}
    lines = points.assign(series=points["bits"], x=points["cut"].astype(float))
    return _figure(chosen, lines, styles, _cuts(points), "Cut (blocks on the device)", width_in)


def selection_controls(records: Sequence[RunRecord], study: StudyConfig, width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """Final accuracy against the cut by who chooses the tokens, at equal bytes: is CLS attention worth its name?

    At the tokens and bits that choice and cut are most varied at.
    """
    chosen = selection_runs(records, study)
    if chosen.nothing:
        return panels.sentence(chosen.sentence, width_in)
    points = with_choice(chosen.means)
    looks = {name: CHOICE_LOOKS[key] for key, name in CHOICES.items()}
    styles = {
        name: MethodStyle(name, *looks[name]) if name in looks else style_of(name, name)
        for name in sorted(set(points["choice"]), key=choice_rank)
    }
    lines = points.assign(series=points["choice"], x=points["cut"].astype(float))
    return _figure(chosen, lines, styles, _cuts(points), "Cut (blocks on the device)", width_in)


def _figure(
    chosen: Chosen,
    lines: pd.DataFrame,
    styles: Mapping[int, MethodStyle] | Mapping[str, MethodStyle],
    places: Mapping[float, str],
    x_name: str,
    width_in: float,
    levels: pd.DataFrame | None = None,
) -> Figure:
    """One panel per data set and partition, alone in one column: a line per `series` over `x`, and `levels` across."""
    if len(lines[PANEL].drop_duplicates()) == 1:
        width_in = min(width_in, COLUMN_IN)
    gap = min(np.diff(list(places)), default=1.0)
    with theme():
        figure, axes = panels.grid(lines, width_in, _HEIGHT_IN, "all")
        handles = [_handle(style) for style in styles.values()]
        for axis, points in panels.each_panel(lines, axes):
            for place, (series, style) in enumerate(styles.items()):
                shift = gap * _DODGE * (place - (len(styles) - 1) / 2)
                _line(axis, style, points[points["series"] == series].sort_values("x"), shift)
            if levels is not None:
                here = (levels[PANEL] == points[PANEL].iloc[0]).all(axis=1)
                for _, level in levels[here].iterrows():
                    if level["diverged"]:
                        axis.text(0.02, 0.05, "full precision diverged", transform=axis.transAxes, color=FULL_COLOUR)
                        continue
                    axis.axhspan(100 * level["low"], 100 * level["high"], color=FULL_COLOUR, alpha=_BAND_ALPHA, lw=0)
                    axis.axhline(100 * level["mean"], color=FULL_COLOUR, linewidth=0.8)
            axis.set_xticks(list(places), list(places.values()))
            axis.set_xlim(min(places) - 0.45 * gap, max(places) + 0.45 * gap)
        if levels is not None and not levels.empty:
            handles.append(_handle(MethodStyle("full precision, all tokens", FULL_COLOUR, "", "-")))
        panels.name_axes(axes, x_name, "Final accuracy (%)")
        panels.percent_axes(axes)
        panels.points_in_view(axes)
        panels.finish(figure, handles, _note(chosen), 2 if panels.narrow(width_in) else len(handles))
    return figure


def _line(axis: Axes, style: MethodStyle, points: pd.DataFrame, shift: float) -> None:
    """Means joined by a line, and the interval of each where it has one."""
    x = points["x"].to_numpy() + shift
    axis.vlines(x, 100 * points["low"], 100 * points["high"], color=style.colour, linewidth=0.9)
    axis.plot(x, 100 * points["mean"], gid=style.label, **panels.look(style))
    for place in x[points["diverged"] > 0]:
        panels.diverged(axis, float(place), style)


def _handle(style: MethodStyle) -> Line2D:
    return Line2D([], [], label=style.label, **panels.look(style))


def _cuts(points: pd.DataFrame) -> dict[float, str]:
    return {float(cut): str(cut) for cut in sorted(set(points["cut"]))}


def _token_style(n_tokens: int) -> MethodStyle:
    label = f"{n_tokens} tokens"
    if n_tokens not in TOKEN_COLOURS:
        return style_of(label, label)
    return MethodStyle(label, TOKEN_COLOURS[n_tokens], TOKEN_MARKERS[n_tokens], "-")


def _bits_style(bits: int) -> MethodStyle:
    if bits == FULL_BITS:
        return MethodStyle("full precision, all tokens", FULL_COLOUR, "o", "-")
    if bits not in BITS_MARKERS:
        return style_of(f"{bits} bits", f"{bits} bits")
    return MethodStyle(f"{bits} bits", BITS_COLOURS[bits], BITS_MARKERS[bits], "-")


def _note(chosen: Chosen) -> str:
    """What is drawn and what every point shares, how many seeds, and how much of the plan is in."""
    shared = ", ".join(_FIXED[name].format(value) for name, value in chosen.fixed.items())
    seeds = panels.seed_counts(chosen.runs, [*PANEL, *POINT])
    drawn = f"Marker: mean; bar: 95 % t-interval; side by side: one place. {seeds}"
    return f"{drawn}\n{shared[:1].upper()}{shared[1:]}. {chosen.count}."
