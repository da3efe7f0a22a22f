"""How fast this machine runs the real training loop, counted in the FLOPs of `tsflora.analysis.sizing.hours`."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tsflora.analysis.costs.compute import compute_per_image
from tsflora.analysis.costs.deployment import MeasuredError
from tsflora.analysis.sizing.hours import DatasetShape, Rate, dataset_shape, deployment_of, evaluation_flop
from tsflora.data import Noise, partitions
from tsflora.errors import ConfigError
from tsflora.experiment import start
from tsflora.models import BackboneConfig
from tsflora.planned import ExperimentConfig
from tsflora.settings import Settings
from tsflora.study import StudyConfig

_log = logging.getLogger(__name__)


def measure(cell: ExperimentConfig, shape: DatasetShape, n_steps: int, settings: Settings) -> Rate:
    """The rate of a run's real loop: a round of `n_steps` training steps, and as many batches of evaluation.

    One device, random weights and generated images of the data set's size: neither time nor FLOPs depend on those. A
    round before it, not timed, allocates. Adapter frames are inside the rate.

    Raises:
        ConfigError: fewer than one step, a run that the model cannot have, or a cost that depends on the data.
    """
    if n_steps < 1:
        raise ConfigError(f"n_steps: given {n_steps}; allowed: 1 or more")
    deployment = deployment_of(cell, shape.n_classes)
    flop = compute_per_image(deployment).total_flops, evaluation_flop(deployment)
    where, n_images = settings.torch_device(), n_steps * cell.training.batch_size
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        run = start(_generated(cell, shape, n_images), settings.model_copy(update={"prepared_dir": None}))
        for _ in run.train_round(1, [0]):
            pass
        begun = _now(where)
        for _ in run.train_round(2, [0]):
            pass
        trained = _now(where)
        run.evaluate()
        judged = _now(where)
    finally:
        torch.set_num_threads(threads_before)
    return Rate(n_images * flop[0] / (trained - begun), n_images * flop[1] / (judged - trained))


def measure_study(
    study: StudyConfig,
    n_steps: int,
    settings: Settings,
    methods: Sequence[str] | None = None,
    data_dir: Path | None = None,
) -> dict[str, Rate]:
    """Rates by method, each measured on the study's first data set; None measures all methods.

    A method whose costs depend on the data has no rate and is left out aloud.

    Raises:
        ConfigError: an unknown method; see `measure`.
    """
    dataset = next(iter(study.datasets))
    shape = dataset_shape(study.datasets[dataset], data_dir)
    partition, seed = [next(iter(study.partitions))], [study.seeds[0]]
    cells = study.cells(dataset, methods, partition, seed)
    rates = {}
    for cell in cells:
        try:
            rates[cell.method_key] = measure(cell, shape, n_steps, settings)
        except MeasuredError as error:
            _log.warning("left out: %s: %s", cell.method_key, error)
    return rates


def _now(where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


def _generated(cell: ExperimentConfig, shape: DatasetShape, n_images: int) -> ExperimentConfig:
    """The run on one device with generated images, too slow to train into infinity."""
    optimizer = cell.training.optimizer.model_copy(update={"lr": 1e-6})
    alone = {"n_devices": 1, "participants": 1, "local_epochs": 1, "optimizer": optimizer}
    changes = {
        "dataset": Noise(n_train=n_images, n_test=n_images, n_classes=shape.n_classes, side=shape.side),
        "partition": partitions.build("iid"),
        "backbone": BackboneConfig(name=cell.backbone.name, image_size=cell.backbone.image_size, weights="random"),
        "training": cell.training.model_copy(update=alone),
    }
    return cell.model_copy(update=changes)
