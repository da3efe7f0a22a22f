"""What holds for every rule of merging."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tsflora.compression import Merger, Tokens, merge, mergers
from tsflora.config import Registry
from tsflora.conformance.claims import N_PATCHES, check_component, close, holds
from tsflora.seeding import torch_generator

_BATCH, _DIM, _BLOCKS = 3, 5, 2


def check_merger(name: str, options: Mapping[str, Any], registry: Registry[Any] = mergers) -> None:
    """The contract of `Merger`, on a device of two blocks.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    merger: Merger = check_component(registry, name, options)
    merger.check(_BLOCKS)
    _check_choice(merger)
    counts = merger.n_tokens(N_PATCHES, _BLOCKS)
    holds(counts is None or len(counts) == _BLOCKS, f"n_tokens says {counts} for {_BLOCKS} blocks")
    values = torch.randn(_BATCH, N_PATCHES + 1, _DIM, generator=torch_generator("values"))
    tokens, again = _steps(merger, values), _steps(merger, values)
    holds(torch.equal(tokens[-1].values, again[-1].values), "one generator state gives two results")
    for block, left in enumerate(tokens):
        assert left.lengths is not None
        assert left.sizes is not None
        lengths = left.lengths.tolist()
        if counts is not None:
            holds(set(lengths) == {counts[block]}, f"n_tokens says {counts[block]} after a block that leaves {lengths}")
        total = torch.full((_BATCH,), N_PATCHES + 1.0)
        close(left.sizes.sum(dim=1), total, "the tokens that are left do not stand for all patches")
        holds(torch.equal(left.values[:, 0], values[:, 0]), "CLS does not come first, unchanged")


def _check_choice(merger: Merger) -> None:
    """A truth value for each edge, where the second image has one edge less."""
    similarity = 2 * torch.rand(_BATCH, (N_PATCHES + 1) // 2, generator=torch_generator("similarity")) - 1
    similarity[:, 0] = similarity[1, -1] = -torch.inf
    before = similarity.clone()
    for block in range(_BLOCKS):
        chosen = merger.chosen(similarity, block, torch_generator("choice"))
        kind = f"chosen gives {chosen.dtype} of shape {tuple(chosen.shape)}"
        holds(chosen.dtype == torch.bool and chosen.shape == similarity.shape, f"{kind}, not a bool for each edge")
        holds(not chosen[similarity.isneginf()].any(), "an edge is chosen that is none: its similarity is -inf")
        holds(torch.equal(similarity, before), "chosen writes into the similarities that it is given")


def _steps(merger: Merger, values: Tensor) -> list[Tokens]:
    """What is left after each block, of tokens compared by random keys."""
    generator, tokens, found = torch_generator("merging"), Tokens(values), list[Tokens]()
    for block in range(_BLOCKS):
        metric = torch.randn(*tokens.values.shape[:2], 4, generator=torch_generator("metric", block))
        tokens = merge(tokens, metric, merger, block, generator)
        found.append(tokens)
    return found
