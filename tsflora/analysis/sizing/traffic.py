"""Bytes that a planned run's devices will send: `costs.traffic` of its model, data and partition."""

from dataclasses import replace

from tsflora.analysis.costs.deployment import MeasuredError, Workload
from tsflora.analysis.costs.traffic import Traffic, traffic
from tsflora.analysis.sizing.hours import DatasetShape, deployment_of, images_per_round
from tsflora.federation.schedulers import Fixed
from tsflora.federation.split import SplitLoRA
from tsflora.planned import ExperimentConfig


def round_traffic(cell: ExperimentConfig, shape: DatasetShape) -> Traffic:
    """Bytes of one device in one round; where a shard's size is drawn, of a device with the mean.

    Where samples are uploaded it is a device's first round, in which it hands over all of them.

    Raises:
        MeasuredError: a size that depends on the data, on what a scheduler plans, or on averaging within a round.
        ConfigError: a backbone, cut, token count or LoRA target that does not exist.
    """
    method, training = cell.method, cell.training
    deployment = deployment_of(cell, shape.n_classes)
    if not isinstance(method.scheduler, Fixed):
        raise MeasuredError(f"what scheduler {method.scheduler.name!r} has each device send")
    if isinstance(method.algorithm, SplitLoRA) and method.algorithm.mode == "periodic":
        raise MeasuredError("how often adapters are averaged within a round")
    seen = training.participants * training.local_epochs
    work = Workload(
        n_samples=max(round(images_per_round(cell, shape.n_train) / seen), 1),
        batch_size=training.batch_size,
        local_epochs=training.local_epochs,
    )
    image = (shape.side, shape.side, 3) if method.plan.uploads == "samples" else None
    return traffic(replace(deployment, workload=work), image)
