"""What holds for everything with two ends: codecs of activations, of gradients and of adapters."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tsflora.compression import (
    Adapter,
    AdapterCodec,
    Codec,
    Draw,
    GradientCodec,
    Kind,
    Layout,
    Receiver,
    Seen,
    Sender,
    Tokens,
    adapter_codecs,
    codecs,
    gradient_codecs,
    header_bytes,
    measure,
    read_frame,
)
from tsflora.config import Registry
from tsflora.conformance.claims import N_PATCHES, check_component, holds, refused
from tsflora.errors import FrameError, NumericsError
from tsflora.seeding import torch_generator

_DIM, _BATCH = 6, 4


def seen(name: str, batch: int = _BATCH) -> Seen:
    """What a front puts out of a batch, drawn from the stream `name`."""
    tokens = torch.randn(batch, N_PATCHES + 1, _DIM, generator=torch_generator("tokens", name), requires_grad=True)
    attention = torch.randn(batch, 2, N_PATCHES + 1, generator=torch_generator("attention", name)).softmax(dim=2)
    return Seen(Tokens(tokens), attention)


def draw(*names: object) -> Draw:
    """Random streams of this name."""
    return lambda purpose: torch_generator(purpose, *names)


def adapter(*names: object) -> Adapter:
    """An adapter of two tensors, drawn from the stream of these names."""
    return {
        "a": torch.randn(3, 8, generator=torch_generator("a", *names)),
        "b": torch.randn(8, 3, generator=torch_generator("b", *names)),
    }


def check_codec(name: str, options: Mapping[str, Any], registry: Registry[Any] = codecs) -> None:
    """The contract of `Codec` and the law of its two ends.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    codec: Codec = check_component(registry, name, options)
    sender, receiver = codec.sender(), codec.receiver(N_PATCHES)
    for step in range(3):
        _check_step(codec, sender, receiver, step)
    samples = np.arange(_BATCH)
    other_sender, other_receiver = codec.sender(), codec.receiver(N_PATCHES)
    other_sender.restore(sender.state())
    other_receiver.restore(receiver.state())
    x = seen("after a restart")
    same = sender.send(x, samples, draw("r"))[1] == other_sender.send(x, samples, draw("r"))[1]
    holds(same, "a sender that is restored from a state sends another frame")
    if (news := receiver.news()) is not None:
        read_frame(news, Kind.CONTROL)
        sender.absorb(news)
        holds(other_receiver.news() == news, "a receiver that is restored from a state has other news")
    else:
        with refused(FrameError, "absorb of news, where the receiver has none,"):
            sender.absorb(b"news")
    one = seen("alone", batch=1)
    n_arrived = len(receiver.receive(sender.send(one, samples[:1], draw("one"))[1], 0).values)
    holds(n_arrived == 1, f"a batch of one arrives as {n_arrived}")
    bad = Seen(Tokens(one.tokens.values.detach() * float("nan")), one.cls_attention)
    with refused(NumericsError, "send of NaN"):
        sender.send(bad, samples[:1], draw("bad"))


def _check_step(codec: Codec, sender: Sender, receiver: Receiver, step: int) -> None:
    x = seen(f"step {step % 2}")
    before = {key: value.clone() for key, value in sender.state().items()}
    expected = sender.judge(x, draw(step))
    remembers = {k: v.tolist() for k, v in sender.state().items()} != {k: v.tolist() for k, v in before.items()}
    holds(not remembers, "judge changes what the sender remembers")
    tokens, frame = sender.send(x, np.arange(_BATCH), draw(step))
    arrived = receiver.receive(frame, 3)
    if step == 0 or not before:
        law = "from equal states, what arrives is what is judged, and here it is not"
        holds(_equal(arrived, expected), law)
    holds(measure(frame).kind == Kind.ACTIVATIONS, f"the frame is one of {measure(frame).kind.name.lower()}")
    holds(tokens.values.requires_grad, "the tokens that are sent have lost their graph")
    sent, got = tuple(tokens.rows().shape), tuple(arrived.rows().shape)
    holds(sent == got, f"no gradient fits: tokens of shape {sent} are sent, and {got} arrive")
    n_said, n_arrived = codec.n_transmitted(N_PATCHES), arrived.values.shape[1]
    holds(n_said in (None, n_arrived), f"n_transmitted says {n_said}, and {n_arrived} tokens arrive")
    _check_size(frame, codec.layouts(_BATCH, N_PATCHES, _DIM))
    (gradient,) = torch.autograd.grad(tokens.rows().sum(), x.tokens.values)
    holds(gradient.isfinite().all(), "the gradient through the sent tokens is NaN or infinite")
    _check_damaged(frame, lambda damaged: receiver.receive(damaged, 3))


def check_gradient_codec(name: str, options: Mapping[str, Any], registry: Registry[Any] = gradient_codecs) -> None:
    """The contract of `GradientCodec` and its two ends.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    codec: GradientCodec = check_component(registry, name, options)
    sender, receiver = codec.sender(), codec.receiver()
    shapes: list[tuple[int, ...]] = [(4, 5, 6), (4, 5, 6), (2, 5, 6), (9, 6)]
    for step, shape in enumerate(shapes):
        gradient = torch.randn(shape, generator=torch_generator("gradient", step))
        frame = sender.send(gradient, 7, torch_generator("q", step))
        holds(measure(frame).kind == Kind.GRADIENTS, f"the frame is one of {measure(frame).kind.name.lower()}")
        _check_size(frame, codec.layouts(shape))
        arrived = tuple(receiver.receive(frame, shape).shape)
        holds(arrived == shape, f"a gradient of shape {shape} arrives as {arrived}")
        with refused(FrameError, "receive of a gradient of another shape"):
            receiver.receive(frame, (*shape[:-1], 7))
        other = codec.sender()
        other.restore(sender.state())
        again = torch.randn(shape, generator=torch_generator("again", step))
        same = sender.send(again, 7, torch_generator("r")) == other.send(again, 7, torch_generator("r"))
        holds(same, "a sender that is restored from a state sends another frame")


def check_adapter_codec(name: str, options: Mapping[str, Any], registry: Registry[Any] = adapter_codecs) -> None:
    """The contract of `AdapterCodec` and its two ends.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    codec: AdapterCodec = check_component(registry, name, options)
    start = adapter("start")
    server, device = codec.end(start), codec.end(start)
    layouts = codec.layouts([tuple(tensor.shape) for tensor in start.values()])
    for round_ in range(3):
        frame = server.publish(_nearby(start, "news", round_), torch_generator("down", round_))
        holds(measure(frame).kind == Kind.ADAPTERS, f"the frame is one of {measure(frame).kind.name.lower()}")
        _check_size(frame, layouts)
        adopted = device.adopt(frame)
        holds(adopted.keys() == start.keys(), f"tensors {sorted(start)} are published, and {sorted(adopted)} adopted")
        trained = _nearby(adopted, "trained", round_)
        submitted = device.submit(trained, torch_generator("up", round_))
        collected = server.collect(submitted)
        for key, value in trained.items():
            error = float((collected[key] - value).abs().max())
            holds(error < 1.0, f"what the server collects is {error:g} away from what was submitted; allowed: under 1")
        _check_damaged(frame, device.adopt)
        _check_damaged(submitted, server.collect)
        again = codec.end(start)
        again.restore(server.state())
        last = server.publish(trained, torch_generator("x"))
        same = again.publish(trained, torch_generator("x")) == last
        holds(same, "an end that is restored from a state publishes another frame")
        device.adopt(last)


def _nearby(start: Adapter, *names: object) -> Adapter:
    return {key: value + 0.1 * adapter(*names)[key] for key, value in start.items()}


def _check_size(frame: bytes, layouts: tuple[Layout, ...] | None) -> None:
    try:
        if layouts is None or any(layout.body_bytes <= 0 for layout in layouts):
            return
    except ValueError:  # a section that has no length before there is data
        return
    size = header_bytes(layouts) + sum(layout.body_bytes for layout in layouts if not layout.side)
    holds(len(frame) == size, f"layouts say {size} bytes, and the frame has {len(frame)}")


def _check_damaged(frame: bytes, read: Callable[[bytes], object]) -> None:
    for damaged in (frame[:-1], frame[:-1] + bytes([frame[-1] ^ 1]), b""):
        with refused(FrameError, "a damaged frame"):
            read(damaged)


def _equal(first: Tokens, second: Tokens) -> bool:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        return torch.equal(a, b) if a is not None and b is not None else a is b

    return all(same(getattr(first, name), getattr(second, name)) for name in ("values", "lengths", "sizes"))
