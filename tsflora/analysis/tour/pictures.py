"""One batch, drawn: its images, maps over their patches, and its codes.

Maps lie on the model's grid of patches, row by row from the top left. Figures come back closed, so that a notebook
shows each of them once.
"""

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import scipy.stats
import torch
from jaxtyping import Bool, Float, UInt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from tsflora.analysis.figures.style import DOUBLE_COLUMN_IN, theme
from tsflora.compression import Reduced, Section
from tsflora.errors import DataError

_DPI = 150
_HEAT = "viridis"
_MERGED = "flare"


def pixels(
    inputs: Float[Tensor, "images 3 size size"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "images size size 3"]:
    """The model's inputs as pictures again: normalisation undone, 0..1, channels last, on the CPU."""
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    return (inputs.cpu() * scale + shift).clamp(0, 1).permute(0, 2, 3, 1)


def patch_grid(values: Tensor) -> np.ndarray:
    """One value per patch, (images, patches), laid out on the image: (images, side, side).

    Raises:
        DataError: the number of patches is not a square.
    """
    side = math.isqrt(values.shape[1])
    if side**2 != values.shape[1]:
        raise DataError(f"{values.shape[1]} patches do not form a square grid")
    return values.detach().cpu().reshape(len(values), side, side).numpy()


def merged(reduced: Reduced) -> Bool[Tensor, "batch patches"]:
    """Which patches do not travel as they are."""
    gone = torch.ones_like(reduced.merge_weights, dtype=torch.bool)
    # One place more in front, for the -1 that fills up rows of fewer kept patches.
    return torch.nn.functional.pad(gone, (1, 0)).scatter_(1, reduced.kept + 1, False)[:, 1:]


def gradient_at_patches(
    gradient: Float[Tensor, "batch longest dim"], reduced: Reduced
) -> Float[Tensor, "batch tokens dim"]:
    """The gradient of the whole sequence from that of the transmitted one (`Tokens.values`), by hand.

    CLS and kept patches have their own; a merged patch j has w_j times the merged token's (the transpose of eq. 5 of
    TSFLora, arXiv 2605.23988).
    """
    lengths = reduced.tokens.lengths
    rows = torch.arange(len(gradient), device=gradient.device).unsqueeze(1)
    of_merged = gradient[:, -1:] if lengths is None else gradient[rows, lengths.unsqueeze(1) - 1]
    whole = torch.cat([gradient[:, :1], reduced.merge_weights.unsqueeze(2) * of_merged], dim=1)
    # What fills up a row of fewer kept patches lands on CLS, whose own gradient follows.
    whole[rows, reduced.kept + 1] = gradient[:, 1 : 1 + reduced.kept.shape[1]]
    whole[:, 0] = gradient[:, 0]
    return whole


def photos(pictures: Float[Tensor, "images size size 3"], titles: Sequence[str]) -> Figure:
    """The images in a row, pixel by pixel."""
    with theme():
        figure, axes = _panels(len(pictures), 1, bar_in=0.0)
        for axis, picture, title in zip(axes[0], pictures, titles, strict=True):
            axis.imshow(picture.numpy(), interpolation="nearest")
            axis.set_title(title)
    return _finished(figure)


def patch_maps(
    pictures: Float[Tensor, "images size size 3"],
    rows: Mapping[str, Float[Tensor, "images patches"]],
    colour_label: str,
    log: bool = False,
    dotted: Bool[Tensor, "images patches"] | None = None,
) -> Figure:
    """Heat maps over greyed images, one row per entry of `rows`, all on one colour scale; `dotted` patches get a dot.

    The scale is that of the square root, which leaves room for small values, or with `log` the three decades below the
    largest value; a patch with value 0 then shows the bare image.
    """
    grids = {name: patch_grid(values) for name, values in rows.items()}
    largest = max(float(grid.max()) for grid in grids.values()) or 1.0
    norm = LogNorm(1e-3 * largest, largest) if log else PowerNorm(0.5, 0, largest)
    figure, axes = _panels(len(pictures), len(rows))
    for row, (name, grid) in zip(axes, grids.items(), strict=True):
        for index, axis in enumerate(row):
            extent = (0, grid.shape[2], grid.shape[1], 0)
            axis.imshow(pictures[index].mean(dim=2).numpy(), cmap="gray", vmin=-0.5, vmax=1.5, extent=extent)
            heat = np.ma.masked_less_equal(grid[index], 0) if log else grid[index]
            axis.imshow(heat, cmap=_HEAT, norm=norm, alpha=0.78, extent=extent, interpolation="nearest")
            if dotted is not None:
                y, x = np.nonzero(patch_grid(dotted)[index])
                axis.plot(x + 0.5, y + 0.5, ".", color="white", markersize=2.2)
        row[0].set_ylabel(name)
    _colour_bar(figure, axes, ScalarMappable(norm, _HEAT), colour_label)
    return _finished(figure)


def kept_and_merged(pictures: Float[Tensor, "images size size 3"], rows: Mapping[str, Reduced]) -> Figure:
    """Kept patches as they are, the others covered; the darker the cover, the larger the share in the merged token.

    Shares are in units of the equal share, 1 / number of merged patches.
    """
    covers = {name: (merged(reduced), reduced.merge_weights) for name, reduced in rows.items()}
    shares = {name: weights * gone.sum(dim=1, keepdim=True) for name, (gone, weights) in covers.items()}
    norm = Normalize(0, max(float(share.max()) for share in shares.values()) or 1)
    figure, axes = _panels(len(pictures), len(rows))
    for row, (name, share) in zip(axes, shares.items(), strict=True):
        weights, gone = patch_grid(share), patch_grid(covers[name][0])
        for index, axis in enumerate(row):
            extent = (0, weights.shape[2], weights.shape[1], 0)
            axis.imshow(pictures[index].numpy(), extent=extent, interpolation="nearest")
            cover = np.ma.masked_array(weights[index], ~gone[index])
            axis.imshow(cover, cmap=_MERGED, norm=norm, alpha=0.92, extent=extent, interpolation="nearest")
            for y, x in np.argwhere(gone[index]):
                axis.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor="white", linewidth=0.6))
        row[0].set_ylabel(name)
    _colour_bar(figure, axes, ScalarMappable(norm, _MERGED), "Share / equal share")
    return _finished(figure)


def entropy_bits(codes: UInt[np.ndarray, "..."]) -> float:
    """Empirical entropy of the codes in bits: what an ideal entropy coder would need per entry."""
    return float(scipy.stats.entropy(np.bincount(codes.ravel()), base=2))


def busiest_levels(codes: UInt[np.ndarray, "..."], share: float) -> np.ndarray:
    """The fewest levels that together carry at least `share` of all entries, ascending."""
    counts = np.bincount(codes.ravel())
    order = np.argsort(-counts, kind="stable")
    needed = int(np.searchsorted(np.cumsum(counts[order]), share * codes.size)) + 1
    return np.sort(order[:needed])


def code_histogram(section: Section, lowest: float, highest: float, share: float = 0.9) -> Figure:
    """How often each level of a section of codes is used; the fewest that carry `share` of the entries stand out.

    The upper axis has the levels' values: `lowest` at code 0, `highest` at the last.
    """
    levels = 2**section.layout.bits
    used = np.bincount(section.values.ravel(), minlength=levels) / section.values.size
    busy = np.isin(np.arange(levels), busiest_levels(section.values, share))
    with theme():
        figure, axis = plt.subplots(figsize=(DOUBLE_COLUMN_IN, 2.2), dpi=_DPI)
        for chosen, colour in ((busy, "#0072B2"), (~busy, "#E69F00")):
            name = f"{chosen.sum()} levels, {100 * used[chosen].sum():.1f} % of the entries"
            axis.bar(np.flatnonzero(chosen), 100 * used[chosen], width=1.0, color=colour, label=name, linewidth=0)
        axis.set_yscale("log")
        axis.set(xlim=(-0.5, levels - 0.5), xlabel="Code", ylabel="Entries (%)")
        step = (highest - lowest) / (levels - 1)
        values = (lambda code: lowest + step * code, lambda value: (value - lowest) / step)
        upper = axis.secondary_xaxis("top", functions=values)
        upper.set_xlabel("Value")
        axis.legend(loc="upper left")
    return _finished(figure)


def error_histogram(error_steps: Float[Tensor, "..."]) -> Figure:
    """Rounding errors in steps, beside the density 1 - |e| of stochastic rounding where entries fall anywhere."""
    with theme():
        figure, axis = plt.subplots(figsize=(DOUBLE_COLUMN_IN, 1.9), dpi=_DPI)
        axis.hist(
            error_steps.flatten().cpu().numpy(), bins=80, range=(-1, 1), density=True, color="#56B4E9", linewidth=0
        )
        axis.plot([-1, 0, 1], [0, 1, 0], color="black", linestyle="--", label="1 − |e|: entries anywhere in a step")
        axis.set(xlim=(-1.02, 1.02), xlabel="Decoded − sent (steps)", ylabel="Density")
        axis.legend(loc="upper left")
    return _finished(figure)


def _panels(n_columns: int, n_rows: int, bar_in: float = 0.8) -> tuple[Figure, list[list[Axes]]]:
    """Bare square axes, with `bar_in` left for a colour bar."""
    side_in = (DOUBLE_COLUMN_IN - bar_in) / max(n_columns, 4)
    size_in = (side_in * n_columns + bar_in, side_in * n_rows + 0.2)
    with theme():
        figure, axes = plt.subplots(n_rows, n_columns, figsize=size_in, dpi=_DPI, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    return figure, axes.tolist()


def _colour_bar(figure: Figure, axes: list[list[Axes]], mappable: ScalarMappable, label: str) -> None:
    with theme():
        figure.colorbar(mappable, ax=[axis for row in axes for axis in row], label=label, pad=0.01, fraction=0.03)


def _finished(figure: Figure) -> Figure:
    plt.close(figure)
    return figure
