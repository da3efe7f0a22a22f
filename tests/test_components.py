"""The conformance suite over every registered component, a third party's included.

Every component comes with `examples`, the options it is tested under. An installed plug-in is found through its entry
point and tested like the built-in ones, so that an unfinished one cannot be listed and pass; `--plugin FILE` adds those
of a file.
"""

import math
from collections.abc import Sequence
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

import tsflora.config
from tsflora.compression import (
    Layout,
    Quantizer,
    Reduced,
    Section,
    Seen,
    TokenReducer,
    Tokens,
    quantizers,
    token_reducers,
)
from tsflora.config import Component, Registry
from tsflora.conformance import N_PATCHES, Case, cases, check_quantizer, check_reducer
from tsflora.errors import NumericsError
from tsflora.wire import Format


@pytest.mark.parametrize("case", cases(), ids=lambda case: f"{case.name}-{dict(case.options)}")
def test_every_component_conforms(case: Case) -> None:
    case.check()


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
    with pytest.raises(AssertionError, match="quantize of nan has to raise NumericsError, and does not"):
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
