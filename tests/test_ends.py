"""What talks and what plans, beyond the contract of every component: codecs of gradients and adapters, schedulers."""

import numpy as np
import pytest
import torch
from conftest import small_config
from methods import TSFLORA

from tsflora.analysis.runs import plans_frame
from tsflora.analysis.tables import plans_table
from tsflora.compression import adapter_codecs, gradient_codecs
from tsflora.conformance.ends import adapter
from tsflora.data import tasks
from tsflora.errors import ConfigError
from tsflora.experiment import assemble, run
from tsflora.federation import schedulers
from tsflora.seeding import torch_generator


def test_error_feedback_repays_what_gradients_lost():
    codec = gradient_codecs.build({"name": "feedback", "quantizer": {"name": "uniform", "bits": 2}})
    plain = gradient_codecs.build(
        {"name": "values", "quantizer": {"name": "uniform", "bits": 2, "rounding": "nearest"}}
    )
    codec = codec.model_copy(update={"quantizer": plain.quantizer})
    gradient = torch.randn(4, 3, 5, generator=torch_generator("g"))
    totals = []
    for one in (codec, plain):
        sender, receiver = one.sender(), one.receiver()
        sent = [receiver.receive(sender.send(gradient, 0, torch_generator(i)), (4, 3, 5)) for i in range(50)]
        totals.append((sum(sent) / 50 - gradient).abs().max())
    assert totals[0] < 0.1 * totals[1]


def test_changes_keep_both_ends_together_and_lose_less_than_values():
    """Eight rounds of small changes at 3 bits: a receiver of changes ends nearer to the server than one of values."""
    start = adapter("start")
    quantizer = {"name": "uniform", "bits": 3, "range": "token"}
    errors = {}
    for name in ("values", "change"):
        codec = adapter_codecs.build({"name": name, "quantizer": quantizer})
        server, device = codec.end(start), codec.end(start)
        exact = {key: value.clone() for key, value in start.items()}
        for round_ in range(8):
            exact = {key: value + 0.01 * adapter("news", round_)[key] for key, value in exact.items()}
            adopted = device.adopt(server.publish(exact, torch_generator("down", round_)))
        errors[name] = max(float((adopted[key] - exact[key]).abs().max()) for key in exact)
    assert errors["change"] < 0.2 * errors["values"]


def test_what_a_device_lost_upward_is_sent_later():
    codec = adapter_codecs.build({"name": "change", "quantizer": {"name": "uniform", "bits": 2, "range": "token"}})
    start = adapter("start")
    device, server = codec.end(start), codec.end(start)
    wanted = {key: value + 0.1 * adapter("step")[key] for key, value in start.items()}
    for forgetful in (False, True):
        total = {key: torch.zeros_like(value) for key, value in start.items()}
        for round_ in range(60):
            if forgetful:
                device.lost = {}
            sent = server.collect(device.submit(wanted, torch_generator("up", round_)))
            total = {key: total[key] + sent[key] for key in total}
        error = max(float((total[key] / 60 - wanted[key]).abs().max()) for key in total)
        if not forgetful:
            repaid = error
    assert repaid < 0.5 * error


def test_a_deadline_gives_slow_devices_fewer_tokens_and_meets_it(settings):
    terms = assemble(small_config(TSFLORA), settings)[1].terms
    rates = {"uplink_mbps": 1.5, "downlink_mbps": 1.5}
    scheduler = schedulers.build({"name": "deadline", "deadline_s": 0.5, "reference_s": 0.02, **rates})
    plans = scheduler.plan(terms, 1, range(10), ())
    tokens = [plans[device].codec.tokens.n_tokens for device in range(10)]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) == 3
    assert len(set(tokens[:3])) == len(set(tokens[3:7])) == len(set(tokens[7:])) == 1
    for device, plan in plans.items():
        computing_s = 0.02 / scheduler.fractions[device]
        assert computing_s + scheduler.sending_s(plan, terms) <= 0.5
        if (n_tokens := tokens[device]) < terms.n_patches + 1:
            more = type(plan.codec.tokens)(n_tokens=n_tokens + 1)
            longer = plan.model_copy(update={"codec": plan.codec.model_copy(update={"tokens": more})})
            assert computing_s + scheduler.sending_s(longer, terms) > 0.5


def test_a_scheduled_round_is_recorded_and_its_plans_are_counted(settings):
    scheduler = {"name": "deadline", "deadline_s": 0.5, "reference_s": 0.02, "fractions": [0.05, 0.1, 0.15, 0.01]}
    record = run(small_config({**TSFLORA, "scheduler": scheduler}), settings)
    dropped = [device for entry in record.history for device in entry.devices if device.dropped]
    assert {device.device for device in dropped} == {3}
    assert all("more than the deadline of 0.5 s" in str(device.dropped) for device in dropped)
    for entry in record.history:
        assert [device.device for device in entry.devices] == list(entry.participants)
        present = [device for device in entry.devices if device.dropped is None]
        assert entry.n_samples == sum(device.n_samples for device in present)
        assert sum(entry.uplink_bytes.values()) == sum(device.uplink_bytes for device in present)
        assert sum(entry.downlink_bytes.values()) == sum(device.downlink_bytes for device in present)
        assert entry.downlink_bytes["control"] > 0
        counts = [device.plan["codec"]["tokens"]["n_tokens"] for device in present if device.plan]
        assert len(set(counts)) == len(counts) > 1
    frame = plans_frame([record]).set_index("plan")
    assert frame["device_rounds"].sum() == sum(len(entry.participants) for entry in record.history)
    assert frame.loc["dropped", "uplink_mib"] == 0
    assert frame["uplink_mib"]["n_tokens 50"] > frame["uplink_mib"]["n_tokens 39"] > 0
    assert plans_table([record])["Plan"].tolist() == frame.index.tolist()
    plain = run(small_config(TSFLORA), settings)
    assert plans_table([plain]).empty
    assert "control" not in plain.final.downlink_bytes
    assert all(device.plan is None for entry in plain.history for device in entry.devices)


def test_a_round_that_nobody_can_join_changes_nothing(settings):
    record = run(small_config({**TSFLORA, "scheduler": {"name": "deadline", "deadline_s": 1e-6}}), settings)
    assert all(entry.train_loss is None and entry.n_samples == 0 for entry in record.history)
    assert record.history[0].accuracy == record.history[1].accuracy
    assert record.final.uplink_bytes == {}


@pytest.mark.parametrize(
    "method",
    [
        {"algorithm": "sflora"},
        {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.5}},
        {"algorithm": "fed_lora"},
    ],
    ids=str,
)
def test_a_deadline_for_a_method_without_a_token_count_is_one_line(settings, method):
    with pytest.raises(ConfigError, match="scheduler deadline: needs a method that selects n_tokens"):
        run(small_config({**method, "scheduler": "deadline"}), settings)


@pytest.mark.parametrize("name", tasks.classes())
def test_every_task_says_what_it_measures(name):
    task = tasks.build(name)
    assert task.metric
    outputs = torch.tensor([[0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    targets = task.targets(np.array([1, 0, 0]), torch.device("cpu"))
    total, count = task.score(outputs, targets)
    assert (total, count) == (2.0, 3)
    assert task.loss(outputs, targets).ndim == 0


def test_frozen_devices_send_and_get_nothing_but_tokens_up(settings):
    frozen = run(small_config({**TSFLORA, "algorithm": {"name": "sflora", "frozen": True}}), settings)
    trained = run(small_config(TSFLORA), settings)
    assert frozen.final.downlink_bytes == {}
    assert frozen.final.uplink_bytes.keys() == {"activations", "labels", "headers"}
    assert frozen.final.uplink_bytes["activations"] == trained.final.uplink_bytes["activations"]
    assert frozen.final.train_loss != trained.final.train_loss


@pytest.mark.parametrize(
    ("method", "line"),
    [
        ({"algorithm": "sflora", "codec": "tokens", "quantizer": "float16"}, "give quantizer or codec, not both"),
        (
            {"algorithm": {"name": "sflora", "frozen": True}, "gradient_quantizer": "float16"},
            "sends no gradient; remove",
        ),
        ({"algorithm": {"name": "sflora", "frozen": True}, "adapter": "change"}, "sends no adapter; remove adapter"),
        ({"algorithm": "local_lora", "adapter_quantizer": "float16"}, "sends no adapter; remove adapter_quantizer"),
        ({"algorithm": "central", "codec": "tokens"}, "sends no activations; remove codec"),
        ({"algorithm": "sflora", "adapter": "chnge"}, r"unknown adapter codec 'chnge'; did you mean 'change'\?"),
        ({"algorithm": "sflora", "scheduler": "deadlin"}, r"unknown scheduler 'deadlin'; did you mean 'deadline'\?"),
    ],
    ids=str,
)
def test_what_a_method_does_not_use_cannot_be_named(method, line):
    with pytest.raises(ConfigError, match=line):
        small_config(method)
