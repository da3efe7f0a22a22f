"""One cell: configuration -> images, backbone, algorithm -> RunRecord. The front door of the library."""

import contextlib
import datetime
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from tsflora.compression import Kind, Quantizer, TensorCodec, TokenCodec, TokenReducer, quantizers, token_reducers
from tsflora.config import Config
from tsflora.data import AugmentConfig, DataSource, Partition, data_sources, partitions
from tsflora.errors import ConfigError, DataError, NumericsError
from tsflora.federation import (
    TRAJECTORY,
    Algorithm,
    CheckpointStore,
    Run,
    Setup,
    TrainingConfig,
    algorithms,
    participants_of,
)
from tsflora.models import Backbone, BackboneConfig, LoraConfig, add_lora, load_backbone, read_adapter, split
from tsflora.prepared import images_sha256, prepared_backbone, prepared_images, weights_sha256
from tsflora.records import Basis, Geometry, Round, RunRecord, config_digest, device_name, provenance
from tsflora.revisions import revisions_of, sources_of, versions
from tsflora.settings import Settings

_log = logging.getLogger(__name__)

AnyAlgorithm = Annotated[SerializeAsAny[Algorithm], BeforeValidator(algorithms.build)]
AnyDataSource = Annotated[SerializeAsAny[DataSource], BeforeValidator(data_sources.build)]
AnyPartition = Annotated[SerializeAsAny[Partition], BeforeValidator(partitions.build)]
AnyQuantizer = Annotated[SerializeAsAny[Quantizer], BeforeValidator(quantizers.build)]
AnyTokenReducer = Annotated[SerializeAsAny[TokenReducer], BeforeValidator(token_reducers.build)]

Progress = Callable[[str, int], None]
"""Called after every optimiser step with a status line, and the number of rounds that this call finishes."""


class MethodConfig(Config):
    """An algorithm with its codecs: uplink tokens, returned gradient, adapters."""

    label: str | None = None
    """The printed name; None prints the key."""
    algorithm: AnyAlgorithm
    cut: int | None = Field(default=None, ge=1)
    """None takes the study's."""
    tokens: AnyTokenReducer = Field(default_factory=lambda: token_reducers.build("all"))
    quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))
    gradient_quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))
    adapter_quantizer: AnyQuantizer = Field(default_factory=lambda: quantizers.build("float32"))

    @model_validator(mode="after")
    def _codec_is_used(self) -> "MethodConfig":
        if self.algorithm.placement == "split":
            return self
        for name in ("gradient_quantizer", "quantizer", "tokens"):
            # A record's configuration lists the defaults too, and has to be read again.
            if getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True):
                raise ValueError(f"algorithm {self.algorithm.name!r} sends no activations; remove {name}")
        return self


class ExperimentConfig(Config):
    """All that determines one run's numbers."""

    dataset: AnyDataSource
    partition: AnyPartition = Field(default_factory=lambda: partitions.build("iid"))
    dataset_key: str | None = None
    """How records name the data set; None takes its component's name. The same for `partition_key`."""
    partition_key: str | None = None
    backbone: BackboneConfig
    lora: LoraConfig = LoraConfig()
    cut: int = Field(default=2, ge=1)
    training: TrainingConfig = TrainingConfig()
    augment: AugmentConfig | None = None
    method: MethodConfig
    method_key: str
    sweep: str | None = None
    """The sweep that this run is a point of; None for a method of the study."""
    seed: int = Field(default=0, ge=0)

    @property
    def dataset_name(self) -> str:
        """The data set as records name it."""
        return self.dataset_key or self.dataset.name

    @property
    def partition_name(self) -> str:
        """The partition as records name it."""
        return self.partition_key or self.partition.name

    @property
    def label(self) -> str:
        """The method as reports name it."""
        return self.method.label or self.method_key

    def dump(self) -> dict[str, Any]:
        """The resolved configuration as plain JSON values; `parse` reads it back."""
        return json.loads(self.model_dump_json())

    @property
    def digest(self) -> str:
        """SHA-256 of the resolved configuration."""
        return config_digest(self.dump())

    def without_names(self) -> "ExperimentConfig":
        """What the run computes, whatever its method is called."""
        method = self.method.model_copy(update={"label": None, "cut": None})
        return self.model_copy(update={"method": method, "method_key": "", "sweep": None})


def run_of(record: RunRecord) -> ExperimentConfig:
    """The run that a record was made by.

    Raises:
        ConfigError: a configuration that is no longer valid.
    """
    return ExperimentConfig.parse(record.config, f"record of {record.method}")


def build_setup(config: ExperimentConfig, settings: Settings) -> tuple[Setup, Backbone]:
    """Load images and backbone, split both ways, and check that they fit each other.

    Raises:
        ConfigError: a cut, token count or partition that the model or the data cannot have.
        DataError, WeightsError: files that are missing or damaged.
    """
    where = settings.torch_device()
    train, test = prepared_images(config.dataset, config.dataset_name, settings)
    shards = config.partition.split(train.labels, config.training.n_devices, config.seed, config.dataset_name)
    backbone = load_backbone(
        prepared_backbone(config.backbone, settings), train.n_classes, config.seed, settings.weights_dir
    )
    config.method.tokens.n_transmitted(backbone.n_patches)
    add_lora(backbone.model, config.lora, config.seed)
    device_part, server_part = split(backbone.model, config.cut)
    method = config.method
    setup = Setup(
        dataset=config.dataset_name,
        train=train,
        test=test,
        shards=tuple(shards),
        device_part=device_part.to(where),
        server_part=server_part.to(where),
        image_size=backbone.image_size,
        mean=backbone.mean,
        std=backbone.std,
        augment=config.augment,
        training=config.training,
        seed=config.seed,
        where=where,
        token_codec=TokenCodec(method.tokens, method.quantizer),
        gradient_codec=TensorCodec(method.gradient_quantizer, Kind.GRADIENTS),
        adapter_codec=TensorCodec(method.adapter_quantizer, Kind.ADAPTERS),
    )
    return setup, backbone


def run(
    config: ExperimentConfig,
    settings: Settings | None = None,
    progress: Progress | None = None,
    record_path: Path | None = None,
) -> RunRecord:
    """Train one method on one data set, partition and seed; write the record where `record_path` says.

    A record that is there already is returned when all that its numbers depend on is unchanged. With
    `settings.checkpoint_dir` a killed run goes on after its last finished round, to the identical record, and a
    finished one goes on when `training.rounds` has grown: its last checkpoint stays.

    Raises:
        TsfloraError: see `build_setup`; NumericsError when something becomes NaN.
    """
    settings = settings or Settings.from_environment()
    started = datetime.datetime.now(datetime.UTC)
    basis = basis_of(config, settings)
    if record_path is not None and (record := _recorded(record_path, config, basis)):
        if progress is not None:
            progress("recorded already", config.training.rounds)
        return record
    setup, backbone = build_setup(config, settings)
    algorithm_run = config.method.algorithm.start(setup)
    if setup.where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(setup.where)
    store = None
    history: list[Round] = []
    if settings.checkpoint_dir is not None:
        store = CheckpointStore(settings.checkpoint_dir / _course(config, basis)[:32])
        if checkpoint := store.latest(at_most=config.training.rounds):
            algorithm_run.restore({name: tensor.to(setup.where) for name, tensor in checkpoint.state.items()})
            history = [_as_scheduled(Round.model_validate(entry), config.training) for entry in checkpoint.history]
            if progress is not None:
                progress(f"resumed after round {checkpoint.round}", checkpoint.round)

    with _threads(settings.threads):
        for round_ in range(len(history) + 1, config.training.rounds + 1):
            history.append(_one_round(algorithm_run, setup, round_, history, progress))
            if store is not None:
                store.save(round_, algorithm_run.state(), [entry.model_dump(mode="json") for entry in history])

    record = RunRecord(
        status="complete",
        dataset=config.dataset_name,
        method=config.method_key,
        label=config.label,
        partition=config.partition_name,
        seed=config.seed,
        config=config.dump(),
        basis=basis,
        geometry=_geometry(config, setup, backbone),
        shard_sizes=tuple(len(shard) for shard in setup.shards),
        history=tuple(history),
        started_at=started.isoformat(timespec="seconds"),
        seconds=sum(sum(entry.seconds.values()) for entry in history),
        peak_memory_mib=_peak_memory_mib(setup.where),
        provenance=provenance(setup.where, settings.threads),
    )
    if record_path is not None:
        record.write(record_path)
    if store is not None and record_path is not None:
        store.keep_newest()
    return record


def basis_of(config: ExperimentConfig, settings: Settings) -> Basis:
    """All that this run's numbers depend on here and now, beside its configuration.

    Raises:
        DataError, WeightsError: files that are missing or damaged.
    """
    return Basis(
        trajectory=TRAJECTORY,
        revisions=revisions_of(config),
        sources=sources_of(config),
        weights_sha256=weights_sha256(config.backbone, settings),
        images_sha256=images_sha256(config.dataset, config.dataset_name, settings),
        versions=versions(),
        device=device_name(settings.torch_device()),
        threads=settings.threads,
    )


def _course(config: ExperimentConfig, basis: Basis) -> str:
    """Digest of all that a run's course depends on: everything but its length and its names."""
    values = config.without_names().dump()
    del values["training"]["rounds"]
    return config_digest({"config": values, "basis": basis.model_dump(mode="json")})


def _as_scheduled(entry: Round, training: TrainingConfig) -> Round:
    """A round of a shorter run's history as this run has it: its last evaluation may not be due here."""
    if training.evaluates(entry.round):
        return entry
    return entry.model_copy(update={"accuracy": None, "accuracy_uncompressed": None})


def _recorded(path: Path, config: ExperimentConfig, basis: Basis) -> RunRecord | None:
    """The complete record at `path`, if its numbers are those of this run here and now; under the run's names."""
    if not path.exists():
        return None
    try:
        record = RunRecord.read(path)
        if record.status != "complete" or record.basis is None:
            return None
        if run_of(record).without_names() != config.without_names():
            return None
    except (ConfigError, DataError) as error:
        _log.warning("%s; running it again", error)
        return None
    if difference := record.basis.difference(basis):
        _log.warning("%s: running it again, since it depends on %s", path, difference)
        return None
    names = {"method": config.method_key, "label": config.label, "config": config.dump()}
    renamed = record.model_copy(update=names)
    if renamed != record:
        renamed.write(path)
    return renamed


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Fix torch's thread count: the order of float additions, and so the record's last bits, depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _one_round(algorithm_run: Run, setup: Setup, round_: int, history: list[Round], progress: Progress | None) -> Round:
    participants = participants_of(setup.training, setup.dataset, setup.seed, round_)
    traffic = algorithm_run.exchange.reset_traffic()
    before = sum(sum(entry.uplink_bytes.values()) + sum(entry.downlink_bytes.values()) for entry in history)
    known = next((entry.accuracy for entry in reversed(history) if entry.accuracy is not None), None)
    start = time.perf_counter()
    losses, n_images = 0.0, 0
    for step in algorithm_run.train_round(round_, participants):
        losses += step.loss * step.n_images
        n_images += step.n_images
        if progress is not None:
            mib = (before + traffic.total_bytes) / 2**20
            accuracy = "" if known is None else f" acc {known:.3f}"
            progress(f"round {round_}/{setup.training.rounds} loss {step.loss:.3f}{accuracy} {mib:.1f} MiB", 0)
    trained = time.perf_counter()
    accuracy_on = accuracy_off = None
    if setup.training.evaluates(round_):
        try:
            accuracy_on, accuracy_off = algorithm_run.evaluate()
        except NumericsError as error:
            raise NumericsError(f"round {round_}: {error}") from None
    if progress is not None:
        shown = "not evaluated" if accuracy_on is None else f"acc {accuracy_on:.3f}"
        progress(f"round {round_}/{setup.training.rounds} {shown}", 1)
    return Round(
        round=round_,
        participants=participants,
        n_samples=n_images,
        train_loss=losses / n_images,
        accuracy=accuracy_on,
        accuracy_uncompressed=accuracy_off,
        uplink_bytes=dict(sorted(traffic.uplink.items())),
        downlink_bytes=dict(sorted(traffic.downlink.items())),
        seconds={"train": trained - start, "evaluate": time.perf_counter() - trained},
    )


def _geometry(config: ExperimentConfig, setup: Setup, backbone: Backbone) -> Geometry:
    return Geometry(
        backbone=config.backbone.name,
        n_blocks=len(backbone.model.blocks),
        cut=config.cut,
        dim=backbone.model.embed_dim,
        n_heads=backbone.model.blocks[0].attn.num_heads,
        n_patches=backbone.n_patches,
        n_classes=setup.train.n_classes,
        batch_size=config.training.batch_size,
        device_adapter_entries=sum(tensor.numel() for tensor in read_adapter(setup.device_part).values()),
        server_adapter_entries=sum(tensor.numel() for tensor in read_adapter(setup.server_part).values()),
        weights_sha256=backbone.weights_sha256,
    )


def _peak_memory_mib(where: torch.device) -> float:
    """Peak of the accelerator's allocator, else of this process's resident set so far."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
