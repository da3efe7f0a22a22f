"""A run's state as flat tensors by name, the form in which checkpoints keep it."""

from collections.abc import Mapping

import torch
from torch import Tensor


def nest(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `nest` put under `prefix.`, by their own names, in name order: files keep no order."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in sorted(tensors.items()) if name.startswith(start)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's buffers, by parameter position and buffer name."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"{position}.{name}": buffer
        for position, parameter in enumerate(parameters)
        for name, buffer in optimizer.state.get(parameter, {}).items()
        if buffer is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put buffers back that `optimizer_tensors` read."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for key, buffer in tensors.items():
        position, name = key.split(".", 1)
        optimizer.state[parameters[int(position)]][name] = buffer.clone()
