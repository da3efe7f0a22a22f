"""Multiply-accumulates of one device's work in one round, on the device and on the server, forward and backward.

Counted is what the modules do in matrix products, as `torch.utils.flop_counter` counts it: patch embedding, linear
layers with their LoRA branches, attention, head, and the weighted sum of merged tokens. Everything elementwise
(normalisation, softmax, GELU, loss, optimiser, quantiser) and evaluation are left out.

One image of ν tokens costs a block 12νD² + 2ν²D in the frozen forward pass (D wide, MLP of 4D): the model behind the
overheads of TSFLora (arXiv 2605.23988), section III-C, which states them in big-O only.
"""

from dataclasses import astuple, dataclass

from tsflora.analysis.costs.deployment import Deployment
from tsflora.analysis.costs.shape import VitShape
from tsflora.compression import TokenCodec
from tsflora.compression.tokens import SelectAndMerge


@dataclass(frozen=True)
class Compute:
    """MACs by side and direction; a FLOP count is twice that."""

    device_forward_macs: int = 0
    device_backward_macs: int = 0
    server_forward_macs: int = 0
    server_backward_macs: int = 0

    @property
    def device_macs(self) -> int:
        """On the device, both directions."""
        return self.device_forward_macs + self.device_backward_macs

    @property
    def server_macs(self) -> int:
        """On the server, both directions."""
        return self.server_forward_macs + self.server_backward_macs

    @property
    def total_macs(self) -> int:
        """On both sides."""
        return self.device_macs + self.server_macs

    @property
    def device_flops(self) -> int:
        """On the device: a multiplication and an addition for each MAC."""
        return 2 * self.device_macs

    @property
    def server_flops(self) -> int:
        """On the server, likewise."""
        return 2 * self.server_macs

    @property
    def total_flops(self) -> int:
        """On both sides, likewise."""
        return 2 * self.total_macs


@dataclass(frozen=True)
class _Pass:
    """MACs of one image through some modules."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: "_Pass") -> "_Pass":
        return _Pass(self.forward + other.forward, self.backward + other.backward)


def compute(deployment: Deployment) -> Compute:
    """MACs of one device's round: `compute_per_image` times the images it trains on, every epoch's.

    Raises:
        ConfigError: a LoRA target that no block has.
    """
    n_images = sum(deployment.workload.batches)
    return Compute(*(n_images * macs for macs in astuple(compute_per_image(deployment))))


def compute_per_image(deployment: Deployment) -> Compute:
    """MACs of training on one image.

    The backward pass has gradients with respect to the inputs of frozen matrices, and to inputs and weights of LoRA and
    head. Before the first LoRA branch of the first trained block nothing needs a gradient, unless one goes back for the
    input: a server's to its devices. Whoever runs the front also computes the CLS row of its last block's attention,
    whatever the reducer; a device that gets no gradient back runs it forward only.

    Raises:
        MeasuredError: the number of tokens behind the cut differs by sample.
        ConfigError: a LoRA target that no block has.
    """
    plan, front = deployment.plan, _front(deployment)
    whole = front + _back(deployment, deployment.vit.n_patches + 1, trained_before=True)
    behind = _back(deployment, deployment.n_tokens, trained_before=plan.gradient is not None)
    device = {"nothing": _Pass(), "front": front + _merge(deployment), "everything": whole}[plan.runs]
    server = {"nothing": _Pass(), "tokens": behind, "samples": whole}[plan.uploads]
    if not plan.trains:
        device = _Pass(device.forward)
    return Compute(device.forward, device.backward, server.forward, server.backward)


def backbone_forward_macs(deployment: Deployment) -> tuple[int, int]:
    """MACs of one image through the frozen backbone in front of the cut and behind it, whoever runs them.

    This is the part that does not come with training: no LoRA, head, CLS row or merge. Behind the cut the sequence has
    `deployment.n_tokens` tokens.

    Raises:
        MeasuredError: the number of tokens behind the cut differs by sample.
    """
    vit, cut = deployment.vit, deployment.cut
    front = embedding_macs(vit) + cut * block_macs(vit, vit.n_patches + 1)
    return front, (vit.n_blocks - cut) * block_macs(vit, deployment.n_tokens)


def embedding_macs(vit: VitShape) -> int:
    """MACs of one colour image's patch embedding, M · D · 3p²."""
    return vit.n_patches * vit.dim * 3 * vit.patch_size**2


def block_macs(vit: VitShape, n_tokens: int) -> int:
    """MACs of one image's forward pass through one frozen block: its linear layers and its attention."""
    linear = sum(inputs * outputs for inputs, outputs in vit.linear_layers.values())
    return n_tokens * linear + 2 * n_tokens**2 * vit.dim


def _front(deployment: Deployment) -> _Pass:
    vit, n_all = deployment.vit, deployment.vit.n_patches + 1
    cls_row = n_all * vit.dim
    return _Pass(embedding_macs(vit) + cls_row) + _blocks(deployment, deployment.cut, n_all, trained_before=False)


def _back(deployment: Deployment, n_tokens: int, trained_before: bool) -> _Pass:
    vit, head = deployment.vit, deployment.vit.dim * deployment.vit.n_classes
    return _blocks(deployment, vit.n_blocks - deployment.cut, n_tokens, trained_before) + _Pass(head, 2 * head)


def _blocks(deployment: Deployment, n_blocks: int, n_tokens: int, trained_before: bool) -> _Pass:
    """One image through consecutive blocks; with `trained_before` their input needs a gradient."""
    first = _block(deployment, n_tokens, trained_before)
    other = _block(deployment, n_tokens, trained_before=True)
    return first + _Pass((n_blocks - 1) * other.forward, (n_blocks - 1) * other.backward)


def _block(deployment: Deployment, n_tokens: int, trained_before: bool) -> _Pass:
    total, needs_gradient = _Pass(), trained_before
    for name, (inputs, outputs) in deployment.vit.linear_layers.items():
        frozen = n_tokens * inputs * outputs
        total += _Pass(frozen, frozen * needs_gradient)
        if name in deployment.lora_layers:
            down, up = n_tokens * inputs * deployment.lora.rank, n_tokens * deployment.lora.rank * outputs
            # Both weight gradients and B's input gradient always; A's input gradient if anyone wants it.
            total += _Pass(down + up, down + 2 * up + down * needs_gradient)
            needs_gradient = True
        if name == "qkv":
            product = n_tokens**2 * deployment.vit.dim
            # Fused attention keeps no scores: its backward pass computes them again, beside four gradient products.
            total += _Pass(2 * product, 5 * product * needs_gradient)
    return total


def _merge(deployment: Deployment) -> _Pass:
    """The weighted sum of all patches, kept ones at weight 0; a codec that is no `SelectAndMerge` counts as free."""
    vit, codec = deployment.vit, deployment.plan.codec
    tokens = codec.tokens if isinstance(codec, TokenCodec) else None
    merges = isinstance(tokens, SelectAndMerge) and tokens.merge != "none" and deployment.n_tokens <= vit.n_patches
    macs = vit.n_patches * vit.dim if merges else 0
    return _Pass(macs, macs)
