"""Peak memory of a device and of the server while they train, part by part, the same on every machine.

What autograd keeps for the backward pass is not estimated but read off the modules that train, through
`torch.autograd.graph.saved_tensors_hooks`. They run on fake CPU tensors (torch's FakeTensorMode: sizes and types,
no data), so ViT-L costs no memory, and torch picks operators and autocast rules as it does for real CPU tensors; plain
meta tensors would follow rules of their own. The attention kernel is named, never picked by the machine.

What is counted stands at the end of a forward pass of the largest mini-batch, from the second step on: the previous
step's adapter gradients are still there, and on a split device the gradient at the cut has just arrived. Not counted:
what backward holds in passing (up to two tensors of batch x tokens x MLP width: a fifth more on a device with two
blocks), frames, the allocator's slack, and what a runtime such as CUDA takes for itself.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from tsflora.compression import TokenReducer
from tsflora.config import Config
from tsflora.edge.deployment import Deployment
from tsflora.edge.shape import VitShape
from tsflora.models import LoraConfig, WholeModel, add_lora, split
from tsflora.seeding import torch_generator

_FLOAT_BYTES, _LABEL_BYTES = 4, 8
_KERNELS = {"fused": SDPBackend.FLASH_ATTENTION, "unfused": SDPBackend.MATH}


class MemoryConfig(Config):
    """How training is done, where that decides about memory and the deployment does not say it."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 is autocast over fp32 weights; its bf16 copies of weights are kept for backward, and counted there."""
    attention: Literal["fused", "unfused"] = "fused"
    """The kernel. `fused` (flash; what GPUs run) keeps queries, keys, values, outputs and one number for each row;
    `unfused` (what training here runs on CPUs) keeps the N x N attention of each head instead of outputs and rows."""
    optimizer_buffers: int = Field(default=1, ge=0)
    """Tensors of optimiser state for each trained one: 1 for SGD with momentum, 2 for AdamW, 0 for plain SGD."""
    participants: int = Field(default=10, ge=1)
    """Devices whose adapters the server collects before it averages them."""


@dataclass(frozen=True)
class Memory:
    """Bytes of each part at the peak."""

    weights_bytes: int = 0
    """Frozen weights, fp32."""
    adapters_bytes: int = 0
    """Trained tensors (LoRA and head); on the server also the device adapters that it hands out and collects."""
    gradients_bytes: int = 0
    """Of the trained tensors; on a split device also the gradient at the cut."""
    optimizer_bytes: int = 0
    activations_bytes: int = 0
    """What autograd keeps for backward, and the outputs of the forward pass."""
    inputs_bytes: int = 0
    """One mini-batch: fp32 images or fp32 tokens, and its labels. Not the data set it is drawn from."""

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(astuple(self))

    @property
    def total_mib(self) -> float:
        """All parts together, in MiB (2^20 bytes)."""
        return self.total_bytes / 2**20


def device_memory(deployment: Deployment, config: MemoryConfig | None = None) -> Memory:
    """Peak memory of one device. A `central` device holds a batch of images and no model.

    Raises:
        ConfigError: a LoRA target that the model does not have.
    """
    config = config or MemoryConfig()
    images_bytes = _images_bytes(deployment)
    if deployment.placement == "central":
        return Memory(inputs_bytes=images_bytes)
    if deployment.placement == "split":
        tokens_bytes = _tokens_bytes(deployment)
        return _training(deployment, "device", config, images_bytes, gradient_at_cut_bytes=tokens_bytes)
    return _training(deployment, "whole", config, images_bytes)


def server_memory(deployment: Deployment, config: MemoryConfig | None = None) -> Memory:
    """Peak memory of the server, which trains on one mini-batch at a time (SplitFed-v2, arXiv 2004.12088).

    `split`: one server part; `central`: the whole model; `federated`: adapters only; `local`: there is no server.

    Raises:
        ConfigError: a LoRA target that the model does not have.
    """
    config = config or MemoryConfig()
    # One adapter that is handed out, and one from each participant until they are averaged.
    exchanged_bytes = (1 + config.participants) * _FLOAT_BYTES * deployment.adapter_entries
    if deployment.placement == "local":
        return Memory()
    if deployment.placement == "federated":
        return Memory(adapters_bytes=exchanged_bytes)
    if deployment.placement == "central":
        return _training(deployment, "whole", config, _images_bytes(deployment))
    inputs_bytes = _tokens_bytes(deployment) + _labels_bytes(deployment)
    return _training(deployment, "server", config, inputs_bytes, exchanged_bytes=exchanged_bytes)


def kept_bytes(forward: Callable[[], Sequence[Tensor]], exclude: Iterable[Tensor] = ()) -> int:
    """Bytes that `forward` leaves behind: tensors kept for backward and the ones it returns, each storage once.

    Storages of `exclude` (weights, inputs) are not counted. A view counts as the whole storage that it keeps alive.
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


def forward_bytes(
    model: Callable[[Tensor], Any],
    exclude: Iterable[Tensor],
    inputs: Float[Tensor, "batch ..."],
    labels: Int[Tensor, " batch"],
    *,
    reducer: TokenReducer | None,
    precision: Literal["fp32", "bf16"] = "fp32",
    attention: Literal["fused", "unfused"] = "fused",
) -> int:
    """`kept_bytes` of a training step's forward half on CPU tensors, real or fake.

    With a `reducer`, `model` is a device part and its tokens are reduced as before an upload; without, `model` yields
    class logits and the loss follows.
    """

    def forward() -> Sequence[Tensor]:
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16")
        with autocast, sdpa_kernel(_KERNELS[attention]):
            output = model(inputs)
        if reducer is None:
            return output, cross_entropy(output.float(), labels)
        activations, cls_attention = output[0].float(), output[1]
        reduced = reducer.reduce(activations, cls_attention, torch_generator("memory"))
        return activations, cls_attention, reduced.tokens, reduced.kept, reduced.merge_weights

    return kept_bytes(forward, exclude)


Part = Literal["device", "server", "whole"]


def _training(
    deployment: Deployment,
    part: Part,
    config: MemoryConfig,
    inputs_bytes: int,
    gradient_at_cut_bytes: int = 0,
    exchanged_bytes: int = 0,
) -> Memory:
    vit, lora, cut, tokens = deployment.vit, deployment.lora, deployment.cut, deployment.tokens
    module = _parts(vit, lora, cut)[part]
    trained_bytes = _nbytes(p for p in module.parameters() if p.requires_grad)
    frozen_bytes = _nbytes(p for p in module.parameters() if not p.requires_grad) + _nbytes(module.buffers())
    activations_bytes = _activations_bytes(
        vit, lora, cut, part, _batch_size(deployment), tokens, config.precision, config.attention
    )
    return Memory(
        weights_bytes=frozen_bytes,
        adapters_bytes=trained_bytes + exchanged_bytes,
        gradients_bytes=trained_bytes + gradient_at_cut_bytes,
        optimizer_bytes=trained_bytes * config.optimizer_buffers,
        activations_bytes=activations_bytes,
        inputs_bytes=inputs_bytes,
    )


def _images_bytes(deployment: Deployment) -> int:
    """With their labels."""
    pixels = 3 * deployment.vit.image_size**2
    return _FLOAT_BYTES * _batch_size(deployment) * pixels + _labels_bytes(deployment)


def _tokens_bytes(deployment: Deployment) -> int:
    return _FLOAT_BYTES * _batch_size(deployment) * deployment.n_tokens * deployment.vit.dim


def _labels_bytes(deployment: Deployment) -> int:
    return _LABEL_BYTES * _batch_size(deployment)


def _batch_size(deployment: Deployment) -> int:
    return max(deployment.workload.batches)


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


@lru_cache(maxsize=32)
def _parts(vit: VitShape, lora: LoraConfig, cut: int) -> dict[Part, nn.Module]:
    """The modules that train, on the meta device: shapes without storage."""
    model = vit.without_weights()
    for block in model.blocks:
        block.attn.fused_attn = True  # timm's default depends on an environment variable
    add_lora(model, lora, seed=0)
    device, server = split(model, cut)
    return {"device": device, "server": server, "whole": WholeModel(device, server)}


@lru_cache(maxsize=1024)
def _activations_bytes(
    vit: VitShape,
    lora: LoraConfig,
    cut: int,
    part: Part,
    batch: int,
    tokens: TokenReducer,
    precision: Literal["fp32", "bf16"],
    attention: Literal["fused", "unfused"],
) -> int:
    module = _parts(vit, lora, cut)[part]
    with FakeTensorMode():
        weights = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]
        }
        inputs, labels = _batch(vit, part, batch, tokens)
        return forward_bytes(
            lambda batch: functional_call(module, weights, (batch,)),
            [*weights.values(), inputs, labels],
            inputs,
            labels,
            reducer=tokens if part == "device" else None,
            precision=precision,
            attention=attention,
        )


def _batch(vit: VitShape, part: Part, batch: int, tokens: TokenReducer) -> tuple[Tensor, Tensor]:
    labels = torch.empty(batch, dtype=torch.int64)
    if part == "server":
        return torch.empty(batch, tokens.n_transmitted(vit.n_patches), vit.dim, requires_grad=True), labels
    return torch.empty(batch, 3, vit.image_size, vit.image_size), labels
