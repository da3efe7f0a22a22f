"""One look for every figure: a theme at paper size, one style per method everywhere, and files with the same bytes."""

import io
from collections.abc import Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

from tsflora.files import write_atomically
from tsflora.seeding import seed_for

COLUMN_IN = 3.35
"""Width of one column of a two-column paper, in inches."""
DOUBLE_COLUMN_IN = 7.0
"""Width across both columns, in inches."""

_DPI = 300


@dataclass(frozen=True)
class MethodStyle:
    """How one method is drawn: its name as matplotlib prints it (`drawn`), colour, marker and line style."""

    label: str
    colour: str
    marker: str
    linestyle: str


# Okabe and Ito's colour-blind-safe colours, with grey for their yellow, which fades on white, and two of Paul Tol's for
# the context baselines.
_KNOWN = {
    "local_lora": ("#8C8C8C", "x", ":"),
    "fed_lora": ("#E69F00", "v", "--"),
    "split_lora": ("#56B4E9", "P", "-."),
    "sflora": ("#000000", "o", "-"),
    "sflora_8bit": ("#0072B2", "s", "--"),
    "sflora_4bit": ("#CC79A7", "D", "-."),
    "tsflora_8bit_40": ("#009E73", "^", "-"),
    "tsflora_8bit_30": ("#D55E00", "*", "-"),
    "central_raw": ("#882255", "o", "--"),
    "central_jpeg": ("#332288", "s", ":"),
}
# Paul Tol's "muted" scheme, colour-blind safe too, for methods that users add.
_MORE_COLOURS = (
    "#332288",
    "#88CCEE",
    "#44AA99",
    "#117733",
    "#999933",
    "#DDCC77",
    "#CC6677",
    "#882255",
    "#AA4499",
)
_MORE_MARKERS = ("<", ">", "p", "h", "8", "d", "X", "H")
_MORE_LINESTYLES = ("-", "--", "-.", ":")

KIND_COLOURS = {
    "activations": "#004488",
    "gradients": "#BB5566",
    "adapters": "#DDAA33",
    "images": "#66AABB",
    "labels": "#000000",
    "control": "#555555",
    "headers": "#888888",
}
"""Colour of each kind of byte (Paul Tol's "high contrast" and greys)."""

PHASE_COLOURS = {"device": "#EE8866", "uplink": "#4477AA", "server": "#BBBBBB", "downlink": "#77AADD"}
"""Colour of each phase of a round (Paul Tol's "light" and "bright"); the two directions of traffic are two blues."""

BITS_COLOURS = {2: "#BB5566", 4: "#DDAA33", 8: "#004488", 16: "#66AABB"}
"""Colour of each bit width where the axis is something else (after Paul Tol's "high contrast"): no method's."""
FULL_COLOUR = "#000000"
"""Colour of full precision, in which nothing is compressed."""

TOKEN_MARKERS = {10: "v", 20: "D", 30: "o", 40: "s", 50: "^"}
"""Marker of each number of transmitted tokens."""
TOKEN_COLOURS = {10: "#C7B52B", 20: "#5DA86B", 30: "#2C8A8C", 40: "#35608D", 50: "#46196E"}
"""Colour of each number of transmitted tokens where the axis is bits (viridis, without its palest part)."""


BITS_MARKERS = {2: "v", 4: "D", 8: "s"}
"""Marker of each bit width where the axis is something else."""

CHOICE_LOOKS = {
    ("top_k_merge", "attention"): ("#D55E00", "*", "-"),
    ("top_k_merge", "none"): ("#DDAA33", "v", "--"),
    ("random", "attention"): ("#004488", "X", ":"),
    ("feature_norm", "attention"): ("#44AA99", "p", "-."),
}
"""Colour, marker and line of each way to choose tokens: selection and merged token.

The first is TSFLora's own and looks like its runs at 30 tokens; the others look like none of the suite's methods.
"""


def style_of(method: str, label: str) -> MethodStyle:
    """The style of one method alone; see `styles_of`."""
    return styles_of({method: label})[method]


def styles_of(labels: Mapping[str, str]) -> dict[str, MethodStyle]:
    """Styles of methods that are drawn together, by key: the same in every figure of these methods, on every machine.

    The suite's own are fixed. Any other key takes the colour and the marker that its hash points at, or the next that
    nobody here has; where all are taken, those of another method with another line.
    """
    colours = {_KNOWN[method][0] for method in labels if method in _KNOWN}
    markers: set[str] = set()
    styles = {}
    for method in sorted(labels):
        if method in _KNOWN:
            look = _KNOWN[method]
        else:
            draw, colour = divmod(seed_for("style", method), len(_MORE_COLOURS))
            draw, marker = divmod(draw, len(_MORE_MARKERS))
            look = (
                _next_free(_MORE_COLOURS, colour, colours),
                _next_free(_MORE_MARKERS, marker, markers),
                _MORE_LINESTYLES[draw % len(_MORE_LINESTYLES)],
            )
            colours.add(look[0])
            markers.add(look[1])
        styles[method] = MethodStyle(drawn(labels[method]), *look)
    return styles


def _next_free(looks: Sequence[str], first: int, taken: Set[str]) -> str:
    """The look at `first` or the next one that is not taken; the one at `first` where all are."""
    in_turn = [*looks[first:], *looks[:first]]
    return next((look for look in in_turn if look not in taken), looks[first])


def drawn(label: str) -> str:
    """A label that matplotlib prints as it is: dollars are no formula, a leading underscore keeps it in the legend."""
    label = label.replace("$", r"\$")
    return f"\u200b{label}" if label.startswith("_") else label


def theme() -> AbstractContextManager[None]:
    """A context in which figures are drawn: seaborn's paper look with 7-8 pt text, settings put back afterwards."""
    return mpl.rc_context(_settings())


def _settings() -> Any:
    return {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],  # ships with matplotlib: the same glyphs on every machine
        "font.size": 7,
        "axes.labelsize": 7.5,
        "axes.titlesize": 7.5,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "legend.fontsize": 7,
        "legend.frameon": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#E4E4E4",
        "grid.linewidth": 0.5,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.minor.size": 1.5,
        "ytick.minor.width": 0.4,
        "ytick.minor.size": 1.5,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.4,
        "lines.markeredgewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }


def save_figure(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Write `stem`.png (300 dpi) and `stem`.pdf, each atomically and without dates or versions; closes the figure.

    Raises:
        StorageError: the folder cannot be written.
    """
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": "tsflora"},
    }
    paths = []
    # Type 42 embeds real fonts, which publishers ask for; the size stays what was asked for, no tight cropping.
    with mpl.rc_context({"pdf.fonttype": 42, "savefig.bbox": None}):
        for suffix, fields in metadata.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, dpi=_DPI, metadata=fields)
            path = stem.with_name(f"{stem.name}.{suffix}")
            write_atomically(path, buffer.getvalue())
            paths.append(path)
    plt.close(figure)
    return paths[0], paths[1]
