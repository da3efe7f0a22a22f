"""Bytes on the wire of one device in one round, from shapes alone: no tensor is built.

`traffic` counts what `tsflora.federation.link` counts on the frames of a real round, to the byte: every header, range
and checksum is in. A size that depends on the data is not guessed but refused. `paper_uplink_mib` counts as Table I of
arXiv 2605.23988 does.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tsflora.analysis.costs.deployment import Deployment, MeasuredError, entries
from tsflora.analysis.units import FULL_BITS, MIB
from tsflora.compression import Kind, Layout, TokenCodec, header_bytes, token_reducers
from tsflora.config import Component
from tsflora.errors import ConfigError
from tsflora.wire import Format, label_bits


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

    What the plan says is what is counted: an adapter goes out once and comes back once; tokens are one frame of
    activations and one of labels per mini-batch, and one of gradients comes back where the plan has one. Averaging
    within a round (`split_lora` in its periodic mode) sends further adapters, and what codecs tell their senders at the
    start of a round is not counted.

    Where samples are uploaded it is a device's first round, in which it hands over all of them as one frame, with one
    of labels; later rounds cost nothing. `image_shape` (height, width, channels) is the size in which images travel;
    None takes the backbone's input, in colour.

    Raises:
        MeasuredError: a size that depends on the data.
        ConfigError: a LoRA target that no block has, or `image_shape` with a device that sends no images.
    """
    vit, plan, work = deployment.vit, deployment.plan, deployment.workload
    if image_shape is not None and plan.uploads != "samples":
        raise ConfigError(f"image_shape: given {image_shape}, and the plan uploads {plan.uploads}; allowed: 'samples'")
    up: Counter[str] = Counter()
    down: Counter[str] = Counter()
    if plan.images is not None:
        pixels = image_shape or (vit.image_size, vit.image_size, 3)
        _count(up, Kind.IMAGES, _known(plan.images.layouts((work.n_samples, *pixels)), plan.images, "images"))
        _count(up, Kind.LABELS, _labels(work.n_samples, vit.n_classes))
    if plan.adapter is not None:
        adapter = _known(plan.adapter.layouts(deployment.adapter_shapes), plan.adapter, "adapters")
        for direction in (up, down):
            _count(direction, Kind.ADAPTERS, adapter)
    for batch, times in Counter(work.batches if plan.codec is not None else ()).items():
        _count(up, Kind.ACTIVATIONS, activation_layouts(deployment, batch), times)
        _count(up, Kind.LABELS, _labels(batch, vit.n_classes), times)
        if plan.gradient is not None:
            _count(down, Kind.GRADIENTS, gradient_layouts(deployment, batch), times)
    return Traffic(dict(sorted(up.items())), dict(sorted(down.items())))


def activation_layouts(deployment: Deployment, batch: int) -> Sequence[Layout]:
    """The sections of a mini-batch's frame of activations; none where the plan sends no tokens.

    Raises:
        MeasuredError: their size depends on the data.
    """
    codec, vit = deployment.plan.codec, deployment.vit
    deployment.refuse_merging("the size of activations")
    return () if codec is None else _known(codec.layouts(batch, vit.n_patches, vit.dim), codec, "activations")


def gradient_layouts(deployment: Deployment, batch: int) -> Sequence[Layout]:
    """The sections of the frame that comes back for a mini-batch; none where nothing does.

    Raises:
        MeasuredError: their size depends on the data.
    """
    gradient = deployment.plan.gradient
    if gradient is None:
        return ()
    return _known(gradient.layouts((batch, deployment.n_tokens, deployment.vit.dim)), gradient, "gradients")


def payload_bits(layouts: Sequence[Layout]) -> int:
    """Bits of all entries that are not side information, before they are filled up to bytes."""
    return sum(layout.entries * layout.bits for layout in layouts if not layout.side)


def _known(layouts: Sequence[Layout] | None, codec: Component, what: str) -> Sequence[Layout]:
    """The layouts, if all that their size depends on is in them."""
    try:
        if layouts is not None and all(layout.body_bytes > 0 for layout in layouts):
            return layouts
    except ValueError:  # a section that has no length before there is data
        pass
    raise MeasuredError(f"the size of {what} in codec {codec.name!r}")


def _labels(count: int, n_classes: int) -> list[Layout]:
    return [Layout((count,), Format.PACKED, label_bits(n_classes))]


def _count(direction: Counter[str], kind: Kind, layouts: Sequence[Layout], times: int = 1) -> None:
    """Add this many frames."""
    direction[kind.name.lower()] += times * sum(layout.body_bytes for layout in layouts if not layout.side)
    direction["headers"] += times * header_bytes(layouts)


def paper_uplink_mib(deployment: Deployment) -> float:
    """Uplink payload of one device in one round as Table I of arXiv 2605.23988 counts it, in MiB.

    Activations at entries * bits / 8 (eq. (9) over a round) and, where an adapter travels, its LoRA factors in fp32; no
    labels, ranges, headers or head. Samples that are uploaded count once, as fp32 pixels of the backbone's input. That
    the table counts so is inferred from its numbers: it prints 61.3, 233.5 and 15.8 where this gives 61.22, 233.48 and
    15.75, but 229.2 for 229.69.

    Raises:
        MeasuredError: the size of activations depends on the data.
    """
    vit, plan, work = deployment.vit, deployment.plan, deployment.workload
    bits = sum(payload_bits(activation_layouts(deployment, batch)) for batch in work.batches)
    if plan.adapter is not None:
        bits += entries(deployment.lora_shapes) * FULL_BITS
    if plan.uploads == "samples":
        bits += work.n_samples * 3 * vit.image_size**2 * FULL_BITS
    return bits / 8 / MIB


def token_readings(deployment: Deployment) -> dict[str, Deployment]:
    """The two ways to read "30 tokens", as two deployments by what they say, to print any cost of both.

    The first is the deployment itself: 30 tokens are transmitted, CLS and merged token among them. In the second 30
    patches are kept and CLS and merged token come on top: 32 are transmitted. A reducer without such a number, or with
    one that leaves no patch to merge, can be read in the first way only.

    Raises:
        MeasuredError: the number of tokens differs by sample.
    """
    readings = {f"{deployment.n_tokens} transmitted": deployment}
    codec = deployment.plan.codec
    if not isinstance(codec, TokenCodec):
        return readings
    options = codec.tokens.model_dump()
    n_kept = options.pop("n_tokens", None)
    if n_kept is not None:
        try:
            tokens = token_reducers.build({**options, "K": n_kept})
            plan = deployment.plan.model_copy(update={"codec": codec.model_copy(update={"tokens": tokens})})
            other = replace(deployment, plan=plan)
        except (ConfigError, ValueError):  # more than the model has, or a plug-in that has no K
            return readings
        if other.n_tokens <= deployment.vit.n_patches:
            readings[f"{n_kept} kept, {other.n_tokens} transmitted"] = other
    return readings
