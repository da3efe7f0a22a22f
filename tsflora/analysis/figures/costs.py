"""Figures of costs, after Figs. 3e,f and 4 of the TSFLora paper (arXiv 2605.23988): deployments in, a figure out.

Every function takes the figure's width in inches (3.35 for one column of a paper, 7 for two). Nothing is run; the note
below a figure says what is assumed.
"""

from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from tsflora.analysis.costs import MEMORY_LINE_BYTES, Deployment
from tsflora.analysis.costs.cases import PHASES, Case, Scenario, backbone_label, cost_frame, latency_frame
from tsflora.analysis.costs.grid import pareto_front, settings_grid, with_latency
from tsflora.analysis.figures import cost_panels as parts
from tsflora.analysis.figures import panels
from tsflora.analysis.figures.style import (
    DOUBLE_COLUMN_IN,
    FULL_COLOUR,
    PHASE_COLOURS,
    MethodStyle,
    theme,
)
from tsflora.analysis.runs.naming import dataset_label, partition_label, partition_rank, significant_digits

_CURVE_HEIGHT_IN = 2.1


def communication_by_settings(
    bases: Sequence[Deployment],
    tokens: Sequence[int] = (30, 40, 50),
    bits: Sequence[int] = (2, 4, 8),
    width_in: float = DOUBLE_COLUMN_IN,
    count: Literal["paper", "all"] = "paper",
) -> Figure:
    """MiB of one device in one round against bits, a line per number of tokens, a panel per backbone (Fig. 3e,f).

    `bases` are uncompressed deployments; the level line is theirs. `count` is the uplink as Table I counts it, or every
    byte both ways.
    """
    column = "paper_uplink_mib" if count == "paper" else "total_mib"
    with theme():
        grid = settings_grid(bases, tokens, bits)
        figure, axes = plt.subplots(
            1, len(bases), figsize=(width_in, 0.9 + _CURVE_HEIGHT_IN), sharey=True, squeeze=False
        )
        for axis, (backbone, settings) in zip(axes[0], grid.groupby("backbone", sort=False), strict=True):
            for n_tokens in tokens:
                line = settings[settings["n_tokens"] == n_tokens]
                axis.plot(
                    [bits.index(width) for width in line["bits"]],
                    line[column],
                    **parts.token_style(n_tokens),
                    clip_on=False,
                )
            full_mib = settings[f"full_{column}"].iloc[0]
            axis.axhline(full_mib, color=FULL_COLOUR, linestyle="--")
            axis.annotate(
                f"fp32, all {settings['full_tokens'].iloc[0]} tokens: {significant_digits(full_mib, 3)}",
                (0, full_mib),
                (3, 2),
                xycoords=axis.get_yaxis_transform(),
                textcoords="offset points",
                va="bottom",
                fontsize=parts.NUMBER_PT,
            )
            axis.set_title(backbone)
            axis.set_xticks(range(len(bits)), [str(width) for width in bits])
            axis.set_xlabel("Bits per entry")
            axis.set_yscale("log")
            parts.plain_ticks(axis.yaxis)
        low, high = axes[0][0].get_ylim()
        axes[0][0].set_ylim(low, 1.25 * high)
        axes[0][0].set_ylabel("MiB per device and round")
        counted = (
            "Uplink as Table I of arXiv 2605.23988 counts it: activations and adapter, no headers, labels or gradients."
            if count == "paper"
            else f"Every byte, up and down; {parts.gradient_note(bases[0])}"
        )
        note = (
            f"{counted} {parts.work_note(bases[0])} At equal tokens the patch size changes nothing but the full count."
        )
        handles = [Line2D([], [], **parts.token_style(n_tokens)) for n_tokens in tokens]
        panels.finish(figure, handles, note, len(handles))
    return figure


def memory_by_method(
    cases: Sequence[Case], scenario: Scenario | None = None, width_in: float = DOUBLE_COLUMN_IN
) -> Figure:
    """Peak memory of a device per method and backbone, with the paper's line at 4 GB (Fig. 4a)."""
    scenario = scenario or Scenario()
    with theme():
        costs = cost_frame(cases, scenario)
        styles = panels.styles(costs)
        line_gb = MEMORY_LINE_BYTES / 1e9
        figure, axes = parts.bar_panels(costs, width_in)
        limit = 1.2 * max(line_gb, costs["device_memory_gb"].max())
        for axis, methods in parts.each_bar_panel(axes, costs):
            for place, row in methods:
                axis.barh(place, row.device_memory_gb, height=0.68, color=styles[row.method].colour, lw=0)
                parts.number(axis, row.device_memory_gb, place, significant_digits(row.device_memory_gb, 2))
            axis.axvline(line_gb, color=parts.GREY, linestyle="--", lw=0.8)
            axis.set_xlim(0, limit)
        parts.name_bars(axes, "Peak device memory (GB)")
        how = scenario.memory
        note = (
            f"Dashed: {line_gb:g} GB. Batch {max(cases[0].deployment.workload.batches)}, {how.precision}, "
            f"{how.attention} attention. Weights, adapters, their gradients and optimiser state, what autograd keeps, "
            "one batch of images; not counted: transients of backward, what a runtime takes for itself."
        )
        panels.finish(figure, [], note, 1)
    return figure


def communication_by_method(cases: Sequence[Case], width_in: float = DOUBLE_COLUMN_IN) -> Figure:
    """MiB of one device in one round per method and backbone: the paper's count, and every byte (Fig. 4b)."""
    with theme():
        costs = cost_frame(cases)
        styles = panels.styles(costs)
        figure, axes = parts.bar_panels(costs, width_in)
        limit = 1.45 * max(1e-9, costs["total_mib"].max(), costs["paper_uplink_mib"].max())
        for axis, methods in parts.each_bar_panel(axes, costs):
            for place, row in methods:
                axis.barh(place, row.paper_uplink_mib, height=0.68, color=styles[row.method].colour, lw=0)
                axis.barh(place, row.total_mib, height=0.68, facecolor="none", edgecolor=parts.GREY, lw=0.7)
                numbers = [significant_digits(mib, 3) for mib in (row.paper_uplink_mib, row.total_mib)]
                parts.number(axis, max(row.paper_uplink_mib, row.total_mib), place, " / ".join(dict.fromkeys(numbers)))
            axis.set_xlim(0, limit)
        parts.name_bars(axes, "MiB per device and round")
        handles = [
            Patch(facecolor=parts.GREY, label="uplink, as Table I counts", lw=0),
            Patch(facecolor="none", edgecolor=parts.GREY, label="every byte, up and down", lw=0.7),
        ]
        central = (
            " Central sends its images in the first round only."
            if any(case.deployment.plan.uploads == "samples" for case in cases)
            else ""
        )
        note = f"Numbers: uplink as Table I counts / every byte.{central} {parts.work_note(cases[0].deployment)}"
        panels.finish(figure, handles, note, 2)
    return figure


def latency_by_method(
    cases: Sequence[Case], scenario: Scenario | None = None, width_in: float = DOUBLE_COLUMN_IN
) -> Figure:
    """A round's latency by phase per method and backbone, infeasible methods hatched (Fig. 4c).

    The axis ends where methods whose devices work in parallel do; a longer bar of one whose devices take turns is cut.
    """
    scenario = scenario or Scenario()
    with theme():
        costs = cost_frame(cases, scenario)
        figure, axes = parts.bar_panels(costs, width_in)
        parallel = costs if costs["in_turn"].all() else costs[~costs["in_turn"]]
        limit = 1.5 * parallel["latency_s"].max()
        for axis, methods in parts.each_bar_panel(axes, costs):
            for place, row in methods:
                left = 0.0
                for phase in PHASES:
                    seconds = getattr(row, f"latency_{phase}_s")
                    axis.barh(place, seconds, left=left, height=0.68, color=PHASE_COLOURS[phase], lw=0)
                    left += seconds
                text = significant_digits(left, 3)
                if not row.feasible:
                    axis.barh(
                        place, left, height=0.68, facecolor="none", edgecolor="#000000", hatch=parts.HATCH, lw=0.6
                    )
                    text += " infeasible"
                if left > limit:
                    parts.cut(axis, place, f"{text} →")
                else:
                    parts.number(axis, left, place, text)
            axis.set_xlim(0, limit)
        parts.name_bars(axes, "Round latency (s)")
        handles = [Patch(facecolor=PHASE_COLOURS[phase], label=phase, lw=0) for phase in PHASES]
        if not costs["feasible"].all():
            handles.append(
                Patch(facecolor="none", edgecolor="#000000", hatch=parts.HATCH, label="too big for a device", lw=0.6)
            )
        beyond = "" if costs["latency_s"].max() <= limit else "→: longer than the axis, later phases are not seen."
        note = (
            f"{scenario.rates}. {parts.latency_note(costs, scenario)} {beyond} {parts.work_note(cases[0].deployment)}"
        )
        columns = 3 if panels.narrow(width_in) else len(handles)
        panels.finish(figure, handles, note, columns)
    return figure


def latency_by_uplink(
    cases: Sequence[Case],
    uplinks_mbps: Sequence[int | float] = (5, 10, 15, 20),
    downlink_mbps: int | float | None = None,
    scenario: Scenario | None = None,
    width_in: float = DOUBLE_COLUMN_IN,
) -> Figure:
    """A round's latency against the uplink rate, a line per method, a panel per backbone (Fig. 4d).

    No `downlink_mbps` makes each downlink as fast as its uplink. Infeasible methods are pale.
    """
    scenario = scenario or Scenario()
    with theme():
        costs = latency_frame(cases, uplinks_mbps, downlink_mbps, scenario)
        styles = panels.styles(costs)
        backbones = list(dict.fromkeys(costs["backbone"]))
        side_by_side = not panels.narrow(width_in)
        shape = (1, len(backbones)) if side_by_side else (len(backbones), 1)
        figure, axes = plt.subplots(
            *shape, figsize=(width_in, 1.2 + 1.9 * shape[0]), sharex=True, sharey=side_by_side, squeeze=False
        )
        for axis, (backbone, rows) in zip(axes.flat, costs.groupby("backbone", sort=False), strict=True):
            for method, style, line in panels.each_method(rows, styles):
                axis.plot(
                    line["uplink_mbps"],
                    line["latency_s"],
                    color=style.colour,
                    marker=style.marker,
                    linestyle=style.linestyle,
                    alpha=1.0 if line["feasible"].all() else 0.5,
                    label=style.label,
                    gid=method,
                )
            axis.set_title(backbone)
            axis.set_xticks(list(uplinks_mbps))
            axis.set_yscale("log")
            parts.plain_ticks(axis.yaxis)
        panels.name_axes(axes.tolist(), "Uplink (Mbps)", "Round latency (s)")
        down = "Downlink as fast as the uplink." if downlink_mbps is None else f"Downlink {downlink_mbps:g} Mbps."
        pale = "" if costs["feasible"].all() else "Pale: too big for a device."
        note = f"{down} {pale} {parts.latency_note(costs, scenario)} {parts.work_note(cases[0].deployment)}"
        handles = panels.method_handles(axes.tolist())
        panels.finish(figure, handles, note, 4 if side_by_side else 2)
    return figure


def accuracy_by_latency(
    settings: pd.DataFrame,
    base: Deployment | None,
    scenario: Scenario | None = None,
    width_in: float = DOUBLE_COLUMN_IN,
) -> Figure:
    """Accuracy against round latency over tokens and bits, a panel per data set and partition (Fig. 4e,f).

    `settings` has a row per setting: `dataset`, `partition`, `n_tokens`, `bits`, and `mean`, `low`, `high` of the
    accuracy as fractions (NaN where there is no interval), and `diverged`, as `accuracy_by_bits_means` gives them.
    Latency is that of `base` at these settings. A frame without rows makes a figure that says so, and so does no base.
    """
    scenario = scenario or Scenario()
    if settings.empty or base is None:
        return panels.sentence("no runs yet", width_in)
    backbone = backbone_label(base.vit)
    with theme():
        points = with_latency(settings, base, scenario)
        cells = [panel for _, panel in points.groupby(["dataset", "partition"], sort=False)]
        cells.sort(key=lambda panel: (panel["dataset"].iloc[0], partition_rank(panel["partition"].iloc[0])))
        figure, axes = parts.two_in_a_row(len(cells), width_in, _CURVE_HEIGHT_IN)
        for axis, panel in zip((axis for row in axes for axis in row), cells, strict=False):
            join = "\n" if panels.narrow(width_in) else " · "
            axis.set_title(
                join.join([dataset_label(panel["dataset"].iloc[0]), partition_label(panel["partition"].iloc[0])])
            )
            front = pareto_front(panel).sort_values("latency_s")
            axis.plot(front["latency_s"], 100 * front["mean"], color=parts.GREY, lw=0.7, zorder=1)
            for row in panel.to_dict("records"):
                x_s, colour = row["latency_s"], parts.bits_colour(row["bits"])
                if row["diverged"]:
                    panels.diverged(axis, x_s, MethodStyle("", colour, "", ""))
                axis.plot([x_s] * 2, [100 * row["low"], 100 * row["high"]], color=colour, lw=0.8, zorder=2)
                mark = parts.token_mark(row["n_tokens"])
                axis.plot(x_s, 100 * row["mean"], color=colour, linestyle="", zorder=3, gid=backbone, **mark)
            axis.xaxis.set_major_locator(MaxNLocator(6))
        panels.name_axes(axes, "Round latency (s)", "Final accuracy (%)")
        panels.percent_axes(axes)
        panels.points_in_view(axes)
        handles = parts.setting_handles(points, two_rows=not panels.narrow(width_in))
        note = (
            "Bars: 95 % t-intervals over seeds; line: settings that no other beats in both. Accuracy is this study's, "
            f"latency that of a round of {backbone}. {scenario.rates}. {scenario.machines}; "
            f"phases do not overlap. {parts.work_note(base)}"
        )
        columns = 3 if panels.narrow(width_in) else len(handles) // 2
        panels.finish(figure, handles, note, columns)
    return figure
