"""The theory of TSFLora (arXiv 2605.23988) as code: every bound beside the value it bounds.

Distortion of tokens (Lemmas 1 and 2), perturbation of gradients (Lemma 3), convergence (Theorem 1), and the choice of
cut, tokens and bits (problem 10-14). Training uses none of it.
"""

from tsflora.analysis.theory.convergence import ConvergenceBound, ConvergenceConfig, convergence_bound, unit_bound
from tsflora.analysis.theory.distortion import (
    RandomDistortion,
    SelectionDistortion,
    rounding_bound,
    rounding_distortion,
    scatter,
    selection_distortion,
    total_distortion,
)
from tsflora.analysis.theory.measure import measure, retained_attention
from tsflora.analysis.theory.perturbation import Gradient, gradient, lipschitz_estimate, perturbation_bound
from tsflora.analysis.theory.planning import (
    Candidate,
    PerturbationModel,
    Plan,
    Problem,
    candidates,
    fit_perturbation,
    solve,
    uplink_bits,
)

__all__ = [
    "Candidate",
    "ConvergenceBound",
    "ConvergenceConfig",
    "Gradient",
    "PerturbationModel",
    "Plan",
    "Problem",
    "RandomDistortion",
    "SelectionDistortion",
    "candidates",
    "convergence_bound",
    "fit_perturbation",
    "gradient",
    "lipschitz_estimate",
    "measure",
    "perturbation_bound",
    "retained_attention",
    "rounding_bound",
    "rounding_distortion",
    "scatter",
    "selection_distortion",
    "solve",
    "total_distortion",
    "unit_bound",
    "uplink_bits",
]
