"""How far compressed tokens are from the originals: Lemmas 1 and 2 of TSFLora (arXiv 2605.23988).

Transmitted and original sequences differ in length, so the lemmas compare the originals A (CLS and M patches) with the
*scattered* sequence, the transmitted one with its merged token put back at every discarded position. All norms are
squared Frobenius norms over the whole batch, in float64.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from tsflora.compression import Quantizer, Reduced
from tsflora.compression.quantizers import Uniform
from tsflora.errors import ConfigError
from tsflora.seeding import torch_generator


def squared_norm(x: Float[Tensor, "..."]) -> float:
    """||x||^2, summed in float64."""
    return float(x.detach().double().square().sum())


def _sources(reduced: Reduced) -> Int64[Tensor, "batch tokens"]:
    """For each of the M + 1 positions, the index in the transmitted sequence of the token that stands for it."""
    (batch, kept), n_patches = reduced.kept.shape, reduced.merge_weights.shape[1]
    if reduced.tokens.lengths is not None:
        raise ConfigError("the lemmas are about samples that keep equally many patches; given: numbers that differ")
    expected, given = 1 + kept + (1 if kept < n_patches else 0), reduced.tokens.values.shape[1]
    if given != expected:
        raise ConfigError(
            f"merge-and-scatter puts one merged token in the place of the {n_patches - kept} patches that are not "
            f"kept, so {expected} tokens travel; given: {given} (merge: none has no such token)"
        )
    sources = torch.full((batch, n_patches + 1), kept + 1, device=reduced.kept.device)
    sources[:, 0] = 0
    return sources.scatter_(1, reduced.kept + 1, torch.arange(1, kept + 1, device=sources.device).expand(batch, kept))


def scatter(
    sequence: Float[Tensor, "batch transmitted dim"], reduced: Reduced
) -> Float[Tensor, "batch patches_and_cls dim"]:
    """Put a sequence laid out as `reduced.tokens` back on all M + 1 positions, the merged token on every discarded one.

    `sequence` is `reduced.tokens.values`, what a peer decodes of them, or anything else that each of them carries.

    Raises:
        ConfigError: samples kept different numbers of patches, or patches were dropped without a merged token. The
            server then never sees them; a zero vector in their place would be a token that it does see, and the lemma's
            bounds would not hold for it.
    """
    sources = _sources(reduced)
    return sequence[torch.arange(len(sequence), device=sources.device).unsqueeze(1), sources]


@dataclass(frozen=True)
class SelectionDistortion:
    """Lemma 1: what selection and merging alone change, ||A~ - A||^2, beside its decomposition and two bounds.

    With D the M - K discarded patches of an image, their mean a, and the merged token m.
    """

    measured: float
    within: float
    """sum_b sum_{j in D} ||a_j - a||^2: the least that any merged token leaves."""
    offset: float
    """(M - K) sum_b ||a - m||^2: what a merged token costs that is not the mean; 0 for uniform weights."""
    attention_weighted: float
    """sum_b sum_{j in D} w_j ||a_j - m||^2 with the merge weights w: what the weighted mean is the best token for."""
    diameter_bound: float
    """(M - K) sum_b R_b^2, R_b the largest distance between two discarded patches of image b."""
    norm_bound: float
    """4 B (M - K) G^2, G the largest norm of any patch in the batch: needs no selection to be known."""

    @property
    def identity(self) -> float:
        """`within + offset`, which equals `measured` exactly."""
        return self.within + self.offset


def selection_distortion(tokens: Float[Tensor, "batch tokens dim"], reduced: Reduced) -> SelectionDistortion:
    """Lemma 1 on one batch: `tokens` is A with CLS first, `reduced` what a reducer made of it.

    The bounds hold for merge weights that sum to 1, so up to the float32 rounding of those.

    Raises:
        ConfigError: as `scatter`.
    """
    original, scattered = tokens.detach().double(), scatter(reduced.tokens.values, reduced).detach().double()
    patches, weights = original[:, 1:], reduced.merge_weights.double()
    batch, n_patches = weights.shape
    count = n_patches - reduced.kept.shape[1]
    gone = torch.ones_like(weights).scatter_(1, reduced.kept, 0).bool()
    discarded = patches[gone].reshape(batch, count, patches.shape[2])
    measured = squared_norm(scattered - original)
    norm_bound = 4 * batch * count * float(patches.square().sum(dim=2).max())
    if count == 0:
        return SelectionDistortion(measured, 0.0, 0.0, 0.0, 0.0, norm_bound)
    mean, merged = discarded.mean(dim=1, keepdim=True), reduced.tokens.values[:, -1:].detach().double()
    to_merged = (discarded - merged).square().sum(dim=2)
    # Distances by their definition: the matrix-product shortcut loses the small ones to cancellation.
    diameters = torch.cdist(discarded, discarded, compute_mode="donot_use_mm_for_euclid_dist").amax(dim=(1, 2))
    return SelectionDistortion(
        measured=measured,
        within=squared_norm(discarded - mean),
        offset=count * squared_norm(mean - merged),
        attention_weighted=float((weights[gone].reshape(batch, count) * to_merged).sum()),
        diameter_bound=count * squared_norm(diameters),
        norm_bound=norm_bound,
    )


def rounding_bound(entries: int, lowest: float, highest: float, bits: int) -> float:
    """Lemma 2 in numbers: d Delta^2 / 4 with Delta = (highest - lowest) / (2^bits - 1), for d entries of one range."""
    return entries * ((highest - lowest) / (2**bits - 1)) ** 2 / 4


@dataclass(frozen=True)
class RandomDistortion:
    """A mean squared error under stochastic rounding: over draws, in closed form, and its bound."""

    measured: float
    """Mean over the draws."""
    standard_error: float
    """Of `measured`; NaN for one draw."""
    expected: float
    """Exact expectation: an entry at fraction f between two levels contributes f (1 - f) Delta^2."""
    bound: float
    """Lemma 2: every f at its worst, 1/2."""
    signal: float
    """||.||^2 of what was compressed."""

    @property
    def relative_bound(self) -> float:
        """The delta of E||Q(Z) - Z||^2 <= delta ||Z||^2; NaN where Z = 0."""
        return self.bound / self.signal if self.signal > 0 else math.nan


def rounding_distortion(
    z: Float[Tensor, "*shape"], quantizer: Quantizer, received: Sequence[Float[Tensor, "*shape"]]
) -> RandomDistortion:
    """Lemma 2 on one tensor: `received` are independent draws of the quantizer's output for `z`, at least one.

    Where tokens or channels have ranges of their own, the bound sums each range's; a magnitude quantizer's error is
    that of |z|.

    Raises:
        ConfigError: a quantizer that is not uniform with stochastic rounding; no other is unbiased.
    """
    variance, worst = _entry_terms(z, quantizer)
    return _random_distortion(z, received, float(variance.sum()), float(worst.sum()))


def total_distortion(
    tokens: Float[Tensor, "batch tokens dim"],
    reduced: Reduced,
    quantizer: Quantizer,
    received: Sequence[Float[Tensor, "batch transmitted dim"]],
) -> RandomDistortion:
    """E||A^ - A||^2 of selection and rounding together, A^ the scattered sequence that was received.

    Rounding is unbiased, so the cross term vanishes and both errors add up. The merged token's error counts M - K
    times; with one range over the tensor the bound is eps_sel + (M + 1) B D Delta^2 / 4. `received` are independent
    draws for `reduced.tokens.values`.

    Raises:
        ConfigError: as `scatter` and `rounding_distortion`.
    """
    selection = squared_norm(scatter(reduced.tokens.values, reduced).detach().double() - tokens.detach().double())
    expected, bound = (
        selection + float(scatter(terms, reduced).sum()) for terms in _entry_terms(reduced.tokens.values, quantizer)
    )
    return _random_distortion(tokens, [scatter(each, reduced) for each in received], expected, bound)


def _random_distortion(original: Tensor, received: Sequence[Tensor], expected: float, bound: float) -> RandomDistortion:
    target = original.detach().double()
    errors = torch.tensor([squared_norm(each.detach().double() - target) for each in received], dtype=torch.float64)
    deviation = float(errors.std()) if len(errors) > 1 else math.nan
    return RandomDistortion(
        measured=float(errors.mean()),
        standard_error=deviation / math.sqrt(len(errors)),
        expected=expected,
        bound=bound,
        signal=squared_norm(target),
    )


def _entry_terms(
    z: Float[Tensor, "*shape"], quantizer: Quantizer
) -> tuple[Float64[Tensor, "*shape"], Float64[Tensor, "*shape"]]:
    """Variance f (1 - f) Delta^2 of each entry, and its largest possible value Delta^2 / 4."""
    if not isinstance(quantizer, Uniform) or quantizer.rounding != "stochastic":
        raise ConfigError(
            "Lemma 2 is about the uniform quantizer with stochastic rounding; "
            f"given: {', '.join(f'{key}={value}' for key, value in quantizer.model_dump().items())}"
        )
    z = z.detach().float()
    # Ranges as they really travel: they do not depend on the draw.
    ranges = quantizer.quantize(z, torch_generator("ranges", device=z.device))[-1].values
    lowest, highest = (
        bound.unsqueeze(0 if quantizer.range == "channel" else 1)
        for bound in torch.from_numpy(ranges).to(z.device).double().unbind(1)
    )
    step = (highest - lowest) / (2**quantizer.bits - 1)
    rows = z.double().reshape(-1, z.shape[-1] if z.ndim else 1)
    values = rows.abs() if quantizer.variant == "magnitude" else rows
    # Where the range is one point, every entry is on it.
    fraction = ((values - lowest) / torch.where(step > 0, step, 1)).frac()
    square = step.square().expand_as(rows)
    return (square * fraction * (1 - fraction)).reshape(z.shape), (square / 4).reshape(z.shape)
