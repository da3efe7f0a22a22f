"""Rates, seconds and joules of a link."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsflora.analysis.costs.radio import MBPS, Channel, Link, dbm_to_watt, shannon_bps, transfer_s
from tsflora.config import Config
from tsflora.errors import ConfigError

MIB = 2**20
rates = st.floats(1e3, 1e10)
sizes = st.floats(0, 1e12)


@pytest.mark.parametrize(("mib", "seconds"), [(61.22, 51.4), (7.02, 5.9)])
def test_vit_base_at_ten_mbps(mib: float, seconds: float) -> None:
    link = Link(uplink_bps=10 * MBPS, downlink_bps=20 * MBPS, transmit_power_w=2)
    assert round(link.uplink_s(mib * MIB), 1) == seconds
    assert link.downlink_s(mib * MIB) == pytest.approx(link.uplink_s(mib * MIB) / 2)
    assert link.uplink_joule(mib * MIB) == 2 * link.uplink_s(mib * MIB)


@given(sizes, rates, st.floats(1.01, 100))
def test_time_is_linear_in_bytes_and_falls_with_the_rate(n_bytes: float, bps: float, factor: float) -> None:
    assert transfer_s(factor * n_bytes, bps) == pytest.approx(factor * transfer_s(n_bytes, bps))
    assert transfer_s(n_bytes, factor * bps) == pytest.approx(transfer_s(n_bytes, bps) / factor)


def test_no_bytes_take_no_time_even_at_no_rate() -> None:
    link = Link(uplink_bps=1, downlink_bps=1)
    assert link.uplink_s(0) == link.downlink_s(0) == link.uplink_joule(0) == 0
    assert transfer_s(0, 0) == 0


def test_noise_density() -> None:
    assert dbm_to_watt(0) == 1e-3
    assert dbm_to_watt(30) == pytest.approx(1)
    assert dbm_to_watt(-174) == pytest.approx(3.981e-21, rel=1e-3)


def test_shannon_by_hand() -> None:
    # At -60 dBm/Hz over 1 MHz the noise is 1 mW, so 3 mW received are an SNR of 3: two bits in every hertz.
    assert shannon_bps(1e6, power_w=0.3, gain=0.01, noise_dbm_per_hz=-60) == pytest.approx(2e6)
    # 10 MHz, 0.2 W, 100 m: gain 1e-3 * 1e-5, SNR 0.2e-8 / 3.981e-14 = 5.02e4, 15.6 bit/s/Hz.
    channel = Channel(bandwidth_hz=10e6, transmit_power_w=0.2, distance_m=100)
    assert channel.gain == pytest.approx(1e-8)
    assert channel.rate_bps == pytest.approx(156.2e6, rel=1e-3)


@given(st.floats(1e3, 1e9), st.floats(1e-6, 10), st.floats(1e-15, 1e-3))
def test_shannon_rate_grows_with_power_and_bandwidth_up_to_the_wideband_limit(w: float, p: float, g: float) -> None:
    rate = shannon_bps(w, p, g)
    assert shannon_bps(w, 2 * p, g) > rate
    assert shannon_bps(2 * w, p, g) >= rate
    assert rate <= p * g / dbm_to_watt(-174) / math.log(2) * (1 + 1e-12)
    # The least power for a rate (Eq. 27 there) inverts it.
    needed = dbm_to_watt(-174) * w / g * math.expm1(rate / w * math.log(2))
    assert needed == pytest.approx(p, rel=1e-6)


@given(st.floats(1, 1e4), st.floats(0, 5))
def test_gain_falls_with_distance_by_the_exponent(distance: float, exponent: float) -> None:
    def gain(metres: float) -> float:
        channel = Channel(
            bandwidth_hz=1e6, transmit_power_w=1, distance_m=metres, path_loss_exponent=exponent, fading_gain=0.5
        )
        return channel.gain

    assert gain(1) == pytest.approx(0.5e-3)
    assert gain(2 * distance) == pytest.approx(gain(distance) * 2**-exponent)


def test_silence_has_no_rate() -> None:
    assert Channel(bandwidth_hz=1e6, transmit_power_w=0, distance_m=10).rate_bps == 0
    assert shannon_bps(1e6, 1, 0) == 0


@pytest.mark.parametrize(
    ("cls", "values", "wrong"),
    [
        (Link, {"uplink_bps": 0, "downlink_bps": 1}, "uplink_bps"),
        (Link, {"uplink_bps": 1, "downlink_bps": -1}, "downlink_bps"),
        (Link, {"uplink_bps": math.inf, "downlink_bps": 1}, "uplink_bps"),
        (Link, {"uplink_bps": 1, "downlink_bps": math.nan}, "downlink_bps"),
        (Link, {"uplink_bps": 1, "downlink_bps": 1, "transmit_power_w": -2}, "transmit_power_w"),
        (Link, {"uplink_bps": 1, "downlink_bps": 1, "mbps": 10}, "mbps"),
        (Channel, {"bandwidth_hz": 0, "transmit_power_w": 1, "distance_m": 1}, "bandwidth_hz"),
        (Channel, {"bandwidth_hz": 1, "transmit_power_w": 1, "distance_m": 0}, "distance_m"),
        (Channel, {"bandwidth_hz": 1, "transmit_power_w": 1, "distance_m": 1, "fading_gain": -1}, "fading_gain"),
    ],
)
def test_wrong_configuration_is_one_line(cls: type[Config], values: dict, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"radio.{wrong}") as caught:
        cls.parse(values, "radio")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_bytes", [-1, math.inf, math.nan])
def test_wrong_bytes(n_bytes: float) -> None:
    with pytest.raises(ConfigError, match=f"bytes: given {n_bytes}; allowed"):
        Link(uplink_bps=1, downlink_bps=1).uplink_s(n_bytes)


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_bytes_need_a_rate(rate: float) -> None:
    with pytest.raises(ConfigError, match="rate_bps: given"):
        transfer_s(1, rate)


@pytest.mark.parametrize("values", [(0, 1, 1), (1, -1, 1), (1, 1, -1), (math.nan, 1, 1), (1, math.inf, 1)])
def test_wrong_channel(values: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match="channel: given bandwidth_hz="):
        shannon_bps(*values)
