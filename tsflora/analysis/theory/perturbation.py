"""What compression does to the gradient: Assumption 4 and Lemma 3 of TSFLora (arXiv 2605.23988).

The lemma compares gradients at the originals A and at the *scattered* sequence A^ (M + 1 tokens). What a server really
gets is the *transmitted* sequence (K + 2 tokens), in which attention meets the merged token once and not M - K times.
Its gradient is another function, which the lemma does not speak of: measure both, and call them by their names.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from tsflora.errors import ConfigError

Loss = Callable[[Float[Tensor, "batch tokens dim"]], Float[Tensor, ""]]
"""The server's forward pass and mean loss, from tokens of any number, CLS first."""


@dataclass(frozen=True)
class Gradient:
    """A batch's gradient with respect to both adapters, each as one vector."""

    server: Float64[Tensor, " server_entries"]
    device: Float64[Tensor, " device_entries"]
    """Empty where no device parameters were given."""

    def __sub__(self, other: "Gradient") -> "Gradient":
        return Gradient(self.server - other.server, self.device - other.device)

    @property
    def server_squared_norm(self) -> float:
        """||g||^2 of the server adapter alone."""
        return float(self.server.square().sum())

    @property
    def squared_norm(self) -> float:
        """||g||^2 of both adapters together: the gradient of Theorem 1."""
        return self.server_squared_norm + float(self.device.square().sum())


def gradient(
    loss: Loss,
    received: Float[Tensor, "batch tokens dim"],
    sent: Float[Tensor, "batch tokens dim"],
    server: Sequence[Tensor],
    device: Sequence[Tensor] = (),
) -> Gradient:
    """The gradient as split training computes it (Eqs. 3 and 4).

    The server's is taken at `received`, a leaf to it; the device's by sending the gradient at the cut back through the
    graph of `sent`, which is kept. Both have one shape. For g(A) both are A. For the scattered sequence they are A^
    and A, so that only the point changes at which the server's gradient is taken. For the transmitted one they are
    what was decoded and the reduced tokens it stands for: straight through the quantizer, as in training.
    """
    leaf = received.detach().requires_grad_()
    *of_server, at_cut = torch.autograd.grad(loss(leaf), [*server, leaf])
    of_device = torch.autograd.grad(sent, device, at_cut.to(sent.dtype), retain_graph=True) if device else ()
    return Gradient(_flat(of_server, leaf), _flat(of_device, leaf))


def _flat(tensors: Sequence[Tensor], like: Tensor) -> Float64[Tensor, " entries"]:
    return torch.cat([like.new_empty(0, dtype=torch.float64), *(each.detach().double().ravel() for each in tensors)])


def lipschitz_estimate(changes: Iterable[tuple[float, float]]) -> float:
    """L_A of Assumption 4, estimated from below: the largest ||g(A^) - g(A)|| / ||A^ - A|| among those seen.

    `changes` are pairs (||g(A^) - g(A)||^2, ||A^ - A||^2). A true Lipschitz constant is at least as large; a product
    with this one is a prediction, not a bound, away from the pairs it was taken from. Pairs without distortion say
    nothing and are left out.

    Raises:
        ConfigError: no pair with a distortion above 0.
    """
    ratios = [gradient_change / distortion for gradient_change, distortion in changes if distortion > 0]
    if not ratios:
        raise ConfigError("a Lipschitz constant needs compression that changes the tokens; every distortion given is 0")
    return math.sqrt(max(ratios))


def perturbation_bound(lipschitz: float, selection: float, rounding: float) -> float:
    """Lemma 3: Gamma^2 = L_A^2 (eps_sel + eps_q) >= E||g(A^) - g(A)||^2.

    Both errors are those of the scattered sequence, where the merged token's rounding error counts M - K times:
    `total_distortion` gives their sum. With the rounding error of the B (K + 2) D transmitted entries it would be too
    small.
    """
    return lipschitz**2 * (selection + rounding)
