"""Nothing crosses between device and server but messages, and it makes no difference where the devices are."""

import contextlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch
from conftest import small_config
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from methods import CENTRAL, EVERY_ALGORITHM, TSFLORA

from tsflora import experiment
from tsflora.errors import FrameError
from tsflora.federation import InProcessFleet, Link, Message, Plan
from tsflora.federation.device import Device
from tsflora.federation.fleet import Loan

METHODS = {
    **EVERY_ALGORITHM,
    **CENTRAL,
    "frozen": {**TSFLORA, "algorithm": {"name": "sflora", "frozen": True}},
    "ragged": {"algorithm": "sflora", "tokens": {"name": "attention_mass", "mass": 0.6, "proportional": True}},
    "changes": {"algorithm": "sflora", "adapter": "change", "gradient": "feedback"},
    "fed_changes": {"algorithm": "fed_lora", "adapter": "change"},
    "deadline": {**TSFLORA, "scheduler": "deadline"},
}


class Elsewhere(InProcessFleet):
    """Devices as far away as one process allows: only bytes pass, each device works in a thread of its own on a module
    of its own, and shares no object with the server but what neither changes."""

    side_by_side = True
    seen: list[bytes]

    def __init__(self, side):
        super().__init__(side)
        self.seen = []
        self._threads = {}
        self._busy = threading.Lock()

    def device(self, number):
        if number not in self._devices:
            self._devices[number] = Device(number, self.side, Loan(self.side.module))
        return self._devices[number]

    def link(self, device):
        if device not in self._links:
            self._threads[device] = ThreadPoolExecutor(max_workers=1)
            self._links[device] = Link(lambda message: self._ask(device, message.pack()))
        return self._links[device]

    def _ask(self, device: int, sent: bytes) -> Future[Message]:
        self.seen.append(sent)
        answer: Future[Message] = Future()

        def work():
            torch.set_num_threads(1)
            with self._busy:  # torch's threads would fight; that they wait for each other changes no number
                return self.device(device).answer(Message.unpack(sent)).pack()

        def arrived(packed):
            try:
                answer.set_result(Message.unpack(packed.result()))
            except Exception as error:
                answer.set_exception(error)

        self._threads[device].submit(work).add_done_callback(arrived)
        return answer


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_over_bytes_and_threads_is_the_run_in_this_process(settings, monkeypatch, method):
    config = small_config(method)
    here = experiment.run(config, settings.model_copy(update={"checkpoint_dir": None}))
    fleets = []

    def elsewhere(side):
        fleets.append(Elsewhere(side))
        return fleets[-1]

    monkeypatch.setattr(experiment, "InProcessFleet", elsewhere)
    there = experiment.run(config, settings.model_copy(update={"checkpoint_dir": None}))
    assert fleets[0].seen
    assert there.comparable() == here.comparable()


@pytest.mark.parametrize("name", ["sflora", "fed_lora", "split_lora"])
def test_devices_of_one_round_share_no_memory(settings, name):
    """Two of them at work at once have parameters of their own, and the frozen ones in common."""
    run: Any = experiment.start(small_config({"algorithm": name}), settings)  # of which no part is private here
    plan = run.terms.plan
    run.begin(1, {0: plan, 1: plan}, run.adapters.publish)
    first, second = (dict(run.fleet.device(number).module.named_parameters()) for number in (0, 1))
    for key, parameter in first.items():
        same = parameter.data_ptr() == second[key].data_ptr()
        assert same is not parameter.requires_grad


def test_a_message_comes_back_as_it_was():
    message = Message(
        "tokens", {"tokens": b"\x00\xff{", "labels": b""}, {"n": 3, "losses": (0.1 + 0.2, 1), "x": 1e-300}
    )
    assert Message.unpack(message.pack()) == message
    assert Message.unpack(Message("end").pack()) == Message("end")


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.data())
def test_damaged_messages_are_refused(data):
    packed = Message("tokens", {"a": b"12345", "b": b"6"}, {"n": 3, "losses": (0.5, 1)}).pack()
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(FrameError):
        Message.unpack(packed[:cut])
    with pytest.raises(FrameError):
        Message.unpack(packed + b"x")
    place = data.draw(st.integers(0, len(packed) - 7))
    damaged = bytearray(packed)
    damaged[place] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(FrameError):
        Message.unpack(bytes(damaged))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b'{"verb": 1, "frames": {}, "facts": {}}',
        b'{"verb": "x", "frames": {"a": -1}, "facts": {}}',
        b'{"verb": "x", "frames": {"a": 1e3}, "facts": {}}',
        b'{"verb": "x", "frames": {"a": 99999999999}, "facts": {}}',
        b'{"verb": "x", "frames": {}, "facts": {"n": "3"}}',
        b'{"verb": "x", "frames": {}, "facts": {"n": [[1]]}}',
        b'{"verb": "x", "frames": {}, "facts": []}',
        b"\xff\xfe",
    ],
)
def test_headers_that_nobody_sends_are_refused(header):
    with pytest.raises(FrameError, match="not a message"):
        Message.unpack(len(header).to_bytes(4, "little") + header)


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (Message("launch"), "unknown verb 'launch'; allowed: begin, adopt"),
        (Message("begin"), "'begin' came without 'round'"),
        (Message("forward"), "no round has begun"),
        (Message("backward"), "a gradient that it does not wait for"),
        (Message("upload"), "the plan keeps them here"),
    ],
    ids=lambda value: getattr(value, "verb", ""),
)
def test_a_device_refuses_what_it_cannot_do(settings, message, line):
    run = experiment.start(small_config(), settings)
    with pytest.raises(FrameError, match=f"device 1: .*{line}"):
        run.fleet.link(1).send(message).result()


def test_no_more_steps_than_the_round_has(settings):
    run = experiment.start(small_config({"algorithm": {"name": "sflora", "frozen": True}}), settings)
    link = run.fleet.link(1)
    steps = link.send(Message("begin", facts={"round": 1})).result().facts["n_steps"]
    assert isinstance(steps, int)
    for _ in range(steps):
        link.send(Message("forward")).result()
    with pytest.raises(FrameError, match="a step after the last of round 1"):
        link.send(Message("forward")).result()


def test_every_byte_is_counted_once(settings):
    run: Any = experiment.start(small_config(TSFLORA), settings)
    link = run.fleet.link(1)
    link.send(Message("begin", {"adapter": run.adapters.publish(1)}, {"round": 1})).result()
    sent = link.send(Message("forward")).result()
    assert link.traffic.uplink.total() == sum(map(len, sent.frames.values()))
    assert link.traffic.downlink.total() == len(run.adapters.publish(1))
    link.reset()
    assert link.traffic.total_bytes == 0


def test_a_plan_travels_as_its_difference_from_the_method_s(settings):
    base = small_config(TSFLORA).method.plan
    other = small_config({**TSFLORA, "tokens": {"name": "top_k_merge", "n_tokens": 12}}).method.plan
    frame = other.encode(base)
    assert Plan.decode(frame, base) == other
    assert len(frame) < 300
    assert other.changes(base).keys() == {"codec"}
    for damaged in (frame[:-1], base.encode(base)[:-1] + b"x"):
        with pytest.raises(FrameError):
            Plan.decode(damaged, base)
