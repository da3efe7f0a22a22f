"""What a study will take before it is started: FLOPs of every planned run, hours at a measured rate, bytes on disk.

Arithmetic on the configuration: training by `edge.compute`, evaluation from its forward half. The rate comes from
`edge.throughput`. Adapter frames, loading, hashing and writing are not in the prediction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from tsflora.compression import token_reducers
from tsflora.data import DataSource
from tsflora.edge.compute import compute_per_image
from tsflora.edge.deployment import Deployment
from tsflora.edge.shape import VitShape
from tsflora.experiment import ExperimentConfig, run_of
from tsflora.federation import TrainingConfig, participants_of
from tsflora.federation.algorithms import SFLora
from tsflora.models import Placement
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

_FLOAT_BYTES = 4
_HOUR_S = 3600


@dataclass(frozen=True)
class DatasetShape:
    """The sizes of a data set that cost depends on: images after `train_size` and `test_size`, classes, side in px."""

    n_train: int
    n_test: int
    n_classes: int
    side: int


_PUBLISHED = {
    "cifar10": DatasetShape(50_000, 10_000, 10, 32),
    "cifar100": DatasetShape(50_000, 10_000, 100, 32),
    "tiny_imagenet": DatasetShape(100_000, 10_000, 200, 64),
}


def dataset_shape(source: DataSource, data_dir: Path | None = None) -> DatasetShape:
    """A published set's official sizes, which need no files; any other source is asked for its listings.

    Raises:
        DataError: the files of another source are missing or damaged.
    """
    full = _PUBLISHED.get(source.name)
    if full is None:
        train, test = source.listings(data_dir)
        side = train.read(np.arange(1)).shape[1]
        full = DatasetShape(len(train.labels), len(test.labels), len(train.class_names), side)
    return replace(full, n_train=source.train_size or full.n_train, n_test=source.test_size or full.n_test)


@dataclass(frozen=True)
class RunSize:
    """What one planned run takes, wherever it runs."""

    backbone: str
    dataset: str
    method: str
    sweep: str | None
    partition: str
    seed: int
    rate_of: str
    """The method whose measured rate applies: its own, or its sweep's base."""
    train_flop: float
    """Expected: a shard whose size is drawn counts with the mean."""
    evaluate_flop: int
    checkpoint_bytes: int
    """The one checkpoint that stays when the run is finished; there are two of them while it runs."""
    record_bytes: int
    """About; see `record_bytes`."""


def size_study(study: StudyConfig, data_dir: Path | None = None) -> list[RunSize]:
    """Every planned run of a study, methods first, then sweeps.

    Raises:
        ConfigError, DataError: see `size_run` and `dataset_shape`.
    """
    shapes = {key: dataset_shape(source, data_dir) for key, source in study.datasets.items()}
    rate_of = {name: sweep.base for name, sweep in study.sweeps.items()}
    return [
        size_run(cell, shapes[cell.dataset_name], rate_of.get(cell.sweep or "", cell.method_key))
        for cell in study.all_cells()
    ]


def size_run(cell: ExperimentConfig, shape: DatasetShape, rate_of: str | None = None) -> RunSize:
    """What one run takes. `rate_of` is the method's own key by default.

    Raises:
        ConfigError: a backbone, cut, token count or LoRA target that does not exist.
    """
    deployment, training = deployment_of(cell, shape.n_classes), cell.training
    passes = test_set_passes(training, deployment.placement, cell.dataset_name, cell.seed)
    return RunSize(
        backbone=cell.backbone.name,
        dataset=cell.dataset_name,
        method=cell.method_key,
        sweep=cell.sweep,
        partition=cell.partition_name,
        seed=cell.seed,
        rate_of=rate_of or cell.method_key,
        train_flop=training.rounds * images_per_round(cell, shape.n_train) * compute_per_image(deployment).total_flops,
        evaluate_flop=passes * shape.n_test * evaluation_flop(deployment),
        checkpoint_bytes=checkpoint_bytes(cell, deployment),
        record_bytes=record_bytes(training),
    )


def deployment_of(cell: ExperimentConfig, n_classes: int) -> Deployment:
    """A run's model, cut and codecs; its workload is left at the default, since only costs per image are asked of it.

    Raises:
        ConfigError: a backbone, cut or token count that does not exist.
    """
    vit = _vit(cell.backbone.name, n_classes, cell.backbone.image_size)
    return Deployment.of(cell.method, vit, cell.lora, cell.cut)


_vit = lru_cache(VitShape.of)


def images_per_round(cell: ExperimentConfig, n_train: int) -> float:
    """Expected number of training images that a round's participants see, every local epoch's."""
    training, low, high = cell.training, cell.partition.min_samples, cell.partition.max_samples
    shard = n_train / training.n_devices if low is None or high is None else (low + high) / 2
    return training.participants * training.local_epochs * shard


def evaluation_flop(deployment: Deployment) -> int:
    """FLOPs of judging one test image, as the algorithms do it.

    `split`: the device part once, the server on what compression delivers and on all tokens; a lossless codec saves the
    first. `central`: the whole model on the image as received and as it was. Else: the whole model once.
    """
    own = compute_per_image(deployment)
    if deployment.placement == "central":
        return 2 * 2 * own.server_forward_macs
    if deployment.placement != "split":
        return 2 * own.device_forward_macs
    whole = compute_per_image(replace(deployment, tokens=token_reducers.build("all")))
    lossless = deployment.n_tokens == deployment.vit.n_patches + 1 and deployment.quantizer.name == "float32"
    on_received = 0 if lossless else own.server_forward_macs
    return 2 * (own.device_forward_macs + whole.server_forward_macs + on_received)


def test_set_passes(training: TrainingConfig, placement: Placement, dataset: str, seed: int) -> int:
    """How often the test set is judged in a run.

    Once in every evaluation, but LocalLoRA judges every device that trained since the last one, and at the first also
    the untrained model, which stands for all devices that did not train yet.
    """
    if placement != "local":
        return sum(map(training.evaluates, range(1, training.rounds + 1)))
    passes, changed, is_first = 0, set[int](), True
    for round_ in range(1, training.rounds + 1):
        changed.update(participants_of(training, dataset, seed, round_))
        if training.evaluates(round_):
            passes += len(changed) + (is_first and len(changed) < training.n_devices)
            changed.clear()
            is_first = False
    return passes


def checkpoint_bytes(cell: ExperimentConfig, deployment: Deployment) -> int:
    """Bytes of the tensors in a finished run's checkpoint: adapters, and optimisers that outlive a round.

    LocalLoRA keeps the whole adapter of every device that ever took part. The file's header and history come on top.
    """
    training, placement = cell.training, deployment.placement
    seen = {
        device
        for round_ in range(1, training.rounds + 1)
        for device in participants_of(training, cell.dataset_name, cell.seed, round_)
    }
    whole = replace(deployment, placement="federated")
    if placement == "local":
        return len(seen) * _FLOAT_BYTES * whole.adapter_entries + 2 * 8 * training.n_devices
    if placement == "federated":
        return _FLOAT_BYTES * whole.adapter_entries
    behind = whole.adapter_entries - deployment.adapter_entries
    n_behind = len(whole.adapter_shapes) - len(deployment.adapter_shapes)
    optimizer = training.optimizer
    if isinstance(cell.method.algorithm, SFLora) and cell.method.algorithm.server == "averaged":
        kept = 0  # each participant's server copy has its own optimiser, for the round
    elif optimizer.name == "adamw":
        kept = _FLOAT_BYTES * (2 * behind + n_behind)
    else:
        kept = _FLOAT_BYTES * behind * (optimizer.momentum > 0)
    return _FLOAT_BYTES * whole.adapter_entries + kept + (8 * len(seen) if placement == "central" else 0)


def record_bytes(training: TrainingConfig) -> int:
    """About the size of a record's JSON: what it says once, once for each device, once for each round."""
    return 2600 + 7 * training.n_devices + training.rounds * (430 + 8 * training.participants)


@dataclass(frozen=True)
class Rate:
    """Reached FLOP/s of one process on this machine, counted as `RunSize` counts."""

    train_flop_per_s: float
    evaluate_flop_per_s: float


def seconds(size: RunSize, rates: Mapping[str, Rate]) -> tuple[float, float]:
    """Training and evaluation of a run in one process. A method without a rate gets the slowest of the others."""
    own = [rates[size.rate_of]] if size.rate_of in rates else list(rates.values())
    train = max(size.train_flop / rate.train_flop_per_s for rate in own)
    return train, max(size.evaluate_flop / rate.evaluate_flop_per_s for rate in own)


def hours_frame(sizes: Sequence[RunSize], rates: Mapping[str, Rate], workers: int = 1) -> pd.DataFrame:
    """Runs, wall hours and bytes on disk of a study, by method and sweep in the order of `sizes`.

    `workers` runs go side by side, as if they did not slow each other down.
    """
    rows = []
    for size in sizes:
        train_s, evaluate_s = seconds(size, rates)
        rows.append(
            {
                "method": size.method if size.sweep is None else f"sweep {size.sweep}",
                "runs": 1,
                "training_h": train_s / _HOUR_S / workers,
                "evaluation_h": evaluate_s / _HOUR_S / workers,
                "checkpoint_bytes": size.checkpoint_bytes,
                "record_bytes": size.record_bytes,
            }
        )
    frame = pd.DataFrame(rows).groupby("method", sort=False).sum()
    return frame.assign(total_h=frame.training_h + frame.evaluation_h)


def against_records(
    records: Sequence[RunRecord], rates: Mapping[str, Rate], data_dir: Path | None = None
) -> pd.DataFrame:
    """Predicted and recorded seconds of runs that are done, medians over each method's runs.

    Raises:
        ConfigError: a record whose configuration is no longer valid.
    """
    rows = []
    for record in records:
        cell = run_of(record)
        train_s, evaluate_s = seconds(size_run(cell, dataset_shape(cell.dataset, data_dir)), rates)
        rows.append(
            {
                "method": record.label,
                "training, predicted s": train_s,
                "training, recorded s": sum(entry.seconds["train"] for entry in record.history),
                "evaluation, predicted s": evaluate_s,
                "evaluation, recorded s": sum(entry.seconds["evaluate"] for entry in record.history),
            }
        )
    return pd.DataFrame(rows).groupby("method", sort=False).median()
