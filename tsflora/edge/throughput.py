"""How fast this machine runs the real training loop, counted in the FLOPs of `tsflora.edge.sizing`."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tsflora.compression import Kind, TensorCodec, TokenCodec
from tsflora.data import ImageSet
from tsflora.edge.compute import compute_per_image
from tsflora.edge.sizing import DatasetShape, Rate, dataset_shape, deployment_of, evaluation_flop
from tsflora.errors import ConfigError
from tsflora.experiment import ExperimentConfig
from tsflora.federation import Setup
from tsflora.models import BackboneConfig, add_lora, load_backbone, split
from tsflora.seeding import numpy_generator
from tsflora.settings import Settings
from tsflora.study import StudyConfig

_WARM_STEPS = 2
"""Steps before the clock starts: the first ones allocate."""


def measure(cell: ExperimentConfig, shape: DatasetShape, n_steps: int, settings: Settings) -> Rate:
    """The rate of a run's real loop: `n_steps` training steps and as many batches of evaluation.

    Random weights and generated images of the data set's size: neither time nor FLOPs depend on either.

    Raises:
        ConfigError: fewer than one step, or a run that the model cannot have.
    """
    if n_steps < 1:
        raise ConfigError(f"n_steps: given {n_steps}; allowed: 1 or more")
    setup = _generated_setup(cell, shape, n_steps, settings.torch_device())
    deployment = deployment_of(cell, shape.n_classes)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        run = cell.method.algorithm.start(setup)
        clock = [_now(setup.where) for _ in run.train_round(1, [0])]
        start = _now(setup.where)
        run.evaluate()
        evaluated_s = _now(setup.where) - start
    finally:
        torch.set_num_threads(threads_before)
    step_s = (clock[-1] - clock[_WARM_STEPS - 1]) / n_steps
    return Rate(
        train_flop_per_s=setup.training.batch_size * compute_per_image(deployment).total_flops / step_s,
        evaluate_flop_per_s=len(setup.test) * evaluation_flop(deployment) / evaluated_s,
    )


def measure_study(
    study: StudyConfig,
    n_steps: int,
    settings: Settings,
    methods: Sequence[str] | None = None,
    data_dir: Path | None = None,
) -> dict[str, Rate]:
    """Rates by method, each measured on the study's first data set; None measures all methods.

    Raises:
        ConfigError: an unknown method; see `measure`.
    """
    dataset = next(iter(study.datasets))
    shape = dataset_shape(study.datasets[dataset], data_dir)
    partition, seed = [next(iter(study.partitions))], [study.seeds[0]]
    cells = study.cells(dataset, methods, partition, seed)
    return {cell.method_key: measure(cell, shape, n_steps, settings) for cell in cells}


def workers_of(settings: Settings) -> int:
    """How many runs `study.run_cells` works on at once."""
    return settings.workers or (os.cpu_count() or 1 if settings.torch_device().type == "cpu" else 1)


def _now(where: torch.device) -> float:
    if where.type == "cuda":
        torch.cuda.synchronize(where)
    return time.perf_counter()


def _generated_setup(cell: ExperimentConfig, shape: DatasetShape, n_steps: int, where: torch.device) -> Setup:
    """One device with enough random images; a small learning rate, so that noise does not train into infinity."""
    size, names = cell.training.batch_size, tuple(map(str, range(shape.n_classes)))
    rng = numpy_generator("sizing")

    def images(n: int) -> ImageSet:
        pixels = rng.integers(0, 256, (n, shape.side, shape.side, 3), dtype=np.uint8)
        return ImageSet(pixels, np.arange(n) % shape.n_classes, names)

    optimizer = cell.training.optimizer.model_copy(update={"lr": 1e-6})
    alone = {"n_devices": 1, "participants": 1, "local_epochs": 1, "optimizer": optimizer}
    config = BackboneConfig(name=cell.backbone.name, image_size=cell.backbone.image_size, weights="random")
    backbone = load_backbone(config, shape.n_classes, seed=0)
    add_lora(backbone.model, cell.lora, seed=0)
    device_part, server_part = split(backbone.model, cell.cut)
    train = images((_WARM_STEPS + n_steps) * size)
    return Setup(
        dataset=cell.dataset_name,
        train=train,
        test=images(n_steps * size),
        shards=(np.arange(len(train)),),
        device_part=device_part.to(where),
        server_part=server_part.to(where),
        image_size=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        augment=cell.augment,
        training=cell.training.model_copy(update=alone),
        seed=0,
        where=where,
        token_codec=TokenCodec(cell.method.tokens, cell.method.quantizer),
        gradient_codec=TensorCodec(cell.method.gradient_quantizer, Kind.GRADIENTS),
        adapter_codec=TensorCodec(cell.method.adapter_quantizer, Kind.ADAPTERS),
    )
