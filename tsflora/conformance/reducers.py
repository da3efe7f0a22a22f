"""What holds for every token reducer."""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tsflora.compression import Reduced, Seen, TokenReducer, Tokens, token_reducers
from tsflora.config import Registry
from tsflora.conformance.claims import N_PATCHES, check_component, close, holds
from tsflora.errors import ConfigError
from tsflora.seeding import torch_generator

_BATCH, _DIM = 3, 5


def check_reducer(name: str, options: Mapping[str, Any], registry: Registry[Any] = token_reducers) -> None:
    """The contract of `TokenReducer`.

    Raises:
        AssertionError: a sentence that says what is wrong.
    """
    reducer: TokenReducer = check_component(registry, name, options)
    shape = (_BATCH, N_PATCHES + 1, _DIM)
    tokens = torch.randn(shape, generator=torch_generator("x"), requires_grad=True)
    attention = (4 * torch.rand(_BATCH, 2, N_PATCHES + 1, generator=torch_generator("a"))).softmax(dim=2)
    before = tokens.detach().clone(), attention.clone()

    def reduce(rows: slice = slice(None)) -> Reduced:
        return reducer.reduce(Seen(Tokens(tokens[rows]), attention[rows]), torch_generator("r"))

    reduced = reduce()
    unchanged = torch.equal(tokens, before[0]) and torch.equal(attention, before[1])
    holds(unchanged, "reduce writes into the tokens or the attention that it is given")
    lengths = _lengths(reduced, reducer.n_transmitted(N_PATCHES))
    _check_sequences(reduced, lengths, tokens)

    holds(torch.equal(reduce().tokens.rows(), reduced.tokens.rows()), "one generator state gives two results")
    for image, length in enumerate(lengths):
        alone = reduce(slice(image, image + 1)).tokens
        holds(alone.values.shape[0] == 1, f"a batch of one comes back as {tuple(alone.values.shape)}")
        if reducer.n_transmitted(N_PATCHES) is None:
            sentence = f"each gets what it gets alone, but sample {image} of a batch does not"
            close(alone.values[0], reduced.tokens.values[image, :length], sentence)
    with contextlib.suppress(ConfigError):
        n_tokens = reducer.n_transmitted(1)
        holds(n_tokens in (1, 2, None), f"a model of one patch has two tokens, and n_transmitted says {n_tokens}")


def _lengths(reduced: Reduced, n_transmitted: int | None) -> list[int]:
    """The tokens of each sequence, once what is said of them is what is sent."""
    sent = reduced.tokens
    batch, longest, dim = sent.values.shape
    if n_transmitted is not None:
        holds(1 <= n_transmitted <= N_PATCHES + 1, f"n_transmitted is {n_transmitted} of {N_PATCHES + 1} tokens")
        holds(sent.lengths is None, "sequences of one length have no lengths; n_transmitted gives one number")
        said = f"n_transmitted is what is sent: it says {n_transmitted}, and {longest} tokens are sent"
        holds(longest == n_transmitted, said)
    holds((batch, dim) == (_BATCH, _DIM), f"{_BATCH} samples of width {_DIM} become {batch} of width {dim}")
    holds(longest <= N_PATCHES + 1, f"{longest} tokens are sent, and the model has {N_PATCHES + 1}")
    lengths = [longest] * batch if sent.lengths is None else sent.lengths.tolist()
    holds(max(lengths) == longest, f"padded to {longest}, where the longest sequence has {max(lengths)}")
    holds(min(lengths) >= 1, "a sequence without a token")
    present = torch.arange(longest) < torch.tensor(lengths).unsqueeze(1)
    holds(not sent.values[~present].any(), "padding is not zero")
    holds(sent.sizes is None or bool((sent.sizes[present] >= 1).all()), "a token stands for less than one patch")
    return lengths


def _check_sequences(reduced: Reduced, lengths: list[int], tokens: Tensor) -> None:
    """CLS, the kept patches as they are and at most one merged token; the gradient is that of this sum."""
    weights, patches, sent = reduced.merge_weights, tokens[:, 1:], reduced.tokens
    holds(weights.shape == (_BATCH, N_PATCHES), f"merge_weights have the shape {tuple(weights.shape)}")
    holds((weights >= 0).all(), "a merge weight is negative")
    holds(not weights.requires_grad, "merge weights are constants, and these require a gradient")
    expected = torch.cat([torch.ones(_BATCH, 1), weights], dim=1)
    for image, length in enumerate(lengths):
        sequence, row = sent.values[image, :length], reduced.kept[image]
        kept = row[row >= 0]
        holds(row[: len(kept)].tolist() == kept.tolist(), "kept: -1 fills up the end, not the middle")
        holds((kept.diff() > 0).all(), f"kept patches are not ascending: {kept.tolist()}")
        holds((kept < N_PATCHES).all(), f"kept patches that the model does not have: {kept.tolist()}")
        holds(not weights[image, kept].any(), "a kept patch has a share in the merged token")
        merged = length - len(kept) - 1
        holds(
            merged in (0, 1), f"{length} tokens: CLS, {len(kept)} kept and {merged} others; allowed: one merged token"
        )
        total = f"merge weights add up to {float(weights[image].sum()):g}, with {merged} merged tokens"
        close(weights[image].sum(), torch.tensor(float(merged)), total)
        holds(torch.equal(sequence[0], tokens[image, 0]), "CLS does not come first, unchanged")
        kept_as_is = torch.equal(sequence[1 : 1 + len(kept)], patches[image, kept])
        holds(kept_as_is, "kept patches are not sent unchanged")
        if merged:
            close(sequence[-1], weights[image] @ patches[image], "the merged token is not the weighted sum of patches")
        expected[image, 1 + kept] = 1
    (gradient,) = torch.autograd.grad(sent.rows().sum(), tokens)
    close(gradient, expected.unsqueeze(2).expand(-1, -1, _DIM), "the gradient is not that of selecting and merging")
