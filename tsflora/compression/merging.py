"""Fewer tokens inside the device's blocks: which of them become one, between attention and MLP of each block.

The matching is ToMe's (arXiv 2210.09461), the thresholds are those of Adaptive Token Merging (arXiv 2509.09955). Add a
rule with a class that derives from `Merger` and `@mergers.register`, or from an installed package under the entry-point
group `tsflora.mergers`.
"""

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from jaxtyping import Bool, Float, Int
from pydantic import BeforeValidator, Field, SerializeAsAny
from torch import Tensor
from torch.nn.functional import normalize, one_hot
from typing_extensions import override

from tsflora.compression.batch import Tokens
from tsflora.config import Component, Registry
from tsflora.errors import ConfigError


class Merger(Component, ABC):
    """Says which edges are merged. An edge goes from a token at an even place to the most similar one at an odd place.

    Places are counted from CLS at 0 among the tokens that are still there. CLS has no edge, and no edge leads to it.
    """

    sizes: bool = True
    """Send with each token how many patches it stands for, so that the server's attention goes on weighing it by that;
    false: the server's attention takes every token alike."""

    @abstractmethod
    def check(self, n_blocks: int) -> None:
        """Refuse a device of `n_blocks` blocks that these options do not fit.

        Raises:
            ConfigError: what was given, and what is allowed.
        """

    @abstractmethod
    def n_tokens(self, n_patches: int, n_blocks: int) -> tuple[int, ...] | None:
        """Tokens of each sequence after each of a device's blocks, CLS included; None where that differs by sample.

        Raises:
            ConfigError: as `check`, or more edges than a model with `n_patches` patches has.
        """

    @abstractmethod
    def chosen(
        self, similarity: Float[Tensor, "batch edges"], block: int, generator: torch.Generator
    ) -> Bool[Tensor, "batch edges"]:
        """The edges to merge in `block`, counted from 0, by their similarity from -1 to 1; minus infinity is no edge.

        Random draws come from `generator`, on the device of `similarity`.
        """


mergers = Registry[Merger]("merger", "tsflora.mergers", Merger)

AnyMerger = Annotated[SerializeAsAny[Merger], BeforeValidator(mergers.build)]
"""In a configuration: a name, or a mapping with a name and options."""


def merge(
    tokens: Tokens,
    metric: Float[Tensor, "batch longest channels"],
    merger: Merger,
    block: int,
    generator: torch.Generator,
) -> Tokens:
    """One step: along each chosen edge a token becomes part of the one at the odd place, which keeps its place.

    A token that others became part of is the mean of all, weighted by their sizes: x_j = sum_i s_i x_i / sum_i s_i over
    itself and these, s_j = sum_i s_i. Gradients flow through the means; which tokens, and their sizes, are constants.
    No sizes in `tokens`: every token stands for one patch. `metric` is what similarity is the cosine of.
    """
    values = tokens.values
    batch, longest = values.shape[:2]
    places = torch.arange(longest, device=values.device).expand(batch, longest)
    present = torch.ones_like(places, dtype=torch.bool) if tokens.present is None else tokens.present
    sizes = present.float() if tokens.sizes is None else tokens.sizes * present
    similarity, partner = _edges(metric.detach(), present)
    # Rounding must not put a cosine above every threshold that there is.
    chosen = merger.chosen(similarity.clamp(max=1), block, generator) & similarity.isfinite()
    becomes = places.clone()
    becomes[:, ::2] = torch.where(chosen, partner, places[:, ::2])
    stays = present & (becomes == places)
    lengths = stays.sum(dim=1)
    after = (stays.cumsum(dim=1) - 1).gather(1, becomes)
    parts = one_hot(after, int(lengths.max())).mT * sizes.unsqueeze(1)
    merged_sizes = parts.sum(dim=2)
    # A token that is left alone has the one weight s / s: it comes through to the bit.
    weights = parts / merged_sizes.clamp_min(1).unsqueeze(2)
    with torch.autocast(values.device.type, enabled=False):
        merged = (weights @ values.float()).to(values.dtype)
    return Tokens(merged, lengths, merged_sizes)


def _edges(
    metric: Float[Tensor, "batch longest channels"], present: Bool[Tensor, "batch longest"]
) -> tuple[Float[Tensor, "batch edges"], Int[Tensor, "batch edges"]]:
    """For each even place the similarity to the most similar odd place, and that place."""
    with torch.autocast(metric.device.type, enabled=False):
        metric = normalize(metric.float(), dim=2)
        similarity = metric[:, ::2] @ metric[:, 1::2].mT
    pairs = present[:, ::2].unsqueeze(2) & present[:, 1::2].unsqueeze(1)
    pairs[:, 0] = False  # CLS
    best, odd = similarity.masked_fill(~pairs, -torch.inf).max(dim=2)
    return best, 2 * odd + 1


@mergers.register
class Threshold(Merger):
    """Every edge whose similarity is above the block's threshold: as few tokens as an image needs (arXiv 2509.09955).

    At 1 nothing is merged; at most half of the tokens go in each block.
    """

    name = "threshold"
    examples = ({}, {"thresholds": [0.5, 0.8]}, {"thresholds": [0.9], "sizes": False})

    thresholds: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(default=(0.9,), min_length=1)
    """Cosine similarities: one for each device block, or one for all."""

    @override
    def check(self, n_blocks: int) -> None:
        if len(self.thresholds) not in (1, n_blocks):
            raise ConfigError(
                f"merging.thresholds: given {len(self.thresholds)}; allowed: one for each of the {n_blocks} blocks "
                "before the cut, or one for all"
            )

    @override
    def n_tokens(self, n_patches: int, n_blocks: int) -> None:
        self.check(n_blocks)

    @override
    def chosen(
        self, similarity: Float[Tensor, "batch edges"], block: int, generator: torch.Generator
    ) -> Bool[Tensor, "batch edges"]:
        threshold = self.thresholds[block] if len(self.thresholds) > 1 else self.thresholds[0]
        return similarity > threshold


class SameNumber(Merger):
    """As many edges in every block and image. Subclasses say which."""

    examples = ({"r": 1}, {"r": 2, "sizes": False})

    r: int = Field(ge=1)
    """Edges that are merged in each block; at most those that the last block still has."""

    @abstractmethod
    def scores(
        self, similarity: Float[Tensor, "batch edges"], generator: torch.Generator
    ) -> Float[Tensor, "batch edges"]:
        """The edges of highest score are merged; of equal ones the first."""

    @override
    def check(self, n_blocks: int) -> None:
        """Any number of blocks is right."""

    @override
    def n_tokens(self, n_patches: int, n_blocks: int) -> tuple[int, ...]:
        # n tokens have (n - 1) // 2 edges, so the last of b blocks has r of them where 1 + 2 r + (b - 1) r <= M + 1.
        most = n_patches // (n_blocks + 1)
        if self.r > most:
            raise ConfigError(
                f"merging.r: given {self.r}; allowed with {n_patches} patches and {n_blocks} blocks before the cut: "
                f"1 to {most}"
            )
        return tuple(n_patches + 1 - self.r * (block + 1) for block in range(n_blocks))

    @override
    def chosen(
        self, similarity: Float[Tensor, "batch edges"], block: int, generator: torch.Generator
    ) -> Bool[Tensor, "batch edges"]:
        scores = self.scores(similarity, generator).masked_fill(similarity.isneginf(), -torch.inf)
        # A stable sort, because top-k leaves open which of two equal scores comes first.
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return (ranks < self.r) & ~similarity.isneginf()


@mergers.register
class Fixed(SameNumber):
    """The r edges of highest similarity: ToMe (arXiv 2210.09461)."""

    name = "fixed"

    @override
    def scores(
        self, similarity: Float[Tensor, "batch edges"], generator: torch.Generator
    ) -> Float[Tensor, "batch edges"]:
        return similarity


@mergers.register
class RandomEdges(SameNumber):
    """r edges drawn at random: the control that shows what going by similarity is worth."""

    name = "random"

    @override
    def scores(
        self, similarity: Float[Tensor, "batch edges"], generator: torch.Generator
    ) -> Float[Tensor, "batch edges"]:
        return torch.rand(similarity.shape, generator=generator, device=similarity.device)
