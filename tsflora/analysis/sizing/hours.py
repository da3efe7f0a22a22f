"""What a study will take before it is started: FLOPs of every planned run, hours at a measured rate, bytes on disk.

Arithmetic on the configuration: training by `costs.compute`, evaluation from its forward half. The rate comes from
`throughput.py`. Loading, hashing and writing are not in the prediction, nor is a run whose costs depend on the data.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from tsflora.analysis.costs.compute import compute_per_image
from tsflora.analysis.costs.deployment import Deployment, MeasuredError, plan_of
from tsflora.analysis.costs.shape import VitShape
from tsflora.analysis.sizing.disk import checkpoint_bytes, record_bytes
from tsflora.compression import TokenCodec
from tsflora.compression.quantizers import Float32
from tsflora.data import DataSource
from tsflora.federation import Plan, TrainingConfig, participants_of
from tsflora.planned import ExperimentConfig, run_of
from tsflora.records import RunRecord
from tsflora.study import StudyConfig

_log = logging.getLogger(__name__)
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
    """Every planned run of a study, methods first, then sweeps; one whose costs depend on the data is left out aloud.

    Raises:
        ConfigError, DataError: see `size_run` and `dataset_shape`.
    """
    shapes = {key: dataset_shape(source, data_dir) for key, source in study.datasets.items()}
    rate_of = {name: sweep.base for name, sweep in study.sweeps.items()}
    sizes = []
    for cell in study.all_cells():
        try:
            sizes.append(size_run(cell, shapes[cell.dataset_name], rate_of.get(cell.sweep or "", cell.method_key)))
        except MeasuredError as error:
            _log.warning("left out: %s, %s, %s: %s", cell.dataset_name, cell.method_key, cell.partition_name, error)
    return sizes


def size_run(cell: ExperimentConfig, shape: DatasetShape, rate_of: str | None = None) -> RunSize:
    """What one run takes. `rate_of` is the method's own key by default.

    Raises:
        MeasuredError: the number of tokens behind the cut depends on the data.
        ConfigError: a backbone, cut, token count or LoRA target that does not exist.
    """
    deployment, training = deployment_of(cell, shape.n_classes), cell.training
    passes = test_set_passes(training, deployment.plan, cell.dataset_name, cell.seed)
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

    Tokens: the front once, the server on what compression delivers and on all tokens; a lossless codec saves the
    first. Samples: the whole model on the image as received and as it was. Else: the whole model once.

    Raises:
        MeasuredError: the number of tokens that arrive differs by sample.
    """
    own, plan = compute_per_image(deployment), deployment.plan
    if plan.uploads == "samples":
        return 2 * 2 * own.server_forward_macs
    if plan.uploads == "nothing":
        return 2 * own.device_forward_macs
    whole = compute_per_image(replace(deployment, plan=plan_of("sflora")))
    on_received = 0 if _lossless(deployment) else own.server_forward_macs
    return 2 * (own.device_forward_macs + whole.server_forward_macs + on_received)


def _lossless(deployment: Deployment) -> bool:
    codec = deployment.plan.codec
    return (
        isinstance(codec, TokenCodec)
        and deployment.n_tokens == deployment.vit.n_patches + 1
        and isinstance(codec.quantizer, Float32)
    )


def test_set_passes(training: TrainingConfig, plan: Plan, dataset: str, seed: int) -> int:
    """How often the test set is judged in a run.

    Once in every evaluation. Where each device has a whole model of its own, every device that trained since the last
    one is judged, and at the first also the untrained model, which stands for all devices that did not train yet.
    """
    if plan.runs != "everything" or plan.adapter is not None:
        return sum(map(training.evaluates, range(1, training.rounds + 1)))
    passes, changed, is_first = 0, set[int](), True
    for round_ in range(1, training.rounds + 1):
        changed.update(participants_of(training, dataset, seed, round_))
        if training.evaluates(round_):
            passes += len(changed) + (is_first and len(changed) < training.n_devices)
            changed.clear()
            is_first = False
    return passes


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
