"""Peak memory of a device and of the server while they train, part by part, the same on every machine.

What autograd keeps for the backward pass is not estimated but read off the modules that train, on tensors without data
(`tsflora.analysis.costs.activations`).

What is counted stands at the end of a forward pass of the largest mini-batch, from the second step on: the previous
step's adapter gradients are still there, and on a split device the gradient at the cut has just arrived. Not counted:
what a pass holds for a moment (backward up to two tensors of batch x tokens x MLP width: a fifth more on a device with
two blocks; forward without gradients the tensors of one block), what codecs remember, frames, the allocator's slack,
and what a runtime such as CUDA takes for itself.
"""

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace

from pydantic import Field
from torch import Tensor

from tsflora.analysis.costs.activations import Attention, Part, Precision, part_bytes, parts
from tsflora.analysis.costs.deployment import Deployment
from tsflora.compression import TokenCodec
from tsflora.config import Config

_FLOAT_BYTES, _LABEL_BYTES = 4, 8


class MemoryConfig(Config):
    """How training is done, where that decides about memory and the deployment does not say it."""

    precision: Precision = "fp32"
    """bf16 is autocast over fp32 weights; its bf16 copies of weights are kept for backward, and counted there."""
    attention: Attention = "fused"
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
    """Peak memory of one device. One that runs nothing holds a batch of images and no model.

    Raises:
        MeasuredError: the number of tokens that it sends differs by sample.
        ConfigError: a LoRA target that the model does not have.
    """
    config, plan = config or MemoryConfig(), deployment.plan
    images_bytes = _images_bytes(deployment)
    if plan.runs == "nothing":
        return Memory(inputs_bytes=images_bytes)
    memory = _running(deployment, "front" if plan.runs == "front" else "whole", plan.trains, config)
    at_cut_bytes = _tokens_bytes(deployment) if plan.gradient is not None else 0
    return replace(memory, gradients_bytes=memory.gradients_bytes + at_cut_bytes, inputs_bytes=images_bytes)


def server_memory(deployment: Deployment, config: MemoryConfig | None = None) -> Memory:
    """Peak memory of the server, which trains on one mini-batch at a time (SplitFed-v2, arXiv 2004.12088).

    On tokens it trains the blocks behind the cut, on samples the whole model; beside them it holds the adapters that
    travel, if any do.

    Raises:
        MeasuredError: the number of tokens that arrive differs by sample.
        ConfigError: a LoRA target that the model does not have.
    """
    config, plan = config or MemoryConfig(), deployment.plan
    memory = Memory()
    if plan.uploads == "samples":
        memory = replace(_running(deployment, "whole", True, config), inputs_bytes=_images_bytes(deployment))
    elif plan.uploads == "tokens":
        inputs_bytes = _tokens_bytes(deployment) + max(deployment.workload.batches) * _LABEL_BYTES
        memory = replace(_running(deployment, "back", True, config), inputs_bytes=inputs_bytes)
    if plan.adapter is None:
        return memory
    # One adapter that is handed out, and one from each participant until they are averaged.
    exchanged_bytes = (1 + config.participants) * _FLOAT_BYTES * deployment.adapter_entries
    return replace(memory, adapters_bytes=memory.adapters_bytes + exchanged_bytes)


def _running(deployment: Deployment, part: Part, trains: bool, config: MemoryConfig) -> Memory:
    """What runs these modules on a mini-batch, without its input; with what training them takes, if it trains."""
    vit, lora, cut, plan = deployment.vit, deployment.lora, deployment.cut, deployment.plan
    module = parts(vit, lora, cut)[part]
    trained_bytes = _nbytes(p for p in module.parameters() if p.requires_grad) if trains else 0
    activations_bytes = part_bytes(
        vit,
        lora,
        cut,
        part,
        max(deployment.workload.batches),
        deployment.n_tokens,
        gradient_at_cut=plan.gradient is not None,
        reducer=plan.codec.tokens if isinstance(plan.codec, TokenCodec) else None,
        precision=config.precision,
        attention=config.attention,
    )
    return Memory(
        weights_bytes=_nbytes(module.parameters()) + _nbytes(module.buffers()) - trained_bytes,
        adapters_bytes=trained_bytes,
        gradients_bytes=trained_bytes,
        optimizer_bytes=trained_bytes * config.optimizer_buffers,
        activations_bytes=activations_bytes,
    )


def _images_bytes(deployment: Deployment) -> int:
    """With their labels."""
    batch, pixels = max(deployment.workload.batches), 3 * deployment.vit.image_size**2
    return batch * (_FLOAT_BYTES * pixels + _LABEL_BYTES)


def _tokens_bytes(deployment: Deployment) -> int:
    return max(deployment.workload.batches) * _FLOAT_BYTES * deployment.n_tokens * deployment.vit.dim


def _nbytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
