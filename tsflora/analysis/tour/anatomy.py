"""Bytes, drawn: the fields of a frame, and where the bytes of whole exchanges go."""

from collections.abc import Mapping
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from tsflora.analysis.figures.style import DOUBLE_COLUMN_IN, KIND_COLOURS, theme
from tsflora.compression import measure, read_frame
from tsflora.records import KINDS
from tsflora.wire import Format

_DPI = 150
_MUTED = "#555555"
_PART_COLOURS = {
    "prefix": "#88CCEE",
    "table": "#DDCC77",
    "payload": "#44AA99",
    "ranges": "#CC6677",
    "checksum": "#BBBBBB",
}
"""Colour of each part of a frame (Paul Tol's "muted")."""


@dataclass(frozen=True)
class Field:
    """One field of a frame: bytes `start` to `stop`, not included, and what they say."""

    part: str
    """A key of the parts' colours: prefix, table, payload, ranges or checksum."""
    line: str
    """The line of a drawing that it stands on."""
    name: str
    start: int
    stop: int
    meaning: str


def frame_fields(frame: bytes) -> list[Field]:
    """Every field of a frame, without gaps, named as in `tsflora.wire.frames`; section bodies are one field.

    Raises:
        FrameError: as `read_frame`.
    """
    kind = measure(frame).kind
    sections = read_frame(frame, kind)
    fields: list[Field] = []

    def add(part: str, line: str, name: str, n_bytes: int, meaning: str) -> None:
        start = fields[-1].stop if fields else 0
        fields.append(Field(part, line, name, start, start + n_bytes, meaning))

    add("prefix", "prefix", "magic", 4, frame[:4].decode())
    add("prefix", "prefix", "version", 1, str(frame[4]))
    add("prefix", "prefix", "kind", 1, kind.name.lower())
    add("prefix", "prefix", "sections", 2, str(len(sections)))
    for number, section in enumerate(sections):
        layout, line = section.layout, f"table, section {number}"
        add("table", line, "format", 1, layout.format.name.lower())
        add("table", line, "flags", 1, "side" if layout.side else "payload")
        add("table", line, "bits", 1, str(layout.bits))
        add("table", line, "dims", 1, str(len(layout.shape)))
        for size in layout.shape:
            add("table", line, "size", 4, f"{size:,}")
        if layout.length is not None:
            add("table", line, "length", 4, f"{layout.length:,}")
    for number, section in enumerate(sections):
        layout = section.layout
        meaning = f"{layout.entries:,} × {layout.bits} bits" if layout.length is None else f"{layout.entries:,}, coded"
        if layout.side and layout.format != Format.PACKED and layout.entries == 2:
            meaning = " to ".join(f"{value:.3g}" for value in section.values.ravel())
        add("ranges" if layout.side else "payload", f"body, section {number}", "entries", layout.body_bytes, meaning)
    add("checksum", "checksum", "CRC-32", 4, f"{int.from_bytes(frame[-4:], 'little'):#010x}")
    return fields


def frame_to_scale(frame: bytes) -> Figure:
    """A frame as a bar, true to scale, and below it its parts beside the payload, magnified."""
    sizes = dict.fromkeys(_PART_COLOURS, 0)
    for field in frame_fields(frame):
        sizes[field.part] += field.stop - field.start
    rest = {part: size for part, size in sizes.items() if size and part != "payload"}
    with theme():
        figure, axes = plt.subplots(2, 1, figsize=(DOUBLE_COLUMN_IN, 1.7), dpi=_DPI)
        for axis, bars, title in (
            (axes[0], sizes, f"The whole frame: {len(frame):,} bytes"),
            (axes[1], rest, f"Without its payload: {sum(rest.values()):,} bytes, magnified"),
        ):
            total, left = sum(bars.values()), 0
            for part, size in bars.items():
                axis.barh(0, size, left=left, color=_PART_COLOURS[part], height=1)
                if size > 0.05 * total:
                    share = f" ({100 * size / total:.2f} %)" if part == "payload" else ""
                    axis.text(left + size / 2, 0, f"{part}\n{size:,}{share}", ha="center", va="center")
                left += size
            axis.set(xlim=(0, total), yticks=[], xticks=[])
            axis.set_title(title, loc="left")
            axis.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def frame_bytes(frame: bytes, at_most: int = 12) -> Figure:
    """The bytes themselves in hex, field by field; of a longer body only the first `at_most` bytes."""
    fields = frame_fields(frame)
    lines = list(dict.fromkeys(field.line for field in fields))
    widest = 0
    with theme():
        figure, axis = plt.subplots(figsize=(DOUBLE_COLUMN_IN, 0.64 * len(lines)), dpi=_DPI)
        for y, line in enumerate(lines):
            x = 0
            axis.text(0, y - 0.4, line, va="bottom", weight="bold")
            for field in fields:
                if field.line != line:
                    continue
                shown = frame[field.start : min(field.stop, field.start + at_most)]
                for place, byte in enumerate(shown, x):
                    axis.add_patch(Rectangle((place, y - 0.2), 1, 0.4, color=_PART_COLOURS[field.part], linewidth=0))
                    axis.text(place + 0.5, y, f"{byte:02x}", ha="center", va="center", family="monospace")
                axis.plot([x, x], [y - 0.2, y + 0.2], color="black", linewidth=0.8)
                caption = {"ha": "center", "color": _MUTED, "fontsize": 5.2}
                axis.text(x + len(shown) / 2, y - 0.22, field.name, caption, va="bottom")
                axis.text(x + len(shown) / 2, y + 0.22, field.meaning, caption, va="top")
                x += len(shown)
                if hidden := field.stop - field.start - len(shown):
                    axis.text(x + 0.2, y, f"… and {hidden:,} more bytes", va="center", color=_MUTED)
            widest = max(widest, x)
        axis.set(xlim=(-0.1, max(16, widest) + 0.1), ylim=(len(lines) - 0.55, -0.7))
        axis.set_axis_off()
    plt.close(figure)
    return figure


def byte_bars(bars: Mapping[str, Mapping[str, int]]) -> Figure:
    """Stacked bars of bytes by kind (`KINDS`), one for each entry of `bars`, with their totals."""
    with theme():
        figure, axis = plt.subplots(figsize=(DOUBLE_COLUMN_IN, 0.75 + 0.24 * len(bars)), dpi=_DPI)
        for place, (name, sent) in enumerate(bars.items()):
            left = 0.0
            for kind in KINDS:
                axis.barh(place, sent.get(kind, 0) / 1024, left=left, color=KIND_COLOURS[kind], height=0.7)
                left += sent.get(kind, 0) / 1024
            axis.text(left, place, f" {left:,.1f}", va="center")
            axis.text(0, place, f"{name}  ", ha="right", va="center")
        axis.set(yticks=[], ylim=(len(bars) - 0.5, -0.5), xlabel="KiB")
        axis.margins(x=0.1)
        axis.grid(axis="y", visible=False)
        sent_kinds = [kind for kind in KINDS if any(sent.get(kind) for sent in bars.values())]
        handles = [Patch(color=KIND_COLOURS[kind], label=kind, lw=0) for kind in sent_kinds]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    plt.close(figure)
    return figure
