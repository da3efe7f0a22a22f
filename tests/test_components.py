"""The conformance suite: what holds for every registered token reducer and quantizer, a third party's included.

Every component comes with `examples`, the options it is tested under. An installed plug-in is found through its entry
point and tested like the built-in ones, so that an unfinished one cannot be listed and pass.
"""

import contextlib
import math
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

import tsflora.config
from tsflora.compression import (
    Kind,
    Layout,
    Quantizer,
    Reduced,
    Section,
    Seen,
    TensorCodec,
    TokenReducer,
    Tokens,
    measure,
    quantizers,
    token_reducers,
)
from tsflora.config import Component, Registry
from tsflora.errors import ConfigError, FrameError, NumericsError
from tsflora.seeding import torch_generator
from tsflora.wire import Format

N_PATCHES = 9
SHAPES: list[tuple[int, ...]] = [(), (1,), (7,), (3, 5), (2, 4, 6), (2, 1, 3, 2)]


def examples(registry: Registry) -> list[Any]:
    return [
        pytest.param(name, dict(options), id=f"{name}-{dict(options)}")
        for name, cls in registry.classes().items()
        for options in cls.examples
    ]


def check_component(registry: Registry, name: str, options: dict[str, Any]) -> Component:
    """Name, documentation and configuration; returns the component."""
    cls = registry.classes()[name]
    assert cls.name == name
    assert cls.__doc__, "a component says what it does"
    component = registry.build({"name": name, **options})
    assert registry.build(component.model_dump(mode="json")) == component, "records must rebuild it"
    with pytest.raises(ValueError, match="no_such_option"):
        registry.build({"name": name, **options, "no_such_option": 1})
    return component


def check_reducer(name: str, options: dict[str, Any], registry: Registry = token_reducers) -> None:
    """The contract of `TokenReducer`."""
    reducer = check_component(registry, name, options)
    batch, dim = 3, 5
    tokens = torch.randn(batch, N_PATCHES + 1, dim, generator=torch_generator("x"), requires_grad=True)
    attention = (4 * torch.rand(batch, 2, N_PATCHES + 1, generator=torch_generator("a"))).softmax(dim=2)
    before = tokens.detach().clone(), attention.clone()
    reduced = reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("r"))
    assert torch.equal(tokens, before[0])
    assert torch.equal(attention, before[1])

    sent, n_transmitted = reduced.tokens, reducer.n_transmitted(N_PATCHES)
    if n_transmitted is not None:
        assert 1 <= n_transmitted <= N_PATCHES + 1
        assert sent.lengths is None, "sequences of one length have no lengths"
        assert sent.values.shape == (batch, n_transmitted, dim), "n_transmitted is what is sent"
    longest = sent.values.shape[1]
    lengths = [longest] * batch if sent.lengths is None else sent.lengths.tolist()
    assert max(lengths) == longest, "no more padding than the longest sequence needs"
    assert min(lengths) >= 1
    assert longest <= N_PATCHES + 1
    present = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    assert not sent.values[~present].any(), "padding is zero"
    assert sent.rows().shape[-1] == dim
    assert sent.sizes is None or (sent.sizes[present] >= 1).all(), "a token stands for something"

    weights, patches = reduced.merge_weights, tokens[:, 1:]
    assert weights.shape == (batch, N_PATCHES)
    assert (weights >= 0).all()
    assert not weights.requires_grad, "weights are constants"
    expected = torch.cat([torch.ones(batch, 1), weights], dim=1)
    for image, length in enumerate(lengths):
        sequence, row = sent.values[image, :length], reduced.kept[image]
        kept = row[row >= 0]
        assert row[: len(kept)].tolist() == kept.tolist(), "-1 fills up the end"
        assert (kept.diff() > 0).all(), "kept patches are ascending"
        assert (kept < N_PATCHES).all()
        assert not weights[image, kept].any(), "a kept patch has no share in the merged token"
        merged = length - len(kept) - 1
        assert merged in (0, 1)
        torch.testing.assert_close(float(weights[image].sum()), float(merged))
        assert torch.equal(sequence[0], tokens[image, 0]), "CLS comes first, unchanged"
        assert torch.equal(sequence[1 : 1 + len(kept)], patches[image, kept]), "kept patches are sent unchanged"
        if merged:
            torch.testing.assert_close(sequence[-1], weights[image] @ patches[image])
        expected[image, 1 + kept] = 1
    (gradient,) = torch.autograd.grad(sent.rows().sum(), tokens)
    torch.testing.assert_close(gradient, expected.unsqueeze(2).expand(-1, -1, dim))

    again = reducer.reduce(Seen(Tokens(tokens), attention), torch_generator("r"))
    assert torch.equal(again.tokens.rows(), sent.rows()), "one generator state, one result"
    for image, length in enumerate(lengths):
        one = slice(image, image + 1)
        alone = reducer.reduce(Seen(Tokens(tokens[one]), attention[one]), torch_generator("r")).tokens
        assert alone.values.shape[0] == 1, "a batch of one works"
        if n_transmitted is None:
            torch.testing.assert_close(alone.values[0], sent.values[image, :length], msg="each gets what it gets alone")
        else:
            assert alone.values.shape == (1, n_transmitted, dim)
    with contextlib.suppress(ConfigError):
        assert reducer.n_transmitted(1) in (1, 2, None), "a model of one patch has two tokens, or is refused"


def check_quantizer(name: str, options: dict[str, Any], registry: Registry = quantizers) -> None:
    """The contract of `Quantizer`.

    What is exact on any constant is a matter of ranges, so that only zero has to arrive as it is.
    """
    quantizer = check_component(registry, name, options)
    codec = TensorCodec(quantizer, Kind.ACTIVATIONS)
    for shape in SHAPES:
        x = torch.randn(shape, generator=torch_generator("x", shape))
        before = x.clone()
        sections = quantizer.quantize(x, torch_generator("q"))
        assert torch.equal(x, before)
        layouts = quantizer.layouts(shape)
        assert tuple(section.layout.expected for section in sections) == layouts, "layouts are what is sent"
        for section, layout in zip(sections, layouts, strict=True):
            coded = layout.format == Format.CODED
            assert (section.layout == layout) != coded, "sizes follow from the shape alone, but of coded sections"
        assert layouts[0].shape == shape, "the first section has the tensor's shape"
        assert len(sections) == quantizer.n_sections

        restored = quantizer.dequantize(sections)
        assert (restored.shape, restored.dtype, restored.device.type) == (x.shape, torch.float32, "cpu")
        assert restored.isfinite().all()
        frame = codec.encode(x, torch_generator("q"))
        assert torch.equal(codec.decode(frame, shape), restored)
        payload = sum(section.layout.body_bytes for section in sections if not section.layout.side)
        assert measure(frame).payload_bytes == payload
        if quantizer.bits_per_entry is not None:
            entries = [-(-x.numel() * layout.bits // 8) for layout in layouts if not layout.side]
            assert payload == sum(entries), "bits_per_entry is what is sent"
            assert sum(layout.bits for layout in layouts if not layout.side) == quantizer.bits_per_entry

        x.requires_grad_()
        value = quantizer.forward(x, torch_generator("q"))
        assert torch.equal(value, restored), "training sees what the peer decodes"
        upstream = torch.randn(shape, generator=torch_generator("g"))
        assert torch.equal(torch.autograd.grad(value, x, upstream)[0], upstream), "straight-through gradient"

        for wrong in (sections[:-1], [*sections, sections[-1]]):
            with pytest.raises(FrameError):
                quantizer.dequantize(wrong)
        with pytest.raises(FrameError, match="expected a tensor of shape"):
            quantizer.dequantize(sections, (*shape, 1))
    x = torch.zeros(2, 3)
    assert torch.equal(quantizer.dequantize(quantizer.quantize(x, torch_generator("q"))), x), "zero is exact"
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NumericsError):
            quantizer.quantize(torch.tensor([0.0, bad]), torch_generator("q"))


@pytest.mark.parametrize(("name", "options"), examples(token_reducers))
def test_every_token_reducer_conforms(name: str, options: dict[str, Any]) -> None:
    check_reducer(name, options)


@pytest.mark.parametrize(("name", "options"), examples(quantizers))
def test_every_quantizer_conforms(name: str, options: dict[str, Any]) -> None:
    check_quantizer(name, options)


def test_the_built_in_components_are_listed() -> None:
    assert {"all", "top_k_merge", "random", "feature_norm", "attention_mass"} <= set(token_reducers.classes())
    assert {"float32", "float16", "uniform", "rotated", "entropy_coded"} <= set(quantizers.classes())


# --- a third party's components


def installed(monkeypatch: pytest.MonkeyPatch, group: str, cls: type[Component]) -> Registry:
    """A fresh registry of `group`, on a machine where a package with `cls` is installed."""
    entry = EntryPoint(cls.name, f"{cls.__module__}:{cls.__qualname__}", group)
    monkeypatch.setattr(tsflora.config, "entry_points", lambda group: [entry] if group == entry.group else [])
    return Registry("plug-in", group)


class SignOnly(Quantizer):
    """One bit per entry: the sign, times the mean magnitude."""

    name = "sign"

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return Layout(shape, Format.PACKED, 1), Layout((1,), Format.FLOAT32, 32, side=True)

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        if not x.isfinite().all():
            raise NumericsError("not finite")
        scale = x.detach().abs().mean().reshape(1).numpy()
        return [Section.codes((x < 0).to(torch.uint8).numpy(), 1), Section.float32(scale, side=True)]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        return (1 - 2 * torch.from_numpy(sections[0].values).float()) * float(sections[1].values[0])


class Careless(SignOnly):
    """Forgets to look for NaN."""

    name = "careless"

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        return super().quantize(x.nan_to_num(posinf=0), generator)


class Unfinished(SignOnly):
    """Announces other sections than it sends."""

    name = "unfinished"

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return super().layouts(shape)[:1]


class Largest(Quantizer):
    """A bitmap of the largest third of all entries, and these as floats: known from the shape, not entry by entry."""

    name = "largest"

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return Layout(shape, Format.PACKED, 1), Layout((-(-math.prod(shape) // 3),), Format.FLOAT32, 32)

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        if not x.isfinite().all():
            raise NumericsError("not finite")
        entries = x.detach().ravel()
        kept = torch.zeros_like(entries, dtype=torch.uint8)
        kept[entries.abs().argsort(stable=True, descending=True)[: -(-len(entries) // 3)]] = 1
        return [Section.codes(kept.reshape(x.shape).numpy(), 1), Section.float32(entries[kept.bool()].numpy())]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        kept = torch.from_numpy(sections[0].values).bool()
        return torch.zeros(kept.shape).masked_scatter_(kept, torch.from_numpy(sections[1].values))


class NonZero(Largest):
    """As many entries as are not zero."""

    name = "nonzero"

    @override
    def layouts(self, shape: tuple[int, ...]) -> tuple[Layout, ...]:
        return Layout(shape, Format.PACKED, 1), Layout.coded()

    @override
    def quantize(self, x: Float[Tensor, "..."], generator: torch.Generator) -> list[Section]:
        if not x.isfinite().all():
            raise NumericsError("not finite")
        kept = x.detach() != 0
        content = b"!" + x.detach()[kept].numpy().tobytes()
        return [Section.codes(kept.to(torch.uint8).numpy(), 1), Section.coded(content)]

    @override
    def restore(self, sections: Sequence[Section]) -> Float[Tensor, "..."]:
        kept = torch.from_numpy(sections[0].values).bool()
        values = np.frombuffer(sections[1].body()[1:], np.float32).copy()
        return torch.zeros(kept.shape).masked_scatter_(kept, torch.from_numpy(values))


class FirstTokens(TokenReducer):
    """The first patches travel."""

    name = "first"
    examples = ({"n": 4},)
    n: int

    @override
    def n_transmitted(self, n_patches: int) -> int:
        return min(self.n, n_patches) + 1

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        tokens = seen.tokens.values
        kept = torch.arange(self.n).expand(len(tokens), self.n)
        return Reduced(Tokens(tokens[:, : self.n + 1]), kept, torch.zeros(len(tokens), tokens.shape[1] - 1))


class Rescaled(FirstTokens):
    """Sends other tokens than it says."""

    name = "rescaled"

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        return super().reduce(Seen(Tokens(seen.tokens.values * 1.0000001), seen.cls_attention), generator)


class Dependent(TokenReducer):
    """Sends as many patches of each sample as the batch has samples: not what each gets alone."""

    name = "dependent"

    @override
    def n_transmitted(self, n_patches: int) -> None:
        return None

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        tokens = seen.tokens.values
        n = len(tokens)
        lengths = torch.full((n,), n + 1)
        return Reduced(Tokens(tokens[:, : n + 1], lengths), torch.arange(n).expand(n, n), torch.zeros(n, N_PATCHES))


def test_an_installed_plug_in_is_listed_and_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = installed(monkeypatch, quantizers.group, SignOnly)
    assert registry.classes() == {"sign": SignOnly}
    check_quantizer("sign", {}, registry)
    registry = installed(monkeypatch, token_reducers.group, FirstTokens)
    assert registry.classes() == {"first": FirstTokens}
    check_reducer("first", {"n": 4}, registry)


@pytest.mark.parametrize("cls", [Largest, NonZero])
def test_a_quantizer_without_a_number_of_bits_per_entry_conforms(
    monkeypatch: pytest.MonkeyPatch, cls: type[Quantizer]
) -> None:
    registry = installed(monkeypatch, quantizers.group, cls)
    check_quantizer(cls.name, {}, registry)
    assert registry.build(cls.name).bits_per_entry is None


def test_a_plug_in_of_another_group_is_not_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, token_reducers.group, FirstTokens)
    assert Registry("plug-in", quantizers.group).classes() == {}


def test_an_unfinished_quantizer_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="layouts are what is sent"):
        check_quantizer("unfinished", {}, installed(monkeypatch, quantizers.group, Unfinished))
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        check_quantizer("careless", {}, installed(monkeypatch, quantizers.group, Careless))


def test_an_unfinished_reducer_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = installed(monkeypatch, token_reducers.group, Rescaled)
    with pytest.raises(AssertionError, match="unchanged"):
        check_reducer("rescaled", {"n": 4}, registry)


def test_a_ragged_reducer_that_looks_at_the_whole_batch_does_not_conform(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = installed(monkeypatch, token_reducers.group, Dependent)
    with pytest.raises(AssertionError, match="each gets what it gets alone"):
        check_reducer("dependent", {}, registry)


class Empty(Quantizer):
    """Nothing yet."""

    name = "empty"


def test_a_component_without_its_methods_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="'empty' is abstract: it has no layouts, quantize, restore"):
        installed(monkeypatch, quantizers.group, Empty).build("empty")
