"""What a figure shows, as numbers: matplotlib's types leave open what its lines and patches hold."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle


def bars(axis: Axes) -> list[Rectangle]:
    """Its patches; an error where one is no bar."""
    found = [patch for patch in axis.patches if isinstance(patch, Rectangle)]
    assert len(found) == len(axis.patches)
    return found


def xs(line: Line2D) -> np.ndarray:
    """Where its points are."""
    return np.asarray(line.get_xdata())


def ys(line: Line2D) -> np.ndarray:
    """How high its points are."""
    return np.asarray(line.get_ydata())
