"""The loop: what is averaged, what is sent, what is judged, and that it is the training it claims to be."""

import itertools
import math
from typing import Any

import pytest
import torch
from conftest import small_config
from methods import CENTRAL, EVERY_ALGORITHM, TSFLORA
from torch.nn.functional import cross_entropy

from tsflora.compression import Kind, Section, encode_labels, write_frame
from tsflora.data import ImageClassification
from tsflora.errors import FrameError, NumericsError
from tsflora.experiment import assemble, run
from tsflora.experiment import start as start_run
from tsflora.federation import Message, algorithms, participants_of
from tsflora.federation.device import Device
from tsflora.federation.training import minibatches, precision, turns
from tsflora.models import WholeModel, average, own_copy, read_adapter, set_adapter


def start(settings, method, **changes):
    return start_run(small_config(method, **changes), settings)


def train(run_, rounds=1):
    terms = run_.terms
    for round_ in range(1, rounds + 1):
        yield from run_.train_round(round_, participants_of(terms.training, terms.dataset, terms.seed, round_))


def spy_on_answers(monkeypatch, seen):
    """Every message that a device answers, with its answer."""
    original = Device.answer

    def spy(self, message):
        answer = original(self, message)
        seen.append((self, message, answer))
        return answer

    monkeypatch.setattr(Device, "answer", spy)


def assert_adapters_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance)


def one_device(**training):
    return {
        "training": {"rounds": 1, "n_devices": 1, "participants": 1, "batch_size": 10, **training},
        "partition": {"name": "iid"},
        "dataset": {"name": "digits", "train_size": 60, "test_size": 20},
    }


@pytest.mark.parametrize("optimizer", [{"lr": 0.05}, {"name": "adamw", "lr": 0.01}, {"lr": 0.05, "clip": 0.5}])
def test_uncompressed_sflora_is_the_training_of_the_unsplit_model(settings, optimizer):
    optimizer = dict(optimizer)
    clip_norm = optimizer.pop("clip", None)
    config = small_config({"algorithm": "sflora"}, **one_device(optimizer=optimizer, clip_norm=clip_norm))
    run_: Any = start_run(config, settings)
    losses = [step.loss for step in train(run_)]

    devices, side = assemble(config, settings)
    model = WholeModel(own_copy(side.front), own_copy(side.back))
    parts = [[p for p in part.parameters() if p.requires_grad] for part in (model.front, model.rest)]
    central = config.training.optimizer.build(itertools.chain(*parts))
    expected = []
    for rows in minibatches(devices.shards[0], config.training, "digits", config.seed, 1, 0):
        terms = side.terms
        inputs = terms.task.inputs(devices.data.images[rows], terms.spec, terms.where)
        with precision(terms.where, terms.training):
            outputs = model(inputs)
        loss = cross_entropy(outputs, torch.from_numpy(devices.data.labels[rows]))
        central.zero_grad()
        loss.backward()
        if clip_norm is not None:
            for part in parts:
                torch.nn.utils.clip_grad_norm_(part, clip_norm)
        central.step()
        expected.append(loss.item())

    assert losses == pytest.approx(expected, abs=1e-5)
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3)
    assert_adapters_close(run_.adapters.adapter, read_adapter(model.front), atol=1e-5, rtol=1e-4)
    assert_adapters_close(read_adapter(run_.server.back), read_adapter(model.rest), atol=1e-5, rtol=1e-4)


def test_all_tokens_at_32_bits_is_sflora(settings):
    plain = run(small_config({"algorithm": "sflora"}), settings)
    codec = {"tokens": {"name": "top_k_merge", "n_tokens": 50}, "quantizer": "float32"}
    same = run(small_config({"algorithm": "sflora", **codec}), settings)
    assert same.comparable()["history"] == plain.comparable()["history"]


@pytest.mark.parametrize(
    "change",
    [
        {"quantizer": {"name": "uniform", "bits": 4}},
        {"quantizer": {"name": "uniform", "bits": 8}},
        {"quantizer": "float16"},
        {"tokens": {"name": "top_k_merge", "n_tokens": 30}},
        {"tokens": {"name": "random", "n_tokens": 30}},
        {"tokens": {"name": "feature_norm", "n_tokens": 30}},
        {"gradient_quantizer": {"name": "uniform", "bits": 4}},
        {"adapter_quantizer": {"name": "uniform", "bits": 4}},
        {"adapter": "change"},
        {"gradient": "feedback"},
        {"codec": {"name": "tokens", "quantizer": "float16"}},
        {"tokens": {"name": "attention_mass", "mass": 0.7}},
    ],
    ids=str,
)
def test_what_the_config_names_is_in_the_path(settings, change):
    # A change since nothing is nothing: what it loses shows in the second round.
    one_round = {"training": {**small_config().dump()["training"], "rounds": 2 if "adapter" in change else 1}}
    plain = run(small_config({"algorithm": "sflora"}, **one_round), settings).final
    changed = run(small_config({"algorithm": "sflora", **change}, **one_round), settings).final
    both = (changed.uplink_bytes, changed.downlink_bytes)
    assert both != (plain.uplink_bytes, plain.downlink_bytes)
    assert changed.train_loss != plain.train_loss


def test_server_adapter_is_the_mean_of_the_devices_weighted_by_shard_size(settings, monkeypatch):
    seen: list[tuple[Device, Message, Message]] = []
    spy_on_answers(monkeypatch, seen)
    run_ = start(settings, TSFLORA, partition={"name": "dirichlet", "alpha": 0.3})
    list(train(run_))
    codec = run_.terms.plan.adapter
    initial = read_adapter(run_.side.front)
    pushed = {
        device.number: (codec.end(initial).collect(answer.frames["adapter"]), len(device.shard))
        for device, message, answer in seen
        if message.verb == "hand_in"
    }
    assert len(pushed) == 3
    assert len({size for _, size in pushed.values()}) > 1
    name = next(iter(run_.adapters.adapter))
    by_hand = sum(adapter[name] * size for adapter, size in pushed.values()) / sum(s for _, s in pushed.values())
    torch.testing.assert_close(run_.adapters.adapter[name], by_hand, atol=1e-6, rtol=1e-5)
    run_.evaluate()
    assert_adapters_close(read_adapter(run_.front), run_.adapters.adapter, atol=0, rtol=0)


def test_fed_lora_is_the_weighted_mean_of_whole_models(settings):
    skewed = {"partition": {"name": "dirichlet", "alpha": 0.3}}
    run_ = start(settings, {"algorithm": "fed_lora"}, **skewed)
    initial = run_.adapters.adapter
    terms = run_.terms
    participants = participants_of(terms.training, terms.dataset, terms.seed, 1)
    trained, sizes = [], []
    for number in participants:
        alone = start(settings, {"algorithm": "local_lora"}, **skewed)
        list(alone.train_round(1, [number]))
        trained.append(alone.fleet.device(number).adapter)
        sizes.append(float(len(alone.fleet.device(number).shard)))
    list(train(run_))
    assert_adapters_close(run_.adapters.adapter, average(trained, sizes), atol=1e-6, rtol=1e-5)
    assert not all(torch.equal(run_.adapters.adapter[name], initial[name]) for name in initial)


def test_local_lora_is_judged_by_the_mean_over_all_devices(settings):
    run_ = start(settings, {"algorithm": "local_lora"})
    list(train(run_))
    accuracy, _ = run_.evaluate()
    assert len(run_.scores) == run_.terms.training.n_devices
    trained = {name.split(".")[0] for name in run_.fleet.state()}
    assert len(trained) == run_.terms.training.participants
    assert accuracy == pytest.approx(sum(on for on, _ in run_.scores.values()) / 4)
    assert len(set(run_.scores.values())) > 1


def test_relay_ends_with_the_last_devices_adapter_and_passes_it_on(settings, monkeypatch):
    seen: list[tuple[Device, Message, Message]] = []
    spy_on_answers(monkeypatch, seen)
    run_ = start(settings, {"algorithm": "split_lora"})
    list(train(run_))
    starts = [message.frames["adapter"] for _, message, _ in seen if message.verb == "begin"]
    ends = [answer.frames["adapter"] for _, message, answer in seen if message.verb == "hand_in"]
    assert len(starts) == len(ends) == 3
    assert len(set(starts)) == 3
    assert starts[1:] == ends[:-1]
    last = run_.terms.plan.adapter.end(read_adapter(run_.side.front)).collect(ends[-1])
    assert_adapters_close(run_.adapters.adapter, last, atol=0, rtol=0)


def test_sfl_v1_averages_server_copies_that_start_alike(settings):
    run_ = start(settings, {"algorithm": {"name": "sflora", "server": "averaged"}})
    before = read_adapter(run_.server.back)
    steps = train(run_)
    for _ in range(6):
        next(steps)
    copies = {n: read_adapter(back) for n, (back, _, _) in run_.server._copies.items()}
    assert len(copies) == 3
    assert_adapters_close(read_adapter(run_.server.back), before, atol=0, rtol=0)
    name = "vit.head.weight"
    tensors = [copy[name] for copy in copies.values()]
    assert not torch.equal(tensors[0], tensors[1])
    for _ in steps:
        pass
    assert not torch.equal(read_adapter(run_.server.back)[name], before[name])
    assert not run_.server._copies


def test_interleaved_and_sequential_orders_differ_in_order_only(settings):
    numbers = {}
    for order in ("interleaved", "sequential"):
        run_ = start(settings, {"algorithm": {"name": "sflora", "order": order}})
        numbers[order] = [step.device for step in train(run_)]
    assert sorted(numbers["interleaved"]) == sorted(numbers["sequential"])
    assert all(len(set(numbers["interleaved"][i : i + 3])) == 3 for i in (0, 3, 6))
    assert all(len(set(numbers["sequential"][i : i + 3])) == 1 for i in (0, 3, 6))


def test_every_method_sees_the_same_shards_and_participants(settings):
    worlds = [assemble(small_config(method), settings)[0] for method in (TSFLORA, {"algorithm": "local_lora"})]
    for first, second in zip(worlds[0].shards, worlds[1].shards, strict=True):
        assert first.tolist() == second.tolist()
    records = [run(small_config(method), settings) for method in (TSFLORA, {"algorithm": "fed_lora"})]
    assert [r.participants for r in records[0].history] == [r.participants for r in records[1].history]


@pytest.mark.parametrize(("bits", "n_tokens"), [(8, 30), (4, 40), (3, 7), (16, 50)])
def test_recorded_bytes_are_the_formula(settings, bits, n_tokens):
    method = {
        "algorithm": "sflora",
        "tokens": {"name": "top_k_merge", "n_tokens": n_tokens},
        "quantizer": {"name": "uniform", "bits": bits},
    }
    record = run(small_config(method, partition={"name": "iid", "min_samples": 21, "max_samples": 29}), settings)
    assert record.geometry is not None
    dim, entries = record.geometry.dim, record.geometry.device_adapter_entries
    for round_ in record.history:
        batches = [
            min(10, record.shard_sizes[n] - start)
            for n in round_.participants
            for start in range(0, record.shard_sizes[n], 10)
        ]
        assert round_.uplink_bytes["activations"] == sum(math.ceil(b * n_tokens * dim * bits / 8) for b in batches)
        assert round_.downlink_bytes["gradients"] == sum(b * n_tokens * dim * 4 for b in batches)
        assert round_.uplink_bytes["labels"] == sum(math.ceil(b * 4 / 8) for b in batches)
        assert round_.uplink_bytes["adapters"] == round_.downlink_bytes["adapters"] == 3 * 4 * entries
        assert 0 < round_.uplink_bytes["headers"] < 200 * len(batches) + 3 * 1000


def test_local_lora_sends_nothing_and_fed_lora_only_adapters(settings):
    local = run(small_config({"algorithm": "local_lora"}), settings).final
    assert local.uplink_bytes == local.downlink_bytes == {}
    federated = run(small_config({"algorithm": "fed_lora"}), settings)
    assert federated.geometry is not None
    entries = federated.geometry.device_adapter_entries + federated.geometry.server_adapter_entries
    assert federated.final.uplink_bytes["adapters"] == 3 * 4 * entries
    assert federated.final.uplink_bytes.keys() == {"adapters", "headers"}


@pytest.mark.parametrize("method", [*EVERY_ALGORITHM.values(), CENTRAL["central_raw"]], ids=str)
def test_a_diverging_run_stops_and_names_what_broke(settings, method):
    training = {**small_config().dump()["training"], "optimizer": {"lr": 1e30}}
    with pytest.raises(NumericsError, match=r"NaN or infinity in .*\(?round \d|round \d.*NaN or infinity") as caught:
        run(small_config(method, training=training), settings)
    assert "\n" not in str(caught.value)


def frames(n_tokens=50, dim=64, batch=4, labels=4):
    tokens = torch.full((batch, n_tokens, dim), 0.5)
    return {
        "tokens": write_frame(Kind.ACTIVATIONS, [Section.float32(tokens.numpy())]),
        "labels": encode_labels(torch.arange(labels), 10),
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"dim": 32}, r"allowed: \(batch, tokens, 64\)"),
        ({"labels": 3}, "with 3 labels"),
    ],
)
def test_server_refuses_frames_that_do_not_fit(settings, changes, line):
    run_ = start(settings, {"algorithm": "sflora"})
    before = read_adapter(run_.server.back)
    with pytest.raises(FrameError, match=line):
        run_.server.step(2, 24, run_.terms.plan, frames(**changes))
    assert_adapters_close(read_adapter(run_.server.back), before, atol=0, rtol=0)


def test_the_device_that_holds_nan_is_named_before_it_sends(settings):
    run_ = start(settings, {"algorithm": "sflora"})
    device = run_.fleet.device(2)
    (participant,) = run_.begin(3, {2: run_.terms.plan}, run_.adapters.publish)
    sent = participant.link.traffic.uplink.total()
    with torch.no_grad():
        next(p for p in device.module.parameters() if p.requires_grad).fill_(float("nan"))
    with pytest.raises(NumericsError, match=r"the adapter's .*lora_A.* \(round 3, device 2\)"):
        participant.ask(Message("hand_in"))
    with pytest.raises(NumericsError, match=r"the activations \(round 3, device 2\)"):
        participant.tokens()
    assert participant.link.traffic.uplink.total() == sent == 0


def test_damaged_frame_changes_nothing(settings):
    run_ = start(settings, {"algorithm": "sflora"})
    before = read_adapter(run_.server.back)
    sent = frames()
    broken = bytearray(sent["tokens"])
    broken[len(broken) // 2] ^= 1
    with pytest.raises(FrameError, match="checksum"):
        run_.server.step(0, 24, run_.terms.plan, {**sent, "tokens": bytes(broken)})
    with pytest.raises(FrameError, match="device 0 sent no 'labels'"):
        run_.server.step(0, 24, run_.terms.plan, {"tokens": sent["tokens"]})
    with pytest.raises(FrameError):
        run_.adapters.collect(0, sent["tokens"], 24)
    assert_adapters_close(read_adapter(run_.server.back), before, atol=0, rtol=0)


def test_bf16_trains_close_to_fp32(settings):
    training = small_config().dump()["training"]
    full = run(small_config(TSFLORA), settings)
    half = run(small_config(TSFLORA, training={**training, "precision": "bf16"}), settings)
    assert half.final.train_loss == pytest.approx(full.final.train_loss, rel=0.05)
    assert half.final.train_loss != full.final.train_loss


@pytest.mark.parametrize(
    "codec",
    [{"quantizer": {"name": "uniform", "bits": 1}}, {"tokens": {"name": "top_k_merge", "n_tokens": 2}}],
    ids=str,
)
def test_the_judged_model_is_judged_with_its_compression_on(settings, codec):
    """Judged with the codec and without: the two differ, and `off` is the plain model."""
    run_ = start(settings, {"algorithm": "sflora", **codec}, backbone={"weights": "bundled"})
    list(train(run_))
    compressed, plain = run_.evaluate()
    test, terms = run_.side.test, run_.terms
    outputs = WholeModel(run_.front, run_.server.back)(terms.task.inputs(test.images, terms.spec, terms.where))
    assert plain == pytest.approx(float((outputs.argmax(-1) == torch.from_numpy(test.labels)).float().mean()))
    assert compressed != plain


@pytest.mark.parametrize("algorithm", ["fed_lora", "local_lora"])
def test_whole_models_are_judged_with_the_adapter_that_was_trained(settings, algorithm):
    run_ = start(settings, {"algorithm": algorithm}, backbone={"weights": "bundled"})
    before, _ = run_.evaluate()
    list(train(run_, rounds=2))
    set_adapter(run_.model, {name: torch.zeros_like(t) for name, t in read_adapter(run_.model).items()})
    assert run_.evaluate()[0] > before + 0.1


def test_a_device_alone_goes_on_from_its_own_adapter(settings):
    run_ = start(settings, {"algorithm": "local_lora"})
    list(run_.train_round(1, [0]))
    after_one = run_.fleet.device(0).adapter
    longer = start(settings, {"algorithm": "local_lora"})
    longer.fleet.device(0).adapter = after_one
    list(longer.train_round(2, [0]))
    list(run_.train_round(2, [0]))
    assert_adapters_close(run_.fleet.device(0).adapter, longer.fleet.device(0).adapter, atol=0, rtol=0)
    assert not torch.equal(after_one["rest.vit.head.bias"], run_.fleet.device(0).adapter["rest.vit.head.bias"])
    assert run_.terms.training.n_devices == 4


def test_server_momentum_outlives_the_round(settings):
    run_ = start(settings, {"algorithm": "sflora"})
    list(train(run_))
    terms = run_.terms
    buffers = [state["momentum_buffer"].clone() for state in run_.server.optimizer.state.values()]
    steps = run_.train_round(2, participants_of(terms.training, terms.dataset, terms.seed, 2))
    assert any(buffer.abs().sum() > 0 for buffer in buffers)
    optimizer = run_.server.optimizer
    next(steps)
    assert run_.server.optimizer is optimizer
    # v <- 0.9 v + g: had the buffer been cleared, it would be the new gradient alone.
    parameter = run_.server.back.vit.head.bias
    position = [p is parameter for p in optimizer.param_groups[0]["params"]].index(True)
    expected = 0.9 * buffers[position] + parameter.grad
    torch.testing.assert_close(optimizer.state[parameter]["momentum_buffer"], expected)


def test_interleaved_order_is_drawn_afresh_for_every_turn():
    seen = list(turns([6, 6, 6, 3], "interleaved", "digits", 0, 1))
    early = {tuple(seen[i : i + 4]) for i in range(0, 12, 4)}
    assert all(sorted(turn) == [0, 1, 2, 3] for turn in early)
    assert len(early) > 1
    assert all(sorted(seen[i : i + 3]) == [0, 1, 2] for i in range(12, 21, 3)), "who is done drops out"
    assert seen != list(turns([6, 6, 6, 3], "interleaved", "digits", 0, 2))


def test_sequential_order_is_one_after_the_other():
    seen = list(turns([2, 3, 1], "sequential", "digits", 0, 1))
    assert sorted(seen) == [0, 0, 1, 1, 1, 2]
    assert sum(a != b for a, b in itertools.pairwise(seen)) == 2


def test_local_epochs_and_augmentation_are_in_the_path(settings):
    training = {**small_config().dump()["training"], "rounds": 1}
    once = run(small_config({"algorithm": "fed_lora"}, training=training), settings).final
    twice = run(small_config({"algorithm": "fed_lora"}, training={**training, "local_epochs": 2}), settings).final
    varied = run(small_config({"algorithm": "fed_lora"}, training=training, augment={}), settings).final
    assert twice.n_samples == 2 * once.n_samples
    assert len({once.train_loss, twice.train_loss, varied.train_loss}) == 3


def test_every_method_trains_on_the_same_images_in_the_same_device_order(settings, monkeypatch):
    seen: list[list[bytes]] = []
    original = ImageClassification.inputs

    def spy(self, samples, spec, device, augment=None):
        if torch.is_grad_enabled():
            seen[-1].append(samples.tobytes())
        return original(self, samples, spec, device, augment)

    monkeypatch.setattr(ImageClassification, "inputs", spy)
    for method in [*EVERY_ALGORITHM.values(), CENTRAL["central_raw"]]:
        seen.append([])
        list(train(start(settings, method)))
    assert len(seen[0]) == 9
    assert all(sorted(batches) == sorted(seen[0]) for batches in seen)


@pytest.mark.parametrize("name", algorithms.classes())
def test_every_registered_algorithm_trains_judges_and_resumes(settings, name):
    run_ = start(settings, {"algorithm": name})
    steps = list(train(run_))
    assert sum(step.n_samples for step in steps) == 72
    assert all(math.isfinite(step.loss) for step in steps)
    on, off = run_.evaluate()
    assert 0 <= on <= 1
    assert 0 <= off <= 1
    again = start(settings, {"algorithm": name})
    again.restore(run_.state())
    assert again.evaluate() == (on, off)
    assert again.state().keys() == run_.state().keys()
