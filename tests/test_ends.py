"""The conformance suite of what talks: codecs of tokens, gradients and adapters, schedulers and tasks.

Every component comes with `examples`, the options it is tested under; a third party's is tested like the built-in ones.
"""

import numpy as np
import pytest
import torch
from conftest import small_config
from methods import TSFLORA
from test_components import check_component, examples

from tsflora.analysis.runs import plans_frame
from tsflora.analysis.tables import plans_table
from tsflora.compression import (
    Kind,
    Seen,
    Tokens,
    adapter_codecs,
    codecs,
    gradient_codecs,
    header_bytes,
    measure,
    read_frame,
)
from tsflora.data import tasks
from tsflora.errors import ConfigError, FrameError, NumericsError
from tsflora.experiment import assemble, run
from tsflora.federation import Dropped, Plan, schedulers
from tsflora.seeding import torch_generator

N_PATCHES, DIM, BATCH = 9, 6, 4


def seen(name: str, batch: int = BATCH) -> Seen:
    tokens = torch.randn(batch, N_PATCHES + 1, DIM, generator=torch_generator("tokens", name), requires_grad=True)
    attention = torch.randn(batch, 2, N_PATCHES + 1, generator=torch_generator("attention", name)).softmax(dim=2)
    return Seen(Tokens(tokens), attention)


def draw(*names):
    return lambda purpose: torch_generator(purpose, *names)


def equal(first: Tokens, second: Tokens) -> bool:
    def same(a, b):
        return (a is None) == (b is None) and (a is None or torch.equal(a, b))

    return all(same(getattr(first, name), getattr(second, name)) for name in ("values", "lengths", "sizes"))


@pytest.mark.parametrize(("name", "options"), examples(codecs))
def test_every_codec_keeps_the_law_of_both_ends(name, options):
    codec = check_component(codecs, name, options)
    sender, receiver = codec.sender(), codec.receiver(N_PATCHES)
    samples = np.arange(BATCH)
    for step in range(3):
        x = seen(f"step {step % 2}")
        before = {key: value.clone() for key, value in sender.state().items()}
        expected = sender.judge(x, draw(step))
        assert {k: v.tolist() for k, v in sender.state().items()} == {k: v.tolist() for k, v in before.items()}
        tokens, frame = sender.send(x, samples, draw(step))
        arrived = receiver.receive(frame, device=3)
        if step == 0 or not before:
            assert equal(arrived, expected), "from equal states, what arrives is what is judged"
        assert measure(frame).kind == Kind.ACTIVATIONS
        assert tokens.values.requires_grad, "the graph of what was sent is kept"
        assert tokens.rows().shape == arrived.rows().shape, "a gradient for what was sent"
        n_tokens = codec.n_transmitted(N_PATCHES)
        assert n_tokens is None or arrived.values.shape[1] == n_tokens
        layouts = codec.layouts(BATCH, N_PATCHES, DIM)
        if layouts is not None and all(layout.body_bytes is not None for layout in layouts):
            bodies = sum(layout.body_bytes for layout in layouts if not layout.side)
            assert len(frame) == header_bytes(layouts) + bodies, "where sizes follow from shapes, these are they"
        (gradient,) = torch.autograd.grad(tokens.rows().sum(), x.tokens.values)
        assert gradient.isfinite().all()
        for damaged in (frame[:-1], frame[:-1] + bytes([frame[-1] ^ 1]), b""):
            with pytest.raises(FrameError):
                receiver.receive(damaged, device=3)
    other_sender, other_receiver = codec.sender(), codec.receiver(N_PATCHES)
    other_sender.restore(sender.state())
    other_receiver.restore(receiver.state())
    x = seen("after a restart")
    assert sender.send(x, samples, draw("r"))[1] == other_sender.send(x, samples, draw("r"))[1]
    if (news := receiver.news()) is not None:
        read_frame(news, Kind.CONTROL)
        sender.absorb(news)
        assert other_receiver.news() == news
    else:
        with pytest.raises(FrameError):
            sender.absorb(b"news")
    one = seen("alone", batch=1)
    assert receiver.receive(sender.send(one, samples[:1], draw("one"))[1], 0).values.shape[0] == 1
    bad = Seen(Tokens(one.tokens.values.detach() * float("nan")), one.cls_attention)
    with pytest.raises(NumericsError):
        sender.send(bad, samples[:1], draw("bad"))


@pytest.mark.parametrize(("name", "options"), examples(gradient_codecs))
def test_every_gradient_codec_keeps_its_contract(name, options):
    codec = check_component(gradient_codecs, name, options)
    sender, receiver = codec.sender(), codec.receiver()
    shapes = [(4, 5, 6), (4, 5, 6), (2, 5, 6), (9, 6)]
    for step, shape in enumerate(shapes):
        gradient = torch.randn(shape, generator=torch_generator("gradient", step))
        frame = sender.send(gradient, 7, torch_generator("q", step))
        assert measure(frame).kind == Kind.GRADIENTS
        assert receiver.receive(frame, shape).shape == shape
        with pytest.raises(FrameError):
            receiver.receive(frame, (*shape[:-1], 7))
        other = codec.sender()
        other.restore(sender.state())
        again = torch.randn(shape, generator=torch_generator("again", step))
        assert sender.send(again, 7, torch_generator("r")) == other.send(again, 7, torch_generator("r"))


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


def adapter(*names):
    return {
        "a": torch.randn(3, 8, generator=torch_generator("a", *names)),
        "b": torch.randn(8, 3, generator=torch_generator("b", *names)),
    }


@pytest.mark.parametrize(("name", "options"), examples(adapter_codecs))
def test_every_adapter_codec_keeps_its_contract(name, options):
    codec = check_component(adapter_codecs, name, options)
    start = adapter("start")
    server, device = codec.end(start), codec.end(start)
    layouts = codec.layouts([tuple(tensor.shape) for tensor in start.values()])
    for round_ in range(3):
        published = {key: value + 0.1 * adapter("news", round_)[key] for key, value in start.items()}
        frame = server.publish(published, torch_generator("down", round_))
        assert measure(frame).kind == Kind.ADAPTERS
        bodies = sum(layout.body_bytes for layout in layouts if not layout.side)
        assert len(frame) == header_bytes(layouts) + bodies
        adopted = device.adopt(frame)
        assert adopted.keys() == start.keys()
        trained = {key: value + 0.1 * adapter("trained", round_)[key] for key, value in adopted.items()}
        submitted = device.submit(trained, torch_generator("up", round_))
        collected = server.collect(submitted)
        for key, value in trained.items():
            assert (collected[key] - value).abs().max() < 1.0
        for damaged in (frame[:-1], submitted[:-1] + b"x"):
            with pytest.raises(FrameError):
                device.adopt(damaged)
        again = codec.end(start)
        again.restore(server.state())
        assert again.publish(trained, torch_generator("x")) == server.publish(trained, torch_generator("x"))
        device.adopt(codec.end(start).publish(start, torch_generator("y"))) if not server.state() else None
        device.restore(server.state()) if server.state() else None


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


@pytest.mark.parametrize(("name", "options"), examples(schedulers))
def test_every_scheduler_plans_for_everyone_or_says_why_not(settings, name, options):
    scheduler = check_component(schedulers, name, options)
    terms = assemble(small_config(TSFLORA), settings)[1].terms
    plans = scheduler.plan(terms, 1, [0, 2, 3], ())
    assert plans.keys() == {0, 2, 3}
    for plan in plans.values():
        if isinstance(plan, Dropped):
            assert plan.why
            assert "\n" not in plan.why
        else:
            assert Plan.decode(plan.encode(terms.plan), terms.plan) == plan
            assert plan.adapter == terms.plan.adapter, "a device's adapters keep their codec"


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
    assert all("more than the deadline of 0.5 s" in device.dropped for device in dropped)
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
    assert frame.loc["n_tokens 50", "uplink_mib"] > frame.loc["n_tokens 39", "uplink_mib"] > 0
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
