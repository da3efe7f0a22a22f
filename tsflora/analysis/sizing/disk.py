"""Bytes that a run leaves on disk: its checkpoint, counted from what both ends remember, and about its record."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tsflora.analysis.costs.deployment import Deployment, entries
from tsflora.federation import TrainingConfig, participants_of
from tsflora.federation.split import SFLora
from tsflora.planned import ExperimentConfig
from tsflora.seeding import torch_generator

_FLOAT_BYTES = 4


def checkpoint_bytes(cell: ExperimentConfig, deployment: Deployment) -> int:
    """Bytes of a run's state when it is finished, fp32: what server and devices remember (`Run.state`).

    The adapter of whoever trains, and optimiser state where it outlives a round: the server's. What both ends of a
    codec of adapters or gradients remember of a device counts for every device that ever took part, after the last
    mini-batch of a shard of mean size; what a codec of activations remembers does not. Devices whose adapters never
    travel keep them; where each has a whole model of its own, the scores of all are kept too. The file's header and
    history come on top.
    """
    training, plan = cell.training, deployment.plan
    rounds = range(1, training.rounds + 1)
    seen = len({d for r in rounds for d in participants_of(training, cell.dataset_name, cell.seed, r)})
    trained = {
        "nothing": [],
        "tokens": deployment.back_shapes,
        "samples": deployment.front_shapes + deployment.back_shapes,
    }[plan.uploads]
    n_bytes = _FLOAT_BYTES * entries(trained) + _optimizer_bytes(cell, trained)
    n_bytes += _FLOAT_BYTES * deployment.adapter_entries * (1 if plan.adapter is not None else seen)
    n_bytes += _remembered_bytes(deployment, _last_batch(cell)) * seen
    if plan.uploads == "samples":
        n_bytes += 8 * seen  # whose samples are there
    if plan.runs == "everything" and plan.adapter is None:
        n_bytes += 2 * 8 * training.n_devices
    return n_bytes


def record_bytes(training: TrainingConfig) -> int:
    """About the size of a record's JSON: what it says once, once for each device, once for each round."""
    return 3200 + 7 * training.n_devices + training.rounds * (440 + 160 * training.participants)


def _optimizer_bytes(cell: ExperimentConfig, shapes: Sequence[tuple[int, ...]]) -> int:
    """Optimiser state of the server's trained tensors at the end of a round."""
    algorithm, optimizer = cell.method.algorithm, cell.training.optimizer
    if isinstance(algorithm, SFLora) and algorithm.server == "averaged":
        return 0  # each participant's server copy has its own optimiser, for the round
    if optimizer.name == "adamw":
        return _FLOAT_BYTES * (2 * entries(shapes) + len(shapes))
    return _FLOAT_BYTES * entries(shapes) * (optimizer.momentum > 0)


def _last_batch(cell: ExperimentConfig) -> int:
    """Samples in the last mini-batch of a device; a full one where the size of shards is not in the configuration."""
    low, high, full = cell.partition.min_samples, cell.partition.max_samples, cell.training.batch_size
    return full if low is None or high is None else ((low + high) // 2 - 1) % full + 1


@lru_cache(maxsize=256)
def _remembered_bytes(deployment: Deployment, batch_size: int) -> int:
    """What both ends of a device's codecs of adapters and gradients remember once it took part, found by using them."""
    plan, remembered = deployment.plan, list[Mapping[str, Tensor]]()
    if plan.adapter is not None:
        start = {str(place): torch.zeros(shape) for place, shape in enumerate(deployment.adapter_shapes)}
        server, device = plan.adapter.end(start), plan.adapter.end(start)
        adapter = device.adopt(server.publish(start, torch_generator("sizing")))
        server.collect(device.submit(adapter, torch_generator("sizing")))
        remembered += [server.state(), device.state()]
    if plan.gradient is not None:
        shape = (batch_size, deployment.n_tokens, deployment.vit.dim)
        sender, receiver = plan.gradient.sender(), plan.gradient.receiver()
        receiver.receive(sender.send(torch.zeros(shape), 0, torch_generator("sizing")), shape)
        remembered += [sender.state(), receiver.state()]
    return sum(tensor.nbytes for state in remembered for tensor in state.values())
