"""A token reducer for tsflora: the patches nearest to a point of the picture."""

import math

import torch
from pydantic import Field
from typing_extensions import override

from tsflora.compression import token_reducers
from tsflora.compression.tokens import SelectAndMerge
from tsflora.errors import ConfigError


@token_reducers.register  # so that the file also works by itself, under `plugins` in a params.yaml
class Nearest(SelectAndMerge):
    """Score = nearness to a point of the picture, whatever it shows."""

    name = "nearest"
    examples = ({"n_tokens": 6}, {"n_tokens": 4, "row": 0.0, "column": 1.0, "merge": "none"})

    row: float = Field(default=0.5, ge=0, le=1)
    """Of the point, from 0, the upper edge, to 1, the lower one."""
    column: float = Field(default=0.5, ge=0, le=1)
    """Of the point, from 0, the left edge, to 1, the right one."""

    @override
    def scores(self, tokens, cls_attention, generator):
        """Minus the squared distance from each patch's middle, in picture sides; shape (batch, patches)."""
        batch, n_patches = len(tokens), tokens.shape[1] - 1
        side = math.isqrt(n_patches)
        if side**2 != n_patches:
            raise ConfigError(f"nearest: patches have to fill a square; given: {n_patches}")
        middles = (torch.arange(side, device=tokens.device) + 0.5) / side
        squared = (middles - self.row).square().unsqueeze(1) + (middles - self.column).square()
        return -squared.flatten().expand(batch, n_patches)
