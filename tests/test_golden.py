"""A golden training log: the loop may get faster or simpler, but not different, without somebody saying so."""

import pytest
from conftest import small_config
from test_federation import EVERY_ALGORITHM

from tsflora.experiment import run

GOLDEN = {
    "local_lora": (EVERY_ALGORITHM["local_lora"], [2.06858, 0.4303], [0.4375, 0.55], 0),
    "fed_lora": (EVERY_ALGORITHM["fed_lora"], [2.06858, 0.58877], [0.725, 0.85], 1068960),
    "split_lora": (EVERY_ALGORITHM["split_lora"], [1.4651, 0.61838], [0.825, 0.825], 4033776),
    "sflora": (EVERY_ALGORITHM["sflora"], [1.32654, 0.22725], [0.8, 0.9], 4033776),
    "tsflora": (EVERY_ALGORITHM["tsflora"], [1.64869, 0.52762], [0.775, 0.75], 1730136),
}
"""Method, training loss and accuracy of each round, and all bytes."""


@pytest.mark.parametrize("name", GOLDEN)
def test_training_is_what_it_was(settings, name):
    method, losses, accuracies, total_bytes = GOLDEN[name]
    record = run(small_config(method, backbone={"weights": "bundled"}), settings)
    assert [r.train_loss for r in record.history] == pytest.approx(losses, rel=2e-3)
    # One of the 40 test images may fall to the other side on another processor.
    assert [r.accuracy for r in record.history] == pytest.approx(accuracies, abs=0.026)
    found = sum(sum(r.uplink_bytes.values()) + sum(r.downlink_bytes.values()) for r in record.history)
    assert found == total_bytes
