"""As many tokens as an image needs: a reducer whose count differs by sample."""

from typing import Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot, pad
from typing_extensions import override

from tsflora.compression.batch import Seen, Tokens
from tsflora.compression.tokens import Reduced, TokenReducer, attention_of, token_reducers


@token_reducers.register
class AttentionMass(TokenReducer):
    """Keep the fewest patches that together hold a share `mass` of the CLS attention on patches, and merge the others.

    A simple image keeps few and a busy one many, so sequences differ in length. The score is that of TSFLora
    (arXiv 2605.23988): attention from CLS in the last device block, averaged over the heads. The merged token is the
    attention-weighted mean of the others, as there.
    """

    name = "attention_mass"
    examples = ({"mass": 0.5}, {"mass": 0.9, "merge": "none"}, {"mass": 1.0}, {"mass": 0.6, "proportional": True})

    mass: float = Field(gt=0, le=1)
    """At 1 every patch is kept."""
    merge: Literal["attention", "none"] = "attention"
    """The others in one token, or left out."""
    proportional: bool = False
    """Send with each token how many patches it stands for, so that the server's attention weighs it by that."""

    @model_validator(mode="after")
    def _something_to_weigh(self) -> "AttentionMass":
        if self.proportional and self.merge == "none":
            raise ValueError("proportional needs a merged token; without one every token stands for one patch")
        return self

    @override
    def n_transmitted(self, n_patches: int) -> int | None:
        return None

    @override
    def reduce(self, seen: Seen, generator: torch.Generator) -> Reduced:
        tokens, attention = seen.tokens.values, attention_of(self, seen)[:, :, 1:].mean(dim=1)
        batch, n_patches = attention.shape
        order = attention.argsort(dim=1, descending=True, stable=True)
        held = attention.gather(1, order).double().cumsum(dim=1)
        # A patch is kept while those before it do not hold enough; rounding must not keep one more at the very end.
        enough = self.mass * held[:, -1:] * (1 - 1e-6)
        n_kept = 1 + (held[:, :-1] < enough).sum(dim=1)
        chosen = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, order, _first(n_kept, n_patches))
        kept = chosen.long().argsort(dim=1, descending=True, stable=True)[:, : int(n_kept.max())]
        kept = kept.masked_fill(~_first(n_kept, kept.shape[1]), -1)
        merged = (n_kept < n_patches) & (self.merge != "none")
        discarded = ~chosen & merged.unsqueeze(1)
        weights = torch.where(discarded, attention, 0)
        # Softmax can underflow to 0 on every discarded patch; they then count the same.
        weights = torch.where(weights.sum(dim=1, keepdim=True) > 0, weights, discarded.float())
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).tiny)

        lengths = 1 + n_kept + merged
        longest = int(lengths.max())
        rows = torch.arange(batch, device=tokens.device).unsqueeze(1)
        patches = tokens[:, 1:]
        values = torch.cat([tokens[:, :1], patches[rows, kept.clamp_min(0)]], dim=1)
        values = values * _first(1 + n_kept, values.shape[1]).unsqueeze(2)
        values = pad(values, (0, 0, 0, longest - values.shape[1]))
        place = one_hot((lengths - 1).long(), longest).to(tokens.dtype) * merged.unsqueeze(1)
        values = values + place.unsqueeze(2) * (weights.to(tokens.dtype).unsqueeze(1) @ patches)
        sizes = None
        if self.proportional:
            sizes = _first(lengths, longest).float() + place.float() * (n_patches - n_kept - 1).unsqueeze(1)
        return Reduced(Tokens(values, lengths, sizes), kept, weights)


def _first(counts: Int[Tensor, " batch"], width: int) -> Bool[Tensor, "batch width"]:
    """True at the first `counts` places of each row."""
    return torch.arange(width, device=counts.device) < counts.unsqueeze(1)
