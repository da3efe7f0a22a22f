"""Which cut, how many tokens, how many bits: problem (10)-(14) of TSFLora (arXiv 2605.23988), solved by enumeration.

The paper sweeps and does not solve. There are a few hundred configurations at most, so all of them are looked at, and
the answer says of each why it is out.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from tsflora.errors import ConfigError

LIMITS = ("uplink", "memory", "target")
"""What a configuration may break."""
Perturbation = Callable[[int, int, int], float]
"""Predicted Gamma^2 from (cut, n_tokens, bits)."""


def uplink_bits(batch_size: int, n_tokens: int, dim: int, bits: int) -> int:
    """Eq. (9): C(K, q) = B (K + 2) D q payload bits per mini-batch, n_tokens = K + 2 the tokens that travel."""
    return batch_size * n_tokens * dim * bits


@dataclass(frozen=True)
class Problem:
    """Objective and limits. Memory is what the caller's device model says of each cut."""

    batch_size: int
    dim: int
    perturbation: Perturbation
    uplink_limit_bits: int | float
    """C_max, payload bits per mini-batch."""
    device_memory_bytes: Mapping[int, int]
    """By cut."""
    memory_limit_bytes: Mapping[Hashable, int | float]
    """By device; the one with the least decides for all."""
    target: float = math.inf
    """The largest Gamma^2 that is good enough."""


@dataclass(frozen=True)
class Candidate:
    """One configuration, and what stands against it."""

    cut: int
    n_tokens: int
    bits: int
    uplink_bits: int
    device_memory_bytes: int
    perturbation: float
    """Predicted Gamma^2."""
    obstacles: Mapping[str, str]
    """Of the limits in `LIMITS`, those that it breaks, each with a line that says how."""

    @property
    def feasible(self) -> bool:
        """Whether it keeps every limit."""
        return not self.obstacles


@dataclass(frozen=True)
class Plan:
    """Every configuration that was looked at, and the best feasible one."""

    candidates: tuple[Candidate, ...]
    best: Candidate

    def frame(self) -> pd.DataFrame:
        """One row per configuration, the feasible ones first, by predicted perturbation; a column for each limit."""
        rows = []
        for each in self.candidates:
            facts = dataclasses.asdict(each)
            broken = facts.pop("obstacles")
            rows.append(facts | {f"breaks_{limit}": limit in broken for limit in LIMITS} | {"feasible": each.feasible})
        order = ["feasible", "perturbation", "uplink_bits"]
        return pd.DataFrame(rows).sort_values(order, ascending=[False, True, True], ignore_index=True)


def candidates(problem: Problem, cuts: Sequence[int], n_tokens: Sequence[int], bits: Sequence[int]) -> list[Candidate]:
    """Every combination, with its costs and what it breaks.

    Raises:
        ConfigError: nothing to choose from, a cut without a memory figure, or a prediction that is not a number.
    """
    if not (cuts and n_tokens and bits and problem.memory_limit_bytes):
        raise ConfigError("planning needs at least one cut, one n_tokens, one bits and one device's memory limit")
    missing = sorted(set(cuts) - problem.device_memory_bytes.keys())
    if missing:
        raise ConfigError(
            f"device_memory_bytes: no figure for cut {missing[0]}; given: {list(problem.device_memory_bytes)}"
        )
    return [_candidate(problem, *each) for each in itertools.product(cuts, n_tokens, bits)]


def _candidate(problem: Problem, cut: int, n_tokens: int, bits: int) -> Candidate:
    uplink = uplink_bits(problem.batch_size, n_tokens, problem.dim, bits)
    memory = problem.device_memory_bytes[cut]
    device, memory_limit = min(problem.memory_limit_bytes.items(), key=lambda item: item[1])
    obstacles = {}
    if uplink > problem.uplink_limit_bits:
        obstacles["uplink"] = f"{uplink} uplink bits per mini-batch exceed {problem.uplink_limit_bits:g}"
    if memory > memory_limit:
        obstacles["memory"] = f"{memory:g} bytes of memory exceed the {memory_limit:g} of {device}"
    predicted = float(problem.perturbation(cut, n_tokens, bits))
    if math.isnan(predicted):
        raise ConfigError(f"the predicted perturbation of cut {cut}, {n_tokens} tokens, {bits} bits is NaN")
    if predicted > problem.target:
        obstacles["target"] = f"a predicted perturbation of {predicted:.3g} exceeds the target {problem.target:g}"
    return Candidate(cut, n_tokens, bits, uplink, memory, predicted, obstacles)


def solve(problem: Problem, cuts: Sequence[int], n_tokens: Sequence[int], bits: Sequence[int]) -> Plan:
    """The feasible configuration of least predicted perturbation; of equal ones that of less uplink, then memory.

    Raises:
        ConfigError: as `candidates`, or no configuration is feasible; the line names the limits that none can keep.
    """
    every = candidates(problem, cuts, n_tokens, bits)
    feasible = [each for each in every if each.feasible]
    if not feasible:
        # Uplink and memory depend on different choices, so one configuration has the least of both, and what it
        # breaks no other can keep; if it only misses the target, the others that keep both limits miss it too.
        least = min(every, key=lambda each: (each.uplink_bits, each.device_memory_bytes))
        raise ConfigError(
            f"no configuration is feasible; even cut {least.cut}, {least.n_tokens} tokens, {least.bits} bits is not: "
            f"{'; '.join(least.obstacles.values())}"
        )
    best = min(feasible, key=lambda each: (each.perturbation, each.uplink_bits, each.device_memory_bytes))
    return Plan(tuple(every), best)


@dataclass(frozen=True)
class PerturbationModel:
    """Gamma^2 ~ c1(e) (1 - retained attention) + c2(e) 4^-q, fitted to measured gradient perturbations."""

    coefficients: Mapping[int, tuple[float, float]]
    """(c1, c2) by cut, neither negative."""
    retained_attention: Mapping[tuple[int, int], float]
    """By (cut, n_tokens): the share of the patches' CLS attention that kept ones hold."""

    def __call__(self, cut: int, n_tokens: int, bits: int) -> float:
        """Predicted Gamma^2.

        Raises:
            ConfigError: a cut or token count that was not measured.
        """
        if (cut, n_tokens) not in self.retained_attention:
            measured = ", ".join(f"cut {c} with {n} tokens" for c, n in sorted(self.retained_attention))
            raise ConfigError(f"nothing was measured at cut {cut} with {n_tokens} tokens; measured: {measured}")
        selection, rounding = self.coefficients[cut]
        return selection * (1 - self.retained_attention[cut, n_tokens]) + rounding * 4.0**-bits


def fit_perturbation(rows: pd.DataFrame, column: str = "transmitted_perturbation") -> PerturbationModel:
    """Non-negative least squares for each cut over rows as `measure` returns them; `column` is what to predict.

    The model knows no saturation, and measurements do: where compression is so coarse that the gradient is lost
    altogether, its change stops growing at about ||g||^2. Such rows, with `column` at `gradient_squared` or above,
    would bend the fit where it matters and are left out, unless fewer than two of a cut's are below.

    Raises:
        ConfigError: no rows, a missing column, or one that is not finite.
    """
    needed = ["cut", "n_tokens", "bits", "retained_attention", "gradient_squared", column]
    missing = [name for name in needed if name not in rows.columns]
    if missing or rows.empty:
        raise ConfigError(f"a fit needs rows with {', '.join(needed)}; missing: {', '.join(missing) or 'rows'}")
    if not np.isfinite(rows[needed].to_numpy(dtype=float)).all():
        raise ConfigError(f"a fit needs finite values of {', '.join(needed)}; given: NaN or infinity among them")
    coefficients = {}
    for cut in sorted({int(each) for each in rows["cut"].to_list()}):
        seen = rows[rows["cut"] == cut]
        below = seen[seen[column] < seen["gradient_squared"]]
        seen = below if len(below) >= 2 else seen
        terms = np.stack([1 - seen["retained_attention"], 4.0 ** -seen["bits"].astype(float)], axis=1)
        (selection, rounding), _ = nnls(terms, seen[column].to_numpy(dtype=float))
        coefficients[cut] = (float(selection), float(rounding))
    means = rows.groupby(["cut", "n_tokens"], as_index=False)["retained_attention"].mean()
    retained = {(int(cut), int(n)): float(share) for cut, n, share in means.itertuples(index=False, name=None)}
    return PerturbationModel(coefficients, retained)
