"""Which tokens travel: reducers from M patch tokens and the class token (CLS) to the transmitted sequence.

No position has to be sent with the tokens: it is inside them since the embedding.

Add one with a class that derives from `TokenReducer` and `@token_reducers.register`, or from an installed package under
the entry-point group `tsflora.token_reducers`. The conformance suite (`tsflora.conformance`) holds for every one.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import BeforeValidator, SerializeAsAny, model_validator
from torch import Tensor
from typing_extensions import override

from tsflora.compression.batch import Seen, Tokens
from tsflora.config import Component, Registry
from tsflora.errors import ConfigError


@dataclass(frozen=True)
class Reduced:
    """The transmitted sequence, and where it came from. Patches are counted from 0, without the CLS token."""

    tokens: Tokens
    """CLS, the kept patches in ascending order, and the merged token if there is one; differentiable in the input."""
    kept: Int[Tensor, "batch kept"]
    """Patch indices, ascending in each row; where samples keep different numbers, -1 fills up the end."""
    merge_weights: Float[Tensor, "batch patches"]
    """Each patch's share in the merged token, a constant: 0 on kept ones; rows sum to 1, or are 0 if none is sent."""


class TokenReducer(Component, ABC):
    """Chooses the tokens of a batch that travel; selection and weights are constants to autograd."""

    @abstractmethod
    def n_transmitted(self, n_patches: int) -> int | None:
        """How many tokens of a model with `n_patches` patches travel, CLS and merged token included.

        None where that differs by sample; it then depends on the data and is measured.

        Raises:
            ConfigError: the model does not have that many.
        """

    @abstractmethod
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        """Reduce a batch of CLS + M patch tokens. Random draws come from `generator`, on the tokens' device.

        Raises:
            ConfigError: as `n_transmitted`, or a front that tells nothing of what this reducer looks at.
        """


token_reducers = Registry[TokenReducer]("token reducer", "tsflora.token_reducers", TokenReducer)

AnyTokenReducer = Annotated[SerializeAsAny[TokenReducer], BeforeValidator(token_reducers.build)]
"""In a configuration: a name, or a mapping with a name and options."""


def attention_of(reducer: TokenReducer, seen: Seen) -> Float[Tensor, "batch heads tokens"]:
    """The attention that a reducer goes by.

    Raises:
        ConfigError: this front has none, or its sequences already differ in length.
    """
    if seen.cls_attention is None or seen.tokens.lengths is not None:
        raise ConfigError(f"{reducer.name}: needs the CLS token's attention over sequences of one length")
    return seen.cls_attention.detach().float()


def _keep_all(tokens: Tokens) -> Reduced:
    batch, n_patches = len(tokens.values), tokens.values.shape[1] - 1
    kept = torch.arange(n_patches, device=tokens.values.device).expand(batch, n_patches)
    if tokens.present is not None:
        kept = kept.masked_fill(~tokens.present[:, 1:], -1)
    return Reduced(tokens, kept, torch.zeros(batch, n_patches, device=tokens.values.device))


@token_reducers.register
class AllTokens(TokenReducer):
    """Every token travels: no reduction."""

    name = "all"

    @override
    def n_transmitted(self, n_patches: int) -> int:
        return n_patches + 1

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        return _keep_all(seen.tokens)


class SelectAndMerge(TokenReducer):
    """Keep the K patches of highest score and merge the others; TSFLora (arXiv 2605.23988), section II-B and eq. (5).

    The sequence is Z = [CLS; kept patches in ascending order; merged token], the merged token m = sum_j w_j a_j over
    the discarded patches j. Equal scores: the lower index wins. Subclasses say what the score is.
    """

    examples: ClassVar[tuple[Mapping[str, Any], ...]] = (
        {"n_tokens": 6},
        {"n_tokens": 10},
        {"K": 3, "merge": "uniform"},
        {"n_tokens": 2},
        {"n_tokens": 5, "merge": "none"},
        {"n_tokens": 1, "merge": "none"},
    )

    n_tokens: int
    """Number of tokens transmitted: CLS + K kept + merged. At M + 1 every token travels as it is and none is merged.

    Input may give `K`, the number of kept patches, in its place.
    """
    merge: Literal["attention", "uniform", "none"] = "attention"
    """Weights of the merged token: w_j in proportion to the CLS attention, all equal, or no merged token at all."""

    @model_validator(mode="before")
    @classmethod
    def _k_to_n_tokens(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "K" not in values:
            return values
        if "n_tokens" in values:
            raise ValueError(f"give n_tokens or K, not both (given: n_tokens={values['n_tokens']}, K={values['K']})")
        kept = values["K"]
        if not isinstance(kept, int) or kept < 0:
            raise ValueError(f"K is the number of kept patches, an integer of at least 0; given: {kept!r}")
        others = {key: value for key, value in values.items() if key != "K"}
        return {**others, "n_tokens": kept + (1 if values.get("merge") == "none" else 2)}

    @model_validator(mode="after")
    def _room_for_cls_and_merged(self) -> "SelectAndMerge":
        if self.n_tokens < 1 + self._n_merged:
            raise ValueError(
                f"n_tokens counts CLS + kept patches + merged token, at least {1 + self._n_merged} "
                f"with merge={self.merge!r}; given: {self.n_tokens}"
            )
        return self

    @property
    def _n_merged(self) -> int:
        return 0 if self.merge == "none" else 1

    @abstractmethod
    def scores(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        cls_attention: Float[Tensor, "batch heads tokens"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch patches"]:
        """How much each patch deserves to travel."""

    def patch_attention(self, cls_attention: Float[Tensor, "batch heads tokens"]) -> Float[Tensor, "batch patches"]:
        """Attention from CLS to each patch, averaged over the heads."""
        return cls_attention[:, :, 1:].mean(dim=1)

    @override
    def n_transmitted(self, n_patches: int) -> int:
        if self.n_tokens > n_patches + 1:
            raise ConfigError(
                f"{self.name}: the model has {n_patches} patches, so n_tokens is {1 + self._n_merged} to "
                f"{n_patches + 1} with merge={self.merge!r}; given: {self.n_tokens}"
            )
        return self.n_tokens

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        tokens = seen.tokens.values
        n_patches = tokens.shape[1] - 1
        if self.n_transmitted(n_patches) == n_patches + 1:
            return _keep_all(seen.tokens)
        cls_attention = attention_of(self, seen)
        scores = self.scores(tokens.detach(), cls_attention, generator)
        # A stable sort, because top-k leaves open which of two equal scores comes first.
        order = scores.argsort(dim=1, descending=True, stable=True)
        kept = order[:, : self.n_tokens - 1 - self._n_merged].sort(dim=1).values
        patches = tokens[:, 1:]
        rows = torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        parts = [tokens[:, :1], patches[rows, kept]]
        weights = torch.zeros_like(scores)
        if self.merge != "none":
            weights = self._merge_weights(cls_attention, kept)
            parts.append(weights.to(tokens.dtype).unsqueeze(1) @ patches)
        return Reduced(Tokens(torch.cat(parts, dim=1)), kept, weights)

    def _merge_weights(
        self, cls_attention: Float[Tensor, "batch heads tokens"], kept: Int[Tensor, "batch kept"]
    ) -> Float[Tensor, "batch patches"]:
        attention = self.patch_attention(cls_attention)
        discarded = torch.ones_like(attention).scatter_(1, kept, 0)
        weights = discarded
        if self.merge == "attention":
            weights = attention * discarded
            # Softmax can underflow to 0 on every discarded patch; they then count the same.
            weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, discarded)
        return weights / weights.sum(dim=1, keepdim=True)


@token_reducers.register
class TopKMerge(SelectAndMerge):
    """Score = attention from CLS in the last device block, head average: the selection of TSFLora."""

    name = "top_k_merge"
    examples = (*SelectAndMerge.examples, {"n_tokens": 6, "score_norm": "patches"})

    score_norm: Literal["all", "patches"] = "all"
    """Attention as the softmax over all M + 1 tokens gives it, or rescaled in each head to sum to 1 over patches."""

    @override
    def patch_attention(self, cls_attention: Float[Tensor, "batch heads tokens"]) -> Float[Tensor, "batch patches"]:
        if self.score_norm == "patches":
            total = cls_attention[:, :, 1:].sum(dim=2, keepdim=True)
            cls_attention = cls_attention / total.clamp_min(torch.finfo(total.dtype).tiny)
        return super().patch_attention(cls_attention)

    @override
    def scores(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        cls_attention: Float[Tensor, "batch heads tokens"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch patches"]:
        return self.patch_attention(cls_attention)


@token_reducers.register
class RandomTokens(SelectAndMerge):
    """Score = a uniform random number: the control that shows what the selection is worth."""

    name = "random"

    @override
    def scores(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        cls_attention: Float[Tensor, "batch heads tokens"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch patches"]:
        return torch.rand(len(tokens), tokens.shape[1] - 1, generator=generator, device=tokens.device)


@token_reducers.register
class FeatureNorm(SelectAndMerge):
    """Score = Euclidean norm of the patch token."""

    name = "feature_norm"

    @override
    def scores(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        cls_attention: Float[Tensor, "batch heads tokens"],
        generator: torch.Generator,
    ) -> Float[Tensor, "batch patches"]:
        return tokens[:, 1:].float().norm(dim=2)
