"""Bytes on the wire of one device in one round, from shapes alone: no tensor is built.

`traffic` counts what `tsflora.federation.exchange` counts on the frames of a real round, to the byte: every header,
range and checksum is in. `paper_uplink_mib` counts as Table I of arXiv 2605.23988 does.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tsflora.compression import Kind, Layout, header_bytes, token_reducers
from tsflora.edge.deployment import Deployment
from tsflora.errors import ConfigError
from tsflora.wire import Format, label_bits

_MIB = 2**20
_FULL_BITS = 32


@dataclass(frozen=True)
class Traffic:
    """Bytes of one device in one round by kind (`tsflora.records.KINDS`); what is not sent is left out."""

    uplink: dict[str, int]
    downlink: dict[str, int]

    @property
    def uplink_bytes(self) -> int:
        """From the device, headers included."""
        return sum(self.uplink.values())

    @property
    def downlink_bytes(self) -> int:
        """To the device, headers included."""
        return sum(self.downlink.values())

    @property
    def total_bytes(self) -> int:
        """Both directions."""
        return self.uplink_bytes + self.downlink_bytes


def traffic(deployment: Deployment, image_shape: tuple[int, int, int] | None = None) -> Traffic:
    """Bytes of one device in one round; TSFLora (arXiv 2605.23988), section II-B, with eq. (9) inside.

    A device gets the adapter once and returns it once, and in `split` exchanges one frame each of activations, labels
    and gradients per mini-batch. Averaging within a round (`split_lora` in its periodic mode) sends further adapters.

    `central` is a device's first round, in which it hands over all its images as one frame of raw uint8 pixels, with
    one of labels; later rounds cost nothing, and JPEG files have no size before there are images. `image_shape`
    (height, width, channels) is the size in which images travel; None takes the backbone's input, in colour.

    Raises:
        ConfigError: a LoRA target that no block has, or `image_shape` with a device that sends no images.
    """
    vit, placement, work = deployment.vit, deployment.placement, deployment.workload
    if image_shape is not None and placement != "central":
        raise ConfigError(f"image_shape: given {image_shape} with placement {placement!r}; allowed with 'central' only")
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    if placement == "central":
        pixels = (work.n_samples, *(image_shape or (vit.image_size, vit.image_size, 3)))
        _count(up, Kind.IMAGES, [Layout(pixels, Format.PACKED, 8)])
        _count(up, Kind.LABELS, _labels(work.n_samples, vit.n_classes))
    if placement in ("federated", "split"):
        shapes, quantizer = deployment.adapter_shapes, deployment.adapter_quantizer
        for direction in (up, down):
            _count(direction, Kind.ADAPTERS, [layout for shape in shapes for layout in quantizer.layouts(shape)])
    if placement == "split":
        for batch in work.batches:
            tokens = (batch, deployment.n_tokens, vit.dim)
            _count(up, Kind.ACTIVATIONS, deployment.quantizer.layouts(tokens))
            _count(up, Kind.LABELS, _labels(batch, vit.n_classes))
            _count(down, Kind.GRADIENTS, deployment.gradient_quantizer.layouts(tokens))
    return Traffic(dict(sorted(up.items())), dict(sorted(down.items())))


def _labels(count: int, n_classes: int) -> list[Layout]:
    return [Layout((count,), Format.PACKED, label_bits(n_classes))]


def _count(direction: Counter[str], kind: Kind, layouts: Sequence[Layout]) -> None:
    """Add one frame."""
    direction[kind.name.lower()] += sum(layout.body_bytes for layout in layouts if not layout.side)
    direction["headers"] += header_bytes(layouts)


def paper_uplink_mib(deployment: Deployment) -> float:
    """Uplink payload of one device in one round as Table I of arXiv 2605.23988 counts it, in MiB.

    Activations at entries * bits / 8 (eq. (9) over a round) and the LoRA factors in fp32; no labels, ranges, headers or
    head. `central` sends every image once, as fp32 pixels of the backbone's input. That the table counts so is inferred
    from its numbers: it prints 61.3, 233.5 and 15.8 where this gives 61.22, 233.48 and 15.75, but 229.2 for 229.69.
    """
    vit, work = deployment.vit, deployment.workload
    if deployment.placement == "local":
        return 0.0
    if deployment.placement == "central":
        return work.n_samples * 3 * vit.image_size**2 * _FULL_BITS / 8 / _MIB
    bits = sum(math.prod(shape) for shape in deployment.lora_shapes) * _FULL_BITS
    if deployment.placement == "split":
        entries = sum(work.batches) * deployment.n_tokens * vit.dim
        bits += entries * deployment.quantizer.bits_per_entry
    return bits / 8 / _MIB


def token_readings(deployment: Deployment) -> dict[str, Deployment]:
    """The two ways to read "30 tokens", as two deployments by what they say, to print any cost of both.

    The first is the deployment itself: 30 tokens are transmitted, CLS and merged token among them. In the second 30
    patches are kept and CLS and merged token come on top: 32 are transmitted. A reducer without such a number, or with
    one that leaves no patch to merge, can be read in the first way only.
    """
    readings = {f"{deployment.n_tokens} transmitted": deployment}
    options = deployment.tokens.model_dump()
    n_kept = options.pop("n_tokens", None)
    if n_kept is not None:
        try:
            other = replace(deployment, tokens=token_reducers.build({**options, "K": n_kept}))
        except (ConfigError, ValueError):  # more than the model has, or a plug-in that has no K
            return readings
        if other.n_tokens <= deployment.vit.n_patches:
            readings[f"{n_kept} kept, {other.n_tokens} transmitted"] = other
    return readings
