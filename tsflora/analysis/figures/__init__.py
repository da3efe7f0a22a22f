"""Numbers in; figures out, in one style, with one colour for each method everywhere."""

from tsflora.analysis.figures.costs import (
    accuracy_by_latency,
    communication_by_method,
    communication_by_settings,
    latency_by_method,
    latency_by_uplink,
    memory_by_method,
)
from tsflora.analysis.figures.methods import accuracy_by_bytes, accuracy_by_round, bytes_per_round, final_accuracy
from tsflora.analysis.figures.style import (
    COLUMN_IN,
    DOUBLE_COLUMN_IN,
    MethodStyle,
    save_figure,
    style_of,
    styles_of,
    theme,
)
from tsflora.analysis.figures.sweeps import accuracy_by_bits, accuracy_by_cut, selection_controls
from tsflora.analysis.figures.theory import convergence, distortion, perturbation, ranking_figure
from tsflora.analysis.figures.tradeoff import accuracy_against_traffic

__all__ = [
    "COLUMN_IN",
    "DOUBLE_COLUMN_IN",
    "MethodStyle",
    "accuracy_against_traffic",
    "accuracy_by_bits",
    "accuracy_by_bytes",
    "accuracy_by_cut",
    "accuracy_by_latency",
    "accuracy_by_round",
    "bytes_per_round",
    "communication_by_method",
    "communication_by_settings",
    "convergence",
    "distortion",
    "final_accuracy",
    "latency_by_method",
    "latency_by_uplink",
    "memory_by_method",
    "perturbation",
    "ranking_figure",
    "save_figure",
    "selection_controls",
    "style_of",
    "styles_of",
    "theme",
]
