"""Figures of the theory: each bound beside its measured value, and predicted order beside measured accuracy.

`rows` is what `tsflora.analysis.theory.measure` returns: one row for each number of tokens and bit width.
"""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tsflora.analysis.figures import cost_panels as parts
from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import COLUMN_IN, DOUBLE_COLUMN_IN, theme
from tsflora.analysis.theory import ConvergenceBound

_MEASURED = {"color": "#000000", "marker": "o", "linestyle": "-"}
_BOUND = {"color": "#D55E00", "marker": "^", "linestyle": "--"}
_LOOSE = {"color": "#8C8C8C", "marker": "v", "linestyle": ":"}
_TERMS = {"gap": "#BBBBBB", "drift": "#56B4E9", "sampling": "#E69F00", "compression": "#000000"}


def distortion(rows: pd.DataFrame, width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """Lemma 1 against the tokens sent, and Lemma 2 against the bits, each relative to the energy that it distorts."""
    with theme():
        figure, axes = _side_by_side(width_in)
        by_tokens = rows.drop_duplicates("n_tokens").sort_values("n_tokens")
        energy = by_tokens["total_signal"]
        _log_line(axes[0], by_tokens["n_tokens"], by_tokens["selection_measured"] / energy, "measured", _MEASURED)
        _log_line(
            axes[0], by_tokens["n_tokens"], by_tokens["selection_diameter_bound"] / energy, "bound, diameter", _BOUND
        )
        _log_line(axes[0], by_tokens["n_tokens"], by_tokens["selection_norm_bound"] / energy, "bound, norm", _LOOSE)
        axes[0].set_xlabel("Tokens sent")
        axes[0].set_xticks(by_tokens["n_tokens"].tolist())
        axes[0].set_ylabel("Distortion / energy")
        axes[0].set_title("Lemma 1: selection and merging")
        by_bits = rows[rows["n_tokens"] == rows["n_tokens"].max()].sort_values("bits")
        signal = by_bits["rounding_signal"]
        _log_line(axes[1], by_bits["bits"], by_bits["rounding_measured"] / signal, "measured", _MEASURED)
        _log_line(axes[1], by_bits["bits"], by_bits["rounding_bound"] / signal, "bound", _BOUND)
        axes[1].set_xticks(by_bits["bits"].tolist())
        axes[1].set_xlabel("Bits")
        axes[1].set_ylabel("Distortion / energy")
        axes[1].set_title(f"Lemma 2: quantisation, {rows['n_tokens'].max()} tokens")
        for axis in axes:
            axis.legend()
        panels.finish(figure, [], "One batch of test images; squared Frobenius norms.", 1)
    return figure


def perturbation(rows: pd.DataFrame, width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """Lemma 3: change of the adapters' gradient against the tokens sent, a line for each bit width, and its bound."""
    with theme():
        figure, axes = _side_by_side(width_in, sharey=True)
        for axis, kind, title in (
            (axes[0], "scattered", "Merged token put back (Lemma 3)"),
            (axes[1], "transmitted", "Sequence as it is sent"),
        ):
            for bits in sorted(set(rows["bits"])):
                seen = rows[rows["bits"] == bits].sort_values("n_tokens")
                style = {"color": parts.bits_colour(bits), "marker": "o", "linestyle": "-"}
                relative = seen[f"{kind}_perturbation"] / seen["gradient_squared"]
                _log_line(axis, seen["n_tokens"], relative, f"{bits} bits", style)
                if kind == "scattered":
                    bound = seen["perturbation_bound"] / seen["gradient_squared"]
                    _log_line(axis, seen["n_tokens"], bound, "_bound", {**style, "marker": "", "linestyle": "--"})
            axis.set_xlabel("Tokens sent")
            axis.set_xticks(sorted(set(rows["n_tokens"])))
            axis.set_title(title)
        axes[0].set_ylabel("Squared change of the gradient,\nrelative to its square")
        handles: list[Artist] = [
            Line2D([], [], color=parts.bits_colour(bits), marker="o", label=f"{bits} bits")
            for bits in sorted(set(rows["bits"]))
        ]
        handles.append(Line2D([], [], color=parts.GREY, ls="--", label="predicted by Lemma 3"))
        beyond = int((rows["scattered_perturbation"] > rows["perturbation_bound"]).sum())
        note = (
            "One batch. The prediction takes its Lipschitz constant from another batch, and can fail: "
            f"measured is above it in {beyond} of {len(rows)} settings."
        )
        panels.finish(figure, handles, note, 2 if panels.narrow(width_in) else 4)
    return figure


def convergence(bounds: dict[str, ConvergenceBound], width_in: float = COLUMN_IN) -> Figure:
    """Theorem 1: its four terms stacked, one bar for each setting."""
    with theme():
        figure, axis = plt.subplots(figsize=(width_in, 0.9 + 0.25 * len(bounds)))
        left = np.zeros(len(bounds))
        for term, colour in _TERMS.items():
            values = np.array([getattr(bound, term) for bound in bounds.values()])
            axis.barh(range(len(bounds)), values, left=left, color=colour, height=0.7, lw=0, label=term)
            left += values
        axis.set_yticks(range(len(bounds)), list(bounds))
        axis.set_ylim(len(bounds) - 0.4, -0.6)
        axis.grid(visible=False, axis="y")
        axis.set_xlabel("Bound on the mean squared gradient")
        figure.legend(loc="outside upper center", ncols=len(_TERMS), handlelength=1.2, columnspacing=1.0)
        note = (
            "Smoothness, noise, heterogeneity and first gap are set to 1: lengths compare, and predict nothing. Black: "
            "what no learning rate removes."
        )
        panels.finish(figure, [], note, 1)
    return figure


def ranking_figure(joined: pd.DataFrame, correlation: float, width_in: float = COLUMN_IN) -> Figure:
    """Measured accuracy against predicted perturbation, one point for each setting, coloured by bits."""
    with theme():
        figure, axis = plt.subplots(figsize=(width_in, 2.6))
        if joined.empty:
            axis.text(0.5, 0.5, "no runs of these settings yet", transform=axis.transAxes, ha="center", va="center")
        for row in joined.to_dict("records"):
            mean = 100 * row["mean"]
            spread = [[mean - 100 * row["min"]], [100 * row["max"] - mean]]
            style = {"color": parts.bits_colour(row["bits"]), **parts.token_mark(row["n_tokens"])}
            axis.errorbar(row["perturbation"], mean, yerr=spread, lw=0.7, mec="white", mew=0.2, **style)
        if not joined.empty:
            axis.set_xscale("log")
        axis.set_xlabel("Predicted change of the gradient, squared")
        axis.set_ylabel("Test accuracy (%)")
        count = int(joined["count"].max()) if len(joined) else 0
        sign = f"{correlation:+.2f}".replace("-", "−")
        note = f"{len(joined)} settings. Bars: least to most of {count} seeds. Spearman: {sign}."
        panels.finish(figure, parts.setting_handles(joined, two_rows=False), note, 3)
    return figure


def _side_by_side(width_in: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    rows, columns = (2, 1) if panels.narrow(width_in) else (1, 2)
    figure, axes = plt.subplots(rows, columns, figsize=(width_in, 0.4 + 2.1 * rows), sharey=sharey, squeeze=False)
    return figure, axes.ravel().tolist()


def _log_line(axis: Axes, x: pd.Series, y: pd.Series, label: str, style: Mapping[str, Any]) -> None:
    """A line on a log axis, where a distortion of exactly zero has no place."""
    shown = y > 0
    axis.plot(x[shown], y[shown], label=label, **style)
    axis.set_yscale("log")
