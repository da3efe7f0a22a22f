"""Links between device and server: rates in bit/s (1 Mbps = 10^6 bit/s), seconds and transmission energy of bytes."""

import math

from pydantic import Field

from tsflora.config import Config
from tsflora.errors import ConfigError

MBPS = 1e6
"""bit/s."""
THERMAL_NOISE_DBM_PER_HZ = -174.0
"""Noise density N0 at room temperature."""


class Link(Config):
    """One device's link, its own for the whole round at fixed rates. arXiv 2605.23988 sweeps 5 to 20 Mbps uplink."""

    uplink_bps: float = Field(gt=0, allow_inf_nan=False)
    downlink_bps: float = Field(gt=0, allow_inf_nan=False)
    transmit_power_w: float = Field(default=0.2, ge=0, allow_inf_nan=False)
    """The device's, while it sends. The default is 23 dBm, the power class of most LTE handsets."""

    def uplink_s(self, n_bytes: int | float) -> float:
        """Seconds to send `n_bytes`.

        Raises:
            ConfigError: a negative or infinite number of bytes.
        """
        return transfer_s(n_bytes, self.uplink_bps)

    def downlink_s(self, n_bytes: int | float) -> float:
        """Seconds to receive `n_bytes`.

        Raises:
            ConfigError: a negative or infinite number of bytes.
        """
        return transfer_s(n_bytes, self.downlink_bps)

    def uplink_joule(self, n_bytes: int | float) -> float:
        """The device's transmission energy for `n_bytes`, E = p T (arXiv 2605.26120, with T the uplink time).

        Raises:
            ConfigError: a negative or infinite number of bytes.
        """
        return self.transmit_power_w * self.uplink_s(n_bytes)


class Channel(Config):
    """A wireless channel: its gain is h g0 d^-a with path-loss exponent a. The gain's constants are not published."""

    bandwidth_hz: float = Field(gt=0, allow_inf_nan=False)
    transmit_power_w: float = Field(ge=0, allow_inf_nan=False)
    distance_m: float = Field(gt=0, allow_inf_nan=False)
    path_loss_exponent: float = Field(default=2.5, ge=0, allow_inf_nan=False)
    reference_gain: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    """g0, at 1 m."""
    fading_gain: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """h, of power; a draw from Exp(1) makes Rayleigh fading."""
    noise_dbm_per_hz: float = Field(default=THERMAL_NOISE_DBM_PER_HZ, allow_inf_nan=False)

    @property
    def gain(self) -> float:
        """Received over transmitted power."""
        return self.fading_gain * self.reference_gain * self.distance_m**-self.path_loss_exponent

    @property
    def rate_bps(self) -> float:
        """Shannon rate, see `shannon_bps`."""
        return shannon_bps(self.bandwidth_hz, self.transmit_power_w, self.gain, self.noise_dbm_per_hz)


def shannon_bps(
    bandwidth_hz: int | float,
    power_w: int | float,
    gain: int | float,
    noise_dbm_per_hz: int | float = THERMAL_NOISE_DBM_PER_HZ,
) -> float:
    """R = W log2(1 + p g / (N0 W)) in bit/s (arXiv 2605.26120, Eq. 3).

    Raises:
        ConfigError: a bandwidth that is not positive, a power or gain that is negative.
    """
    if not (0 < bandwidth_hz < math.inf and 0 <= power_w < math.inf and 0 <= gain < math.inf):
        raise ConfigError(
            f"channel: given bandwidth_hz={bandwidth_hz}, power_w={power_w}, gain={gain}; "
            "allowed: a bandwidth above 0, a power and a gain of at least 0, all finite"
        )
    snr = power_w * gain / (dbm_to_watt(noise_dbm_per_hz) * bandwidth_hz)
    return bandwidth_hz * math.log1p(snr) / math.log(2)


def dbm_to_watt(dbm: int | float) -> float:
    """Decibels over one milliwatt, in watt."""
    return 10 ** (dbm / 10) / 1000


def transfer_s(n_bytes: int | float, rate_bps: int | float) -> float:
    """Seconds for `n_bytes` at `rate_bps`; no bytes take no time, whatever the rate.

    Raises:
        ConfigError: a negative or infinite number of bytes, or some bytes at no rate.
    """
    if not 0 <= n_bytes < math.inf:
        raise ConfigError(f"bytes: given {n_bytes}; allowed: a finite number of at least 0")
    if n_bytes == 0:
        return 0.0
    if not rate_bps > 0:
        raise ConfigError(f"rate_bps: given {rate_bps}; allowed: above 0")
    return 8 * n_bytes / rate_bps
