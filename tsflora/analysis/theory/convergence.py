"""How fast training converges, and how far it cannot get below: Theorem 1 of TSFLora (arXiv 2605.23988)."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from tsflora.config import Config
from tsflora.errors import ConfigError

_SUM_TOLERANCE = 1e-9

_NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ConvergenceConfig(Config):
    """What Theorem 1 is about. Device n's weight a_n, its participation and so on are the n-th of each tuple.

    Device n joins a round with probability q_n, independently of the others, and takes tau local steps; its update is
    weighted by a_n / q_n.
    """

    smoothness: _Positive
    """L: gradients of every F_n are L-Lipschitz in the adapters."""
    learning_rate: _Positive
    """eta."""
    local_steps: int = Field(ge=1)
    """tau."""
    rounds: int = Field(ge=1)
    """T."""
    initial_gap: _NonNegative
    """F(theta^0) - F*."""
    heterogeneity: _NonNegative
    """epsilon^2, the largest ||grad F_n - grad F||^2."""
    weights: tuple[_NonNegative, ...] = Field(min_length=1)
    """a_n, with sum 1."""
    participation: tuple[Annotated[float, Field(gt=0, le=1)], ...]
    """q_n."""
    variances: tuple[_NonNegative, ...]
    """sigma_n^2 of the mini-batch gradient."""
    perturbations: tuple[_NonNegative, ...]
    """Gamma_n^2(K, q) of Lemma 3."""
    young: float = Field(default=0.5, gt=0, lt=1)
    """rho of Young's inequality; 1/2 makes the compression floor least."""

    @model_validator(mode="after")
    def _one_entry_per_device(self) -> "ConvergenceConfig":
        lengths = {
            name: len(getattr(self, name)) for name in ("weights", "participation", "variances", "perturbations")
        }
        if len(set(lengths.values())) > 1:
            given = ", ".join(f"{name}: {length}" for name, length in lengths.items())
            raise ValueError(f"each needs one entry per device; given: {given}")
        if abs(sum(self.weights) - 1) > _SUM_TOLERANCE:
            raise ValueError(f"weights must sum to 1; given: {sum(self.weights):g}")
        return self

    @property
    def participation_factor(self) -> float:
        """A_q = N sum_n a_n^2 / q_n; 1 with equal weights and everyone joining, else more."""
        shares = zip(self.weights, self.participation, strict=True)
        return len(self.weights) * sum(a**2 / q for a, q in shares)

    @property
    def largest_learning_rate(self) -> float:
        """1 / (32 L tau max(1, A_q)): the theorem holds up to it."""
        return 1 / (32 * self.smoothness * self.local_steps * max(1.0, self.participation_factor))


@dataclass(frozen=True)
class ConvergenceBound:
    """Theorem 1's four contributions to the bound on (1/T) sum_t E||grad F(theta^t)||^2, common factor included."""

    gap: float
    """What T rounds have not yet descended: falls as 1 / (eta tau T)."""
    drift: float
    """Devices leaving each other during local steps: falls as eta^2."""
    sampling: float
    """Mini-batches and partial participation: falls as eta."""
    compression: float
    """The floor: the gradient's bias under compression. No learning rate and no number of rounds removes it."""

    @property
    def total(self) -> float:
        """The bound."""
        return self.gap + self.drift + self.sampling + self.compression


def convergence_bound(config: ConvergenceConfig) -> ConvergenceBound:
    """Theorem 1 for these constants.

    Raises:
        ConfigError: a learning rate above the largest that the theorem allows.
    """
    eta, L, tau = config.learning_rate, config.smoothness, config.local_steps
    if eta > config.largest_learning_rate:
        raise ConfigError(
            f"learning_rate: {eta:g} is too large for the theorem; allowed with smoothness {L:g}, {tau} local steps "
            f"and participation factor {config.participation_factor:g}: up to {config.largest_learning_rate:g}"
        )
    noise = [
        sigma2 + 2 * config.heterogeneity + gamma2
        for sigma2, gamma2 in zip(config.variances, config.perturbations, strict=True)
    ]
    shares = list(zip(config.weights, config.participation, noise, config.perturbations, strict=True))
    factor = 2 / (1 - config.young)
    return ConvergenceBound(
        gap=factor * config.initial_gap / (eta * tau * config.rounds),
        drift=factor * 16 / 3 * (L * eta * tau) ** 2 * sum(a * v for a, _, v, _ in shares),
        sampling=factor * 8 / 3 * L * eta * tau * len(shares) * sum(a**2 / q * v for a, q, v, _ in shares),
        compression=factor / (2 * config.young) * sum(a * gamma2 for a, _, _, gamma2 in shares),
    )


def unit_bound(
    perturbation: float, n_devices: int, participants: int, local_steps: int, rounds: int = 10_000
) -> ConvergenceBound:
    """Theorem 1 at its largest learning rate with L, the gap, epsilon^2 and sigma^2 of equal devices set to 1.

    For comparing terms with each other and settings with each other: the constants of a real loss are not known, so
    the sum predicts nothing. `perturbation` is Gamma^2 relative to the squared gradient.
    """
    equal = (1.0,) * n_devices
    share, smoothness = participants / n_devices, 1.0
    # Equal weights 1/N make A_q = 1/q.
    learning_rate = 1 / (32 * smoothness * local_steps * max(1.0, 1 / share))
    config = ConvergenceConfig(
        smoothness=smoothness,
        learning_rate=learning_rate * (1 - 1e-12),  # the bound itself may round to just above
        local_steps=local_steps,
        rounds=rounds,
        initial_gap=1.0,
        heterogeneity=1.0,
        weights=(1 / n_devices,) * n_devices,
        participation=(share,) * n_devices,
        variances=equal,
        perturbations=(perturbation,) * n_devices,
    )
    return convergence_bound(config)
