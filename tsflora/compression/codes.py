"""From tensors to whole numbers: what quantizers that send codes share."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tsflora.wire.bits import code_dtype

Rounding = Literal["stochastic", "nearest"]


def as_rows(x: Float[Tensor, "..."]) -> Float[Tensor, "rows channels"]:
    """The tensor as a matrix of vectors along its last dimension (a scalar as 1 x 1)."""
    return x.reshape(-1, x.shape[-1] if x.ndim else 1)


def rounded(
    position: Float[Tensor, "rows channels"], rounding: Rounding, generator: torch.Generator
) -> Float[Tensor, "rows channels"]:
    """Whole numbers for positions between them, which are overwritten: the nearest ones, or unbiased random ones."""
    if rounding == "nearest":
        return position.round_()
    lower = position.floor()
    upper = position.sub_(lower)
    return lower.add_(torch.rand(lower.shape, generator=generator, device=lower.device) < upper)


def as_codes(values: Tensor, bits: int) -> np.ndarray:
    """Whole numbers below 2^bits as unsigned codes."""
    dtype = torch.uint8 if code_dtype(bits) is np.uint8 else torch.uint16
    return values.to(dtype).cpu().numpy()


def describe(x: Tensor) -> str:
    """The tensor, for an error line."""
    return f"the tensor of shape {tuple(x.shape)} to be sent"
