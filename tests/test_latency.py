"""A round's latency: phases, the slowest participant, energy, and who can hold what."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsflora.analysis.costs.latency import (
    FAST,
    MEMORY_LINE_BYTES,
    MIDDLE,
    REFERENCE,
    SLOW,
    TESTBED,
    Accelerator,
    DeviceClass,
    Participant,
    Work,
    round_latency,
)
from tsflora.analysis.costs.radio import MBPS, Link
from tsflora.config import Config
from tsflora.errors import ConfigError

ONE = Accelerator(name="one", peak_flop_per_s=2e12, utilisation=0.5, memory_bytes=10**10)
TEN_MBPS = Link(uplink_bps=10 * MBPS, downlink_bps=20 * MBPS, transmit_power_w=0.5)
WORK = Work(device_flop=1e12, server_flop=2e12, uplink_bytes=5e6, downlink_bytes=2.5e6)

devices = st.builds(
    DeviceClass, name=st.just("d"), compute_fraction=st.floats(0.01, 1), memory_fraction=st.floats(0.01, 1)
)
links = st.builds(Link, uplink_bps=st.floats(1e5, 1e9), downlink_bps=st.floats(1e5, 1e9))
works = st.builds(Work, *[st.floats(0, 1e14)] * 2, *[st.floats(0, 1e9)] * 2)
participants = st.lists(st.builds(Participant, devices, links, works), min_size=1, max_size=6)


def test_phases_by_hand() -> None:
    latency = round_latency([Participant(MIDDLE, TEN_MBPS, WORK)], ONE, ONE)
    (alone,) = latency.participants
    assert alone.device_s == pytest.approx(10)  # 1e12 FLOP at a tenth of half of 2e12
    assert alone.uplink_s == pytest.approx(4)
    assert alone.server_s == pytest.approx(2)
    assert alone.downlink_s == pytest.approx(1)
    assert alone.total_s == latency.total_s == pytest.approx(17)
    assert alone.radio_joule == pytest.approx(2)
    assert alone.compute_joule is None


def test_compute_energy_where_the_power_is_known() -> None:
    device = MIDDLE.model_copy(update={"compute_power_w": 30.0})
    assert round_latency([Participant(device, TEN_MBPS, WORK)], ONE).slowest.compute_joule == pytest.approx(300)


def test_devices_work_in_parallel_and_the_server_in_turn() -> None:
    one = round_latency([Participant(MIDDLE, TEN_MBPS, WORK)], ONE, ONE).slowest
    ten = round_latency([Participant(MIDDLE, TEN_MBPS, WORK)] * 10, ONE, ONE).slowest
    assert ten.server_s == pytest.approx(10 * one.server_s)
    assert replace(ten, server_s=one.server_s) == one


def test_the_testbed_waits_for_its_slowest_class() -> None:
    latency = round_latency([Participant(device, TEN_MBPS, WORK) for device in TESTBED], ONE, ONE)
    assert latency.slowest.device_s == pytest.approx(20)
    assert [phase.device_s for phase in latency.participants] == pytest.approx([20] * 3 + [10] * 4 + [20 / 3] * 3)
    # A slow link makes a fast device the one that everyone waits for.
    slow_link = Link(uplink_bps=1 * MBPS, downlink_bps=20 * MBPS)
    mixed = round_latency([Participant(SLOW, TEN_MBPS, WORK), Participant(FAST, slow_link, WORK)], ONE, ONE)
    assert mixed.slowest is mixed.participants[1]


@given(participants)
def test_a_round_is_the_maximum_over_its_participants(everyone: list[Participant]) -> None:
    latency = round_latency(everyone)
    assert latency.total_s == max(one.total_s for one in latency.participants)
    for one in latency.participants:
        assert one.total_s == pytest.approx(one.device_s + one.uplink_s + one.server_s + one.downlink_s)
    # One more participant never makes it shorter, nor does the order matter.
    assert round_latency([*everyone, everyone[0]]).total_s >= latency.total_s
    assert round_latency(everyone[::-1]).total_s == latency.total_s


@given(participants, st.floats(1.1, 10))
def test_a_faster_uplink_never_takes_longer(everyone: list[Participant], factor: float) -> None:
    def faster(link: Link) -> Link:
        return link.model_copy(update={"uplink_bps": factor * link.uplink_bps})

    before = round_latency(everyone)
    after = round_latency([replace(one, link=faster(one.link)) for one in everyone])
    assert after.total_s <= before.total_s
    for old, new in zip(before.participants, after.participants, strict=True):
        assert new.uplink_s == pytest.approx(old.uplink_s / factor)
        assert replace(new, uplink_s=old.uplink_s, radio_joule=old.radio_joule) == old


@given(participants, st.floats(0, 10))
def test_all_phases_scale_with_the_work(everyone: list[Participant], factor: float) -> None:
    def scaled(work: Work) -> Work:
        return Work(*(factor * value for value in vars(work).values()))

    after = round_latency([replace(one, work=scaled(one.work)) for one in everyone])
    assert after.total_s == pytest.approx(factor * round_latency(everyone).total_s)


def test_no_work_takes_no_time() -> None:
    idle = Participant(SLOW, TEN_MBPS, Work(0, 0, 0, 0))
    assert round_latency([idle] * 3).total_s == 0


@pytest.mark.parametrize(("mib", "seconds"), [(61.22, 51.4), (7.02, 5.9)])
def test_vit_base_uplink_at_ten_mbps(mib: float, seconds: float) -> None:
    work = Work(0, 0, uplink_bytes=mib * 2**20, downlink_bytes=0)
    latency = round_latency([Participant(device, TEN_MBPS, work) for device in TESTBED])
    assert round(latency.total_s, 1) == seconds
    assert latency.slowest.uplink_s == latency.total_s


def test_the_testbed_is_table_two() -> None:
    assert [(device.compute_fraction, device.memory_fraction) for device in TESTBED] == [
        *[(0.05, 0.08)] * 3,
        *[(0.10, 0.10)] * 4,
        *[(0.15, 0.12)] * 3,
    ]


def test_who_can_hold_what() -> None:
    assert [device.holds(9 * 10**8, ONE) for device in (SLOW, MIDDLE, FAST)] == [False, True, True]
    assert [device.holds(13 * 10**8, ONE) for device in (SLOW, MIDDLE, FAST)] == [False, False, False]
    assert MIDDLE.holds(10**9, ONE)
    assert not MIDDLE.holds(10**9 + 1, ONE)
    # The reference's memory was chosen for this.
    assert MIDDLE.memory_bytes(REFERENCE) == MEMORY_LINE_BYTES


@pytest.mark.parametrize(
    ("cls", "values", "wrong"),
    [
        (DeviceClass, {"name": "x", "compute_fraction": 0, "memory_fraction": 0.1}, "compute_fraction"),
        (DeviceClass, {"name": "x", "compute_fraction": 0.1, "memory_fraction": 1.5}, "memory_fraction"),
        (
            DeviceClass,
            {"name": "x", "compute_fraction": 1, "memory_fraction": 1, "compute_power_w": -1},
            "compute_power_w",
        ),
        (Accelerator, {"name": "x", "peak_flop_per_s": -1, "memory_bytes": 1}, "peak_flop_per_s"),
        (Accelerator, {"name": "x", "peak_flop_per_s": 1, "memory_bytes": 0}, "memory_bytes"),
        (Accelerator, {"name": "x", "peak_flop_per_s": 1, "memory_bytes": 1, "utilisation": 1.1}, "utilisation"),
    ],
)
def test_wrong_configuration_is_one_line(cls: type[Config], values: dict, wrong: str) -> None:
    with pytest.raises(ConfigError, match=f"edge.{wrong}") as caught:
        cls.parse(values, "edge")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["device_flop", "server_flop", "uplink_bytes", "downlink_bytes"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_wrong_work(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"work.{name}: given {value}; allowed"):
        replace(WORK, **{name: value})


def test_a_round_needs_a_participant() -> None:
    with pytest.raises(ConfigError, match="participants: given none"):
        round_latency([])
