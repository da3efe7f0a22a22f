"""What the forward half of a training step leaves in memory, read off the modules that train.

`torch.autograd.graph.saved_tensors_hooks` sees what autograd keeps for the backward pass. The modules run on fake CPU
tensors (torch's FakeTensorMode: sizes and types, no data), so ViT-L costs no memory, and torch picks operators and
autocast rules as it does for real CPU tensors; plain meta tensors would follow rules of their own. The attention kernel
is named, never picked by the machine.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from tsflora.analysis.costs.shape import VitShape
from tsflora.compression import Seen, TokenReducer, Tokens
from tsflora.models import LoraConfig, WholeModel, add_lora, split
from tsflora.seeding import torch_generator

Precision = Literal["fp32", "bf16"]
Attention = Literal["fused", "unfused"]
Part = Literal["front", "back", "whole"]

_KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "unfused": SDPBackend.MATH}


def kept_bytes(forward: Callable[[], Sequence[Tensor]], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that `forward` leaves behind: tensors kept for backward and the ones it returns, each storage once.

    Storages of `exclude` (weights, inputs) are not counted. A view counts as the whole storage that it keeps alive.
    Whether the caller computes gradients plays no part, but `forward` may turn them off itself.
    """
    excluded = {StorageWeakRef(tensor.untyped_storage()) for tensor in exclude}
    found: dict[StorageWeakRef, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in excluded:
            found[reference] = storage.nbytes()
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = forward()
    for output in outputs:
        note(output)
    return sum(found.values())


def step_bytes(
    model: Callable[[Any], Float[Tensor, "batch classes"]],
    exclude: Iterable[Tensor],
    inputs: Float[Tensor, "batch ..."] | Tokens,
    labels: Int[Tensor, " batch"],
    precision: Precision = "fp32",
    attention: Attention = "fused",
) -> int:
    """`kept_bytes` of a training step's forward half on CPU tensors, real or fake, up to the loss."""

    def forward() -> Sequence[Tensor]:
        with _as_trained(precision, attention):
            output = model(inputs)
        return output, cross_entropy(output.float(), labels)

    return kept_bytes(forward, exclude)


def front_bytes(
    front: Callable[[Tensor], Seen],
    exclude: Iterable[Tensor],
    images: Float[Tensor, "batch 3 size size"],
    reducer: TokenReducer | None = None,
    trains: bool = True,
    precision: Precision = "fp32",
    attention: Attention = "fused",
) -> int:
    """The same of a front, whose tokens are then reduced as before an upload; without gradients where it never trains.

    No `reducer`: what a codec makes of the tokens is not known, and not counted.
    """

    def forward() -> Sequence[Tensor]:
        with torch.set_grad_enabled(trains):
            with _as_trained(precision, attention):
                seen = front(images)
            seen = seen.float()
            outputs = [seen.tokens.values, *([] if seen.cls_attention is None else [seen.cls_attention])]
            if reducer is None:
                return outputs
            reduced = reducer.reduce(seen, torch_generator("memory"))
            return [*outputs, reduced.tokens.values, reduced.kept, reduced.merge_weights]

    return kept_bytes(forward, exclude)


@contextlib.contextmanager
def _as_trained(precision: Precision, attention: Attention) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"), sdpa_kernel(_KERNELS[attention]):
        yield


@lru_cache(maxsize=32)
def parts(vit: VitShape, lora: LoraConfig, cut: int) -> dict[Part, nn.Module]:
    """The modules that run, on the meta device: shapes without storage."""
    model = vit.without_weights()
    for block in model.blocks:
        block.attn.fused_attn = True  # timm's default depends on an environment variable
    add_lora(model, lora, seed=0)
    front, back = split(model, cut)
    return {"front": front, "back": back, "whole": WholeModel(front, back)}


@lru_cache(maxsize=1024)
def part_bytes(
    vit: VitShape,
    lora: LoraConfig,
    cut: int,
    part: Part,
    batch: int,
    n_tokens: int,
    gradient_at_cut: bool,
    reducer: TokenReducer | None,
    precision: Precision,
    attention: Attention,
) -> int:
    """`front_bytes` or `step_bytes` of a part on fake tensors: of `batch` images or, behind the cut, `n_tokens` each.

    Without a gradient at the cut, nothing before it is kept for backward. The whole model has no gradient there.
    """
    module = parts(vit, lora, cut)[part]
    with FakeTensorMode():
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }

        def run(inputs: object) -> Any:
            return functional_call(module, weights, (inputs,))

        images = torch.empty(batch, 3, vit.image_size, vit.image_size)
        tokens = torch.empty(batch, n_tokens, vit.dim, requires_grad=gradient_at_cut)
        labels = torch.empty(batch, dtype=torch.int64)
        exclude = [*weights.values(), images, tokens, labels]
        if part == "front":
            return front_bytes(run, exclude, images, reducer, gradient_at_cut, precision, attention)
        inputs = Tokens(tokens) if part == "back" else images
        return step_bytes(run, exclude, inputs, labels, precision, attention)
