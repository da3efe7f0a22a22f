"""A batch of token sequences, rectangular or of a length each, and what a front sees of its images."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of sequences. CLS comes first in each."""

    values: Float[Tensor, "batch longest dim"]
    """Where lengths differ, sequences are padded at the end with zeros."""
    lengths: Int[Tensor, " batch"] | None = None
    """Tokens of each sequence, at least 1; None: all are equally long."""
    sizes: Float[Tensor, "batch longest"] | None = None
    """How many patches each token stands for, at least 1; None: attention does not weigh them (see `bias`)."""

    @property
    def present(self) -> Bool[Tensor, "batch longest"] | None:
        """True where there is a token, False on padding; None where there is no padding."""
        if self.lengths is None:
            return None
        positions = torch.arange(self.values.shape[1], device=self.values.device)
        return positions < self.lengths.to(self.values.device).unsqueeze(1)

    def rows(self) -> Tensor:
        """What travels: `values`, or without padding (sum of lengths, dim). Differentiable."""
        present = self.present
        return self.values if present is None else self.values[present]

    def like(self, rows: Tensor) -> "Tokens":
        """The same sequences with other rows: decoded ones, or a gradient's."""
        present = self.present
        if present is None:
            return Tokens(rows, None, self.sizes)
        values = rows.new_zeros(*present.shape, rows.shape[-1])
        values[present] = rows
        return Tokens(values, self.lengths, self.sizes)

    def to(self, device: torch.device) -> "Tokens":
        """The same on `device`."""
        lengths, sizes = (None if part is None else part.to(device) for part in (self.lengths, self.sizes))
        return Tokens(self.values.to(device), lengths, sizes)

    def bias(self) -> Float[Tensor, "batch 1 1 longest"] | None:
        """What attention adds to the logits of each key; None where that is nothing.

        Minus infinity on padding; else the logarithm of the token's size: proportional attention, softmax(QK/sqrt(d) +
        log s) (ToMe, arXiv 2210.09461).
        """
        present = self.present
        if present is None and self.sizes is None:
            return None
        bias = torch.zeros(self.values.shape[:2], device=self.values.device)
        if self.sizes is not None:
            bias = self.sizes.clamp_min(1).log()
        if present is not None:
            bias = bias.masked_fill(~present, -torch.inf)
        return bias[:, None, None, :]


@dataclass(frozen=True)
class Seen:
    """What a front puts out for a batch of samples."""

    tokens: Tokens
    cls_attention: Float[Tensor, "batch heads longest"] | None = None
    """The CLS query's softmax attention in the front's last block, over all tokens; None where a front has none."""
    n_patches: int | None = None
    """Of a sample, where its tokens no longer say so; None: there is one beside CLS for each."""

    @property
    def most_patches(self) -> int:
        """How many patches a token can stand for."""
        return self.tokens.values.shape[1] - 1 if self.n_patches is None else self.n_patches

    def float(self) -> "Seen":
        """In float32, whatever precision the front ran in."""
        tokens = self.tokens
        return replace(self, tokens=Tokens(tokens.values.float(), tokens.lengths, tokens.sizes))
