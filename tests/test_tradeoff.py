"""Accuracy against traffic: the paper's count leaves out what ours holds, and both are of the same runs."""

import math

import pytest
from drawn import xs, ys
from factories import make_record

from tsflora.analysis.figures.style import COLUMN_IN
from tsflora.analysis.figures.tradeoff import accuracy_against_traffic, tradeoff_frame

MIB = 2**20
UPLINK = {"activations": 2 * MIB, "adapters": MIB, "labels": 512, "headers": 512}
DOWNLINK = {"gradients": 4 * MIB, "adapters": MIB, "headers": 1024}


def records():
    # Two participants share each round's bytes.
    sflora = [
        make_record(accuracies=[0.2, 0.9 + 0.01 * seed], seed=seed, uplink_bytes=UPLINK, downlink_bytes=DOWNLINK)
        for seed in (0, 1, 2)
    ]
    local = make_record("local_lora", accuracies=[0.2, 0.6], uplink_bytes={}, downlink_bytes={})
    return [*sflora, local, make_record(partition="dirichlet_0.5", accuracies=[0.8])]


def test_the_papers_count_is_uplink_payload_and_ours_is_every_byte():
    frame = tradeoff_frame(records()).set_index(["partition", "method"])
    sflora = frame.loc[[("iid", "sflora")]].iloc[0]
    assert sflora["uplink_payload_mib"] == pytest.approx(1.5)
    assert sflora["all_bytes_mib"] == pytest.approx(4 + 2048 / MIB / 2)
    assert (sflora["mean"], sflora["n"]) == (pytest.approx(0.91), 3)
    assert sflora["low"] < 0.91 < sflora["high"]
    assert frame.loc[("iid", "local_lora"), "all_bytes_mib"] == 0
    assert math.isnan(frame["low"]["dirichlet_0.5", "sflora"])


@pytest.mark.parametrize("width_in", [7.0, COLUMN_IN])
def test_a_row_for_each_case_and_no_place_for_who_sends_nothing(width_in):
    figure = accuracy_against_traffic(records(), width_in)
    assert len(figure.axes) == 4
    drawn = [{line.get_gid() for line in axis.get_lines() if line.get_gid()} for axis in figure.axes]
    assert drawn == [{"sflora"}] * 4
    (point,) = [line for line in figure.axes[0].get_lines() if line.get_gid()]
    assert (xs(point)[0], ys(point)[0]) == (pytest.approx(1.5), pytest.approx(91))
