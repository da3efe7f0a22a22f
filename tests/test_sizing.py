"""Sizing: FLOPs, passes and bytes by hand and against real runs, and a rate that is measured on the real loop."""

from dataclasses import replace

import pytest
from conftest import small_config
from hypothesis import given
from hypothesis import strategies as st
from methods import Method
from test_study import study_values

from tsflora.analysis.costs import compute_per_image, plan_of
from tsflora.analysis.sizing.hours import (
    DatasetShape,
    Rate,
    RunSize,
    checkpoint_bytes,
    dataset_shape,
    deployment_of,
    evaluation_flop,
    hours_frame,
    images_per_round,
    record_bytes,
    seconds,
    size_run,
    size_study,
)
from tsflora.analysis.sizing.hours import test_set_passes as passes  # its name would make pytest collect it
from tsflora.analysis.sizing.throughput import measure, measure_study
from tsflora.data import data_sources
from tsflora.errors import ConfigError
from tsflora.experiment import run, start
from tsflora.federation import TrainingConfig, participants_of
from tsflora.settings import Settings
from tsflora.study import StudyConfig

SHAPE = DatasetShape(n_train=160, n_test=40, n_classes=10, side=28)
UNIFORM = {"name": "uniform", "bits": 8}
FEW = {"name": "top_k_merge", "n_tokens": 20}
METHODS: dict[str, Method] = {
    "local": {"algorithm": "local_lora"},
    "federated": {"algorithm": "fed_lora"},
    "relay": {"algorithm": "split_lora"},
    "periodic": {"algorithm": {"name": "split_lora", "mode": "periodic", "average_every": 2}},
    "split": {"algorithm": "sflora"},
    "averaged": {"algorithm": {"name": "sflora", "server": "averaged"}},
    "compressed": {"algorithm": "sflora", "tokens": FEW, "quantizer": UNIFORM},
    "frozen": {"algorithm": {"name": "sflora", "frozen": True}, "tokens": FEW},
    "changes": {"algorithm": "sflora", "adapter": "change"},
    "forgetful changes": {"algorithm": "fed_lora", "adapter": {"name": "change", "feedback": False}},
    "feedback": {"algorithm": "sflora", "gradient": "feedback"},
    "central": {"algorithm": "central"},
}
OPTIMIZERS = {"sgd": {"lr": 0.05}, "plain": {"lr": 0.05, "momentum": 0.0}, "adamw": {"name": "adamw", "lr": 0.001}}


def cell(method="split", **changes):
    return small_config(METHODS[method], **changes)


def training(**changes):
    return {**small_config().training.model_dump(), **changes}


def size(method="a", train_flop=0.0, evaluate_flop=0, sweep=None, rate_of=None):
    return RunSize("vit", "digits", method, sweep, "iid", 0, rate_of or method, train_flop, evaluate_flop, 1000, 10)


def test_published_sets_need_no_files_and_others_are_asked(tmp_path):
    tiny = data_sources.build({"name": "tiny_imagenet", "test_size": 1000, "download": False})
    assert dataset_shape(tiny, tmp_path) == DatasetShape(100_000, 1000, 200, 64)
    assert dataset_shape(data_sources.build("cifar100")) == DatasetShape(50_000, 10_000, 100, 32)
    digits = data_sources.build({"name": "digits", "train_size": 160, "test_size": 40})
    assert dataset_shape(digits) == SHAPE


def test_images_of_a_round_by_hand():
    assert images_per_round(cell(), 160) == 3 * 24  # participants, 24 images each
    drawn = cell(partition={"name": "iid", "min_samples": 20, "max_samples": 30}, training=training(local_epochs=2))
    assert images_per_round(drawn, 160) == 3 * 2 * 25
    assert images_per_round(cell(partition="iid"), 160) == 3 * 160 / 4


def test_evaluation_by_hand():
    forward = {name: compute_per_image(deployment_of(cell(name), 10)) for name in METHODS}
    whole = forward["local"].device_forward_macs
    assert evaluation_flop(deployment_of(cell("local"), 10)) == 2 * whole
    assert evaluation_flop(deployment_of(cell("federated"), 10)) == 2 * whole
    assert evaluation_flop(deployment_of(cell("split"), 10)) == 2 * whole  # lossless: judged once
    assert evaluation_flop(deployment_of(cell("central"), 10)) == 2 * 2 * whole
    few, full = forward["compressed"], forward["split"]
    device, twice = few.device_forward_macs, few.server_forward_macs + full.server_forward_macs
    assert evaluation_flop(deployment_of(cell("compressed"), 10)) == 2 * (device + twice)
    frozen = forward["frozen"]
    assert evaluation_flop(deployment_of(cell("frozen"), 10)) == 2 * (device + twice)
    assert (frozen.device_backward_macs, frozen.server_forward_macs) == (0, few.server_forward_macs)
    quantised = replace(deployment_of(cell("compressed"), 10), plan=plan_of("sflora", quantizer=UNIFORM))
    assert evaluation_flop(quantised) == 2 * (whole + full.server_forward_macs)


def test_passes_by_hand():
    every_second = TrainingConfig(rounds=5, n_devices=4, participants=4, evaluate_every=2)
    assert passes(every_second, plan_of("sflora"), "digits", 0) == 3  # rounds 2, 4, and the last
    assert (
        passes(every_second, plan_of("local_lora"), "digits", 0) == 3 * 4
    )  # everybody trains, so the untrained model is nobody's
    one = TrainingConfig(rounds=3, n_devices=10, participants=1)
    assert passes(one, plan_of("local_lora"), "digits", 0) == 1 + 1 + 1 + 1  # and once the untrained


@given(st.integers(1, 8), st.integers(1, 6), st.integers(1, 6), st.integers(1, 9), st.integers(0, 3))
def test_local_passes_are_those_of_a_run(rounds, n_devices, participants, every, seed):
    config = TrainingConfig(
        rounds=rounds, n_devices=n_devices, participants=min(participants, n_devices), evaluate_every=every
    )
    # LocalRun.evaluate told over again: a device is judged when its accuracy is not known.
    known: set[int] = set()
    trained: set[int] = set()
    untrained_known, judged = False, 0
    for round_ in range(1, rounds + 1):
        chosen = set(participants_of(config, "digits", seed, round_))
        trained |= chosen
        known -= chosen
        if config.evaluates(round_):
            for device in set(range(n_devices)) - known:
                judged += device in trained or not untrained_known
                untrained_known |= device not in trained
                known.add(device)
    assert passes(config, plan_of("local_lora"), "digits", seed) == judged


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [(method, "sgd") for method in METHODS]
    + [(method, name) for method in ("split", "averaged", "frozen", "central") for name in ("plain", "adamw")],
)
def test_checkpoints_are_as_large_as_those_of_real_runs(settings, method, optimizer):
    rounds = training(rounds=2, optimizer=OPTIMIZERS[optimizer], participants=2)
    planned = cell(
        method,
        training=rounds,
        partition={"name": "iid", "min_samples": 4, "max_samples": 4},
        backbone={"weights": "random"},
    )
    real = start(planned, settings)
    for round_ in (1, 2):
        for _ in real.train_round(round_, participants_of(planned.training, "digits", planned.seed, round_)):
            pass
    # Accuracies of all four devices, two float64 each, come with the evaluation that is left out here.
    not_judged = 4 * 16 if method == "local" else 0
    written = sum(tensor.numel() * tensor.element_size() for tensor in real.state().values())
    assert checkpoint_bytes(planned, deployment_of(planned, 10)) == written + not_judged


@pytest.mark.parametrize("method", ["federated", "compressed"])
def test_records_are_about_as_large_as_real_ones(settings, tmp_path, method):
    record = run(cell(method, training=training(rounds=1, batch_size=12)), settings)
    for rounds in (1, 50):  # as long as it may get
        longer = record.model_copy(update={"history": record.history * rounds})
        longer.write(tmp_path / "record.json")
        config = TrainingConfig(rounds=rounds, n_devices=4, participants=3)
        assert record_bytes(config) == pytest.approx((tmp_path / "record.json").stat().st_size, rel=0.2)


def test_a_run_by_hand():
    planned = cell("compressed")
    deployment = deployment_of(planned, 10)
    sized = size_run(planned, SHAPE)
    assert sized.train_flop == 2 * 72 * compute_per_image(deployment).total_flops
    assert sized.evaluate_flop == 2 * 40 * evaluation_flop(deployment)
    assert (sized.method, sized.rate_of, sized.sweep) == ("under_test", "under_test", None)


def test_hours_by_hand():
    rates = {"a": Rate(1e9, 2e9), "b": Rate(4e9, 1e9)}
    assert seconds(size("a", 8e9, 8_000_000_000), rates) == (8, 4)
    assert seconds(size("b", 8e9, 8_000_000_000), rates) == (2, 8)
    assert seconds(size("c", 8e9, 8_000_000_000), rates) == (8, 8)  # the slowest that is known
    assert seconds(size("p", 8e9, 8_000_000_000, "grid", rate_of="b"), rates) == (2, 8)
    sizes = [size("b", 3600 * 4e9, 3600 * 10**9), size("a", 3600 * 1e9), size("b", 3600 * 4e9)]
    sizes += [size(f"grid-{i}", 3600 * 1e9, sweep="grid", rate_of="a") for i in range(3)]
    frame = hours_frame(sizes, rates, workers=2)
    assert list(frame.index) == ["b", "a", "sweep grid"]
    assert frame.runs.tolist() == [2, 1, 3]
    assert frame.training_h.tolist() == [1, 0.5, 1.5]
    assert frame.evaluation_h.tolist() == [0.5, 0, 0]
    assert frame.total_h.tolist() == [1.5, 0.5, 1.5]
    assert frame.checkpoint_bytes.tolist() == [2000, 1000, 3000]
    assert frame.record_bytes.tolist() == [20, 10, 30]


def test_a_study_is_all_of_its_runs_and_sweeps_go_at_their_base_s_rate():
    sweep = {"base": "sflora_8bit", "vary": {"quantizer.bits": [2, 8]}, "seeds": [0], "partitions": ["iid"]}
    study = StudyConfig.parse(study_values(sweeps={"bits": sweep}))
    sizes = size_study(study)
    assert [(size.method, size.sweep, size.rate_of) for size in sizes[::4]] == [
        ("fed_lora", None, "fed_lora"),
        ("sflora_8bit", None, "sflora_8bit"),
        ("bits-bits_2", "bits", "sflora_8bit"),
    ]
    assert len(sizes) == 2 * 2 * 2 + 1


@pytest.mark.parametrize("method", ["local", "compressed", "frozen", "central"])
def test_a_rate_is_measured_on_the_real_loop(method):
    planned = cell(method, training=training(batch_size=2, optimizer={"lr": 100.0}))  # would end in NaN if it were used
    rate = measure(planned, SHAPE, 2, Settings(device="cpu", threads=1))
    assert 1e6 < rate.train_flop_per_s < 1e14
    assert 1e6 < rate.evaluate_flop_per_s < 1e14


def test_what_depends_on_the_data_is_left_out_aloud(caplog):
    ragged = {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.5}}
    values = study_values()
    methods = {"ragged": ragged, "plain": {"algorithm": "sflora"}}
    study = StudyConfig.parse({**values, "methods": methods})
    assert {size.method for size in size_study(study)} == {"plain"}
    assert "ragged, iid: the number of tokens depends on the data; it is measured in a run's record" in caplog.text
    caplog.clear()
    assert measure_study(study, 1, Settings(device="cpu"), ["ragged"]) == {}
    assert "left out: ragged: the number of tokens depends on the data" in caplog.text


def test_no_steps_is_an_error():
    with pytest.raises(ConfigError, match="n_steps: given 0; allowed: 1 or more"):
        measure(cell(), SHAPE, 0, Settings(device="cpu"))
