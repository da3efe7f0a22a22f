"""Partitions: disjoint, nobody empty, sizes in bounds, skew where skew is meant, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsflora.data import label_counts, partitions
from tsflora.errors import ConfigError

LABELS = np.random.default_rng(7).permutation(np.repeat(np.arange(10), 100))


def skew(counts: np.ndarray) -> float:
    """Mean total-variation distance between the devices' label distributions and that of all images."""
    overall = counts.sum(axis=0) / counts.sum()
    return float((np.abs(counts / counts.sum(axis=1, keepdims=True) - overall).sum(axis=1) / 2).mean())


any_partition = st.one_of(
    st.just({"name": "iid"}),
    st.sampled_from([1e-8, 0.01, 0.1, 0.5, 1.0, 1e6]).map(lambda alpha: {"name": "dirichlet", "alpha": alpha}),
    st.integers(1, 4).map(lambda number: {"name": "shards", "shards_per_device": number}),
)


@st.composite
def problems(draw):
    labels = np.array(draw(st.lists(st.integers(0, 5), min_size=1, max_size=80)))
    options = draw(any_partition)
    n_devices = draw(st.integers(1, max(1, len(labels) // options.get("shards_per_device", 1))))
    if n_devices * options.get("shards_per_device", 1) > len(labels):
        options = {"name": "iid"}
    return labels, options, n_devices, draw(st.integers(0, 5))


@settings(deadline=None)
@given(problems())
def test_without_bounds_every_image_has_exactly_one_owner(problem):
    labels, options, n_devices, seed = problem
    shards = partitions.build(options).split(labels, n_devices, seed, "d")
    assert len(shards) == n_devices
    assert all(len(shard) for shard in shards)
    assert sorted(np.concatenate(shards)) == list(range(len(labels)))
    assert all(np.all(np.diff(shard) > 0) for shard in shards)


@settings(deadline=None)
@given(problems(), st.data())
def test_bounds_hold_and_padding_is_from_a_devices_own_images(problem, data):
    labels, options, n_devices, seed = problem
    low = data.draw(st.integers(1, len(labels)))
    high = data.draw(st.integers(low, len(labels)))
    own = partitions.build(options).split(labels, n_devices, seed, "d")
    bounded = partitions.build({**options, "min_samples": low, "max_samples": high})
    shards = bounded.split(labels, n_devices, seed, "d")
    for shard, before in zip(shards, own, strict=True):
        assert low <= len(shard) <= high
        assert set(shard) <= set(before)
        if len(shard) <= len(before):
            assert len(set(shard)) == len(shard)
        else:
            assert set(shard) == set(before)


@settings(deadline=None)
@given(problems())
def test_the_same_seed_gives_the_same_shards(problem):
    labels, options, n_devices, seed = problem
    bounded = {**options, "min_samples": 1, "max_samples": len(labels)}
    first, second = (partitions.build(bounded).split(labels, n_devices, seed, "d") for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
def test_seed_and_dataset_change_the_shards(name):
    partition = partitions.build(name)
    base = partition.split(LABELS, 10, 0, "d")
    for other in (partition.split(LABELS, 10, 1, "d"), partition.split(LABELS, 10, 0, "e")):
        assert any(len(one) != len(two) or np.any(one != two) for one, two in zip(base, other, strict=True))


def test_sizes_fill_the_range_and_do_not_depend_on_the_rule():
    bounds = {"min_samples": 5, "max_samples": 8}
    sizes = [
        [len(shard) for shard in partitions.build({"name": name, **bounds}).split(LABELS, 100, 0, "d")]
        for name in ("iid", "dirichlet", "shards")
    ]
    assert sizes[0] == sizes[1] == sizes[2]
    assert set(sizes[0]) == {5, 6, 7, 8}
    fixed = partitions.build({"name": "dirichlet", "min_samples": 40, "max_samples": 40}).split(LABELS, 20, 0, "d")
    assert [len(shard) for shard in fixed] == [40] * 20


def test_dirichlet_skew_grows_as_alpha_falls():
    def mean_skew(options: dict) -> float:
        partition = partitions.build(options)
        return float(np.mean([skew(label_counts(LABELS, partition.split(LABELS, 20, s, "d"), 10)) for s in range(3)]))

    iid = mean_skew({"name": "iid"})
    values = [mean_skew({"name": "dirichlet", "alpha": alpha}) for alpha in (1e4, 1.0, 0.5, 0.1)]
    assert iid < 0.25
    assert values == sorted(values)
    assert values[0] < iid  # equal proportions of each class: flatter than dealing at random
    assert values[3] > 0.6 > values[2] > 2 * iid


def test_dirichlet_at_vanishing_alpha_serves_all_devices_with_pure_labels():
    shards = partitions.build({"name": "dirichlet", "alpha": 1e-6}).split(LABELS, 50, 0, "d")
    counts = label_counts(LABELS, shards, 10)
    # 10 classes cannot each have one of 50 owners: the others get halves of the largest, not single images.
    assert counts.sum(axis=1).min() >= 5
    assert np.median((counts > 0).sum(axis=1)) == 1


def test_shards_give_each_device_few_labels():
    counts = label_counts(LABELS, partitions.build("shards").split(LABELS, 50, 0, "d"), 10)
    assert (counts.sum(axis=1) == 20).all()
    assert (counts > 0).sum(axis=1).max() == 2
    one = partitions.build({"name": "shards", "shards_per_device": 1}).split(LABELS, 10, 0, "d")
    assert (label_counts(LABELS, one, 10) > 0).sum(axis=1).tolist() == [1] * 10


def test_label_counts_by_hand():
    labels = np.array([0, 2, 2, 1])
    counts = label_counts(labels, [np.array([0, 1, 1]), np.array([3])], 4)
    np.testing.assert_array_equal(counts, [[1, 0, 2, 0], [0, 1, 0, 0]])


@pytest.mark.parametrize("name", ["iid", "dirichlet", "shards"])
@pytest.mark.parametrize("n_devices", [0, 11, 10**12])
def test_wrong_numbers_of_devices_are_refused(name, n_devices):
    with pytest.raises(ConfigError, match=f"{n_devices} devices for 10 images; allowed: 1 to 10"):
        partitions.build(name).split(np.arange(10), n_devices, 0, "d")


def test_more_pieces_than_images_are_refused():
    with pytest.raises(ConfigError, match="6 devices x 2 shards is 12, more than the 10 images"):
        partitions.build("shards").split(np.arange(10), 6, 0, "d")
    with pytest.raises(ConfigError, match="more than the 10 images"):
        partitions.build({"name": "shards", "shards_per_device": 10**12}).split(np.arange(10), 2, 0, "d")


@pytest.mark.parametrize("most", [11, 10**12, 10**30])
def test_more_images_on_a_device_than_there_are_is_refused(most):
    partition = partitions.build({"name": "iid", "min_samples": 1, "max_samples": most})
    with pytest.raises(ConfigError, match=f"max_samples: {most} images on a device, where d has 10 in all; .* 1 to 10"):
        partition.split(np.arange(10), 2, 0, "d")
    sizes = partitions.build({"name": "iid", "min_samples": 10, "max_samples": 10}).split(np.arange(10), 2, 0, "d")
    assert [len(shard) for shard in sizes] == [10, 10]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "iid", "min_samples": 3}, "together"),
        ({"name": "iid", "max_samples": 3}, "together"),
        ({"name": "iid", "min_samples": 4, "max_samples": 3}, "4 is more than max_samples 3"),
        ({"name": "iid", "min_samples": 0, "max_samples": 3}, "min_samples"),
        ({"name": "dirichlet", "alpha": 0}, "alpha"),
        ({"name": "dirichlet", "alpha": float("inf")}, "alpha"),
        ({"name": "shards", "shards_per_device": 0}, "shards_per_device"),
        ({"name": "dirichlt"}, "did you mean 'dirichlet'"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        partitions.build(options)
