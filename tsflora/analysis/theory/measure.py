"""Every bound beside its measured value, on real activations of one batch."""

import dataclasses
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from tsflora.analysis.theory.distortion import (
    rounding_distortion,
    scatter,
    selection_distortion,
    squared_norm,
    total_distortion,
)
from tsflora.analysis.theory.perturbation import Gradient, gradient, lipschitz_estimate, perturbation_bound
from tsflora.analysis.theory.planning import uplink_bits
from tsflora.compression import Reduced, TokenCodec, TokenReducer, Tokens
from tsflora.compression.quantizers import Uniform
from tsflora.compression.tokens import SelectAndMerge
from tsflora.errors import ConfigError
from tsflora.federation import ServerSide
from tsflora.models.adapters import trainable


def retained_attention(cls_attention: Float[Tensor, "batch heads tokens"], reduced: Reduced) -> float:
    """Share of the CLS query's attention on patches that falls on kept ones; heads and images averaged."""
    patches = cls_attention[:, :, 1:].detach().double().mean(dim=1)
    return float((patches.gather(1, reduced.kept).sum(dim=1) / patches.sum(dim=1)).mean())


def measure(
    side: ServerSide, n_tokens: Sequence[int], bits: Sequence[int], *, draws: int = 4, batch_size: int | None = None
) -> pd.DataFrame:
    """Lemmas 1 to 3 on the first batch of test images: one row for every number of tokens and bit width.

    `side` is the server's, as `assemble` gives it for a method that selects, merges and quantises; all options but
    `n_tokens` and `bits` are kept. The adapters are those of its front and back: their initial values, unless a trained
    adapter was set. Rounding is drawn `draws` times.

    Columns `selection_*`, `rounding_*` and `total_*` are distortions (see `distortion.py`); `scattered_*`
    and `transmitted_*` squared changes of the gradient, of both adapters and of the server's alone, against
    `gradient_squared`. `lipschitz` is estimated on the *second* batch over the same grid, so that
    `perturbation_bound`, which is for `scattered_perturbation`, is a prediction that can fail and not a tautology.

    Raises:
        ConfigError: another kind of codec (see `rounding_distortion` and `scatter`), more tokens than the model has,
            or fewer than two batches of test images.
    """
    size = side.terms.training.batch_size if batch_size is None else batch_size
    if draws < 1 or size < 1 or len(side.test) < 2 * size:
        raise ConfigError(
            f"measuring needs draws and a batch size of at least 1, and two batches of test images; "
            f"given: draws {draws}, batch size {size}, {len(side.test)} images"
        )
    codecs = [_codec(side, tokens, width) for tokens in n_tokens for width in bits]
    with tqdm(total=2 * len(codecs), desc="bounds", leave=False, delay=2) as progress:
        _, changes = _sweep(side, slice(size, 2 * size), codecs, draws, progress)
        lipschitz = lipschitz_estimate(changes)
        rows, _ = _sweep(side, slice(0, size), codecs, draws, progress)
    for row in rows:
        noise = row["total_bound"] - row["selection_measured"]
        bound = perturbation_bound(lipschitz, row["selection_measured"], noise)
        row |= {"lipschitz": lipschitz, "perturbation_bound": bound}
    return pd.DataFrame(rows)


def _codec(side: ServerSide, n_tokens: int, bits: int) -> tuple[SelectAndMerge, Uniform]:
    """The plan's reducer and quantizer with another number of tokens and of bits."""
    codec, merging = side.terms.plan.codec, side.terms.plan.merging
    if merging is not None:
        raise ConfigError(f"measuring varies what is selected of all tokens; given: merging {merging.name!r}")
    reducer, quantizer = (codec.tokens, codec.quantizer) if isinstance(codec, TokenCodec) else (None, None)
    if not isinstance(reducer, SelectAndMerge) or not isinstance(quantizer, Uniform):
        parts = [codec] if reducer is None else [reducer, quantizer]
        given = ["no codec" if part is None else part.name for part in parts]
        raise ConfigError(
            "measuring varies n_tokens and bits, so the method needs a token reducer that selects and merges and the "
            f"uniform quantizer; given: {', '.join(given)}"
        )
    return (
        type(reducer).parse({**_options(reducer), "n_tokens": n_tokens}, reducer.name),
        type(quantizer).parse({**_options(quantizer), "bits": bits}, quantizer.name),
    )


def _options(component: TokenReducer | Uniform) -> dict[str, Any]:
    return {key: value for key, value in component.model_dump().items() if key != "name"}


def _sweep(
    side: ServerSide, batch: slice, codecs: Sequence[tuple[SelectAndMerge, Uniform]], draws: int, progress: tqdm
) -> tuple[list[dict[str, Any]], list[tuple[float, float]]]:
    """One row per codec, and every draw's (||g(A^) - g(A)||^2, ||A^ - A||^2)."""
    terms, images = side.terms, side.test.images[batch]
    targets = terms.task.targets(side.test.labels[batch], terms.where)
    seen = side.front(terms.task.inputs(images, terms.spec, terms.where))
    tokens, cls_attention = seen.tokens.values, seen.cls_attention
    assert cls_attention is not None
    server, device = (list(trainable(part).values()) for part in (side.back, side.front))

    def at(received: Tensor, sent: Tensor) -> Gradient:
        return gradient(lambda x: terms.task.loss(side.back(Tokens(x)), targets), received, sent, server, device)

    reference = at(tokens, tokens)
    rows, changes = [], []
    for reducer, quantizer in codecs:
        names = ("theory", batch.start, reducer.n_tokens)
        reduced = reducer.reduce(seen, terms.generator(*names))
        sent = reduced.tokens.values
        stream = terms.generator(*names, quantizer.bits)
        received = [quantizer.forward(sent.detach(), stream) for _ in range(draws)]
        placed = [scatter(each, reduced) for each in received]
        scattered = [at(each, tokens) - reference for each in placed]
        transmitted = [at(each, sent) - reference for each in received]
        selection = selection_distortion(tokens, reduced)
        rounding = rounding_distortion(sent, quantizer, received)
        total = total_distortion(tokens, reduced, quantizer, received)
        changes += [
            (change.squared_norm, squared_norm(each.double() - tokens.detach().double()))
            for change, each in zip(scattered, placed, strict=True)
        ]
        rows.append(
            {
                "cut": len(side.front.vit.blocks),
                "n_tokens": reducer.n_tokens,
                "kept": reduced.kept.shape[1],
                "bits": quantizer.bits,
                "uplink_bits": uplink_bits(len(tokens), reducer.n_tokens, tokens.shape[2], quantizer.bits),
                "retained_attention": retained_attention(cls_attention, reduced),
                **_named("selection", selection),
                "selection_identity": selection.identity,
                **_named("rounding", rounding),
                "rounding_relative_bound": rounding.relative_bound,
                **_named("total", total),
                "gradient_squared": reference.squared_norm,
                **_perturbations("scattered", scattered),
                **_perturbations("transmitted", transmitted),
            }
        )
        progress.update()
    return rows, changes


def _named(prefix: str, values: Any) -> dict[str, float]:
    return {f"{prefix}_{key}": value for key, value in dataclasses.asdict(values).items()}


def _perturbations(prefix: str, changes: Sequence[Gradient]) -> dict[str, float]:
    """Means over the draws."""
    return {
        f"{prefix}_perturbation": fmean(each.squared_norm for each in changes),
        f"{prefix}_server_perturbation": fmean(each.server_squared_norm for each in changes),
    }
