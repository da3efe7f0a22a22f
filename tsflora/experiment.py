"""One run: configuration -> images, backbone, algorithm -> RunRecord. The front door of the library."""

import contextlib
import datetime
import logging
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tsflora.data import InputSpec
from tsflora.errors import ConfigError, DataError, NumericsError
from tsflora.federation import (
    TRAJECTORY,
    CheckpointStore,
    DeviceSide,
    InProcessFleet,
    Run,
    ServerSide,
    Terms,
    TrainingConfig,
    participants_of,
)
from tsflora.models import WholeModel, add_lora, load_backbone, read_adapter, split
from tsflora.planned import ExperimentConfig, MethodConfig, run_of
from tsflora.prepared import images_sha256, prepared_backbone, prepared_images, weights_sha256
from tsflora.records import Basis, Geometry, Round, RunRecord, config_digest, device_name, provenance
from tsflora.revisions import revisions_of, sources_of, versions
from tsflora.settings import Settings

__all__ = ["ExperimentConfig", "MethodConfig", "assemble", "basis_of", "checkpoints_of", "run", "run_of", "start"]

_log = logging.getLogger(__name__)

Progress = Callable[[str, int], None]
"""Called after every optimiser step with a status line, and the number of rounds that this call finishes."""


def assemble(config: ExperimentConfig, settings: Settings) -> tuple[DeviceSide, ServerSide]:
    """What the devices have and what the server has: images and backbone, split both ways, that fit each other.

    Raises:
        ConfigError: a cut, token count or partition that the model or the data cannot have.
        DataError, WeightsError: files that are missing or damaged.
    """
    where, plan = settings.torch_device(), config.method.plan
    if plan.merging is not None:
        plan.merging.check(config.cut)
    train, test = prepared_images(config.dataset, config.dataset_name, settings)
    shards = config.partition.split(train.labels, config.training.n_devices, config.seed, config.dataset_name)
    backbone = load_backbone(
        prepared_backbone(config.backbone, settings), train.n_classes, config.seed, settings.weights_dir
    )
    if plan.codec is not None:
        plan.codec.n_transmitted(backbone.n_patches)
    if plan.merging is not None:
        plan.merging.n_tokens(backbone.n_patches, config.cut)
    add_lora(backbone.model, config.lora, config.seed)
    front, back = split(backbone.model, config.cut, plan.merging)
    front, back = front.to(where), back.to(where)
    terms = Terms(
        dataset=config.dataset_name,
        seed=config.seed,
        n_classes=train.n_classes,
        n_patches=backbone.n_patches,
        dim=backbone.model.embed_dim,
        task=config.task,
        spec=InputSpec(backbone.image_size, backbone.mean, backbone.std, config.augment),
        training=config.training,
        plan=plan,
        where=where,
    )
    module = WholeModel(front, back) if plan.runs == "everything" else front
    return DeviceSide(terms, train, tuple(shards), module), ServerSide(terms, front, back, test)


def start(config: ExperimentConfig, settings: Settings) -> Run:
    """A run at round zero, with its devices in this process.

    Raises:
        TsfloraError: see `assemble`.
    """
    devices, server = assemble(config, settings)
    return config.method.algorithm.start(server, InProcessFleet(devices), config.method.scheduler)


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
        TsfloraError: see `assemble`; NumericsError when something becomes NaN.
    """
    settings = settings or Settings.from_environment()
    started = datetime.datetime.now(datetime.UTC)
    basis = basis_of(config, settings)
    if record_path is not None and (record := _recorded(record_path, config, basis)):
        if progress is not None:
            progress("recorded already", config.training.rounds)
        return record
    where = settings.torch_device()
    devices, server = assemble(config, settings)
    algorithm_run = config.method.algorithm.start(server, InProcessFleet(devices), config.method.scheduler)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    store = None
    history: list[Round] = []
    if settings.checkpoint_dir is not None:
        store = checkpoints_of(config, basis, settings.checkpoint_dir)
        if checkpoint := store.latest(at_most=config.training.rounds):
            algorithm_run.restore({name: tensor.to(where) for name, tensor in checkpoint.state.items()})
            history = [_as_scheduled(Round.model_validate(entry), config.training) for entry in checkpoint.history]
            algorithm_run.devices = history[-1].devices
            if progress is not None:
                progress(f"resumed after round {checkpoint.round}", checkpoint.round)

    with _reproducible(settings.threads):
        for round_ in range(len(history) + 1, config.training.rounds + 1):
            history.append(_one_round(algorithm_run, config, round_, history, progress))
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
        geometry=_geometry(config, server, basis.weights_sha256),
        shard_sizes=tuple(len(shard) for shard in devices.shards),
        history=tuple(history),
        started_at=started.isoformat(timespec="seconds"),
        seconds=sum(sum(entry.seconds.values()) for entry in history),
        peak_memory_mib=_peak_memory_mib(where),
        provenance=provenance(where, settings.threads),
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
        revisions=revisions_of(config, config.method.plan),
        sources=sources_of(config, config.method.plan),
        weights_sha256=weights_sha256(config.backbone, settings),
        images_sha256=images_sha256(config.dataset, config.dataset_name, settings),
        versions=versions(),
        device=device_name(settings.torch_device()),
        threads=settings.threads,
    )


def checkpoints_of(config: ExperimentConfig, basis: Basis, checkpoint_dir: Path) -> CheckpointStore:
    """A run's own checkpoints: their folder's name is a digest of all but the run's length and its names."""
    values = config.without_names().dump()
    del values["training"]["rounds"]
    digest = config_digest({"config": values, "basis": basis.model_dump(mode="json")})
    return CheckpointStore(checkpoint_dir / digest[:32])


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
def _reproducible(threads: int) -> Iterator[None]:
    """Fix what the last bits of a record depend on: torch's thread count, hence the order of additions, and kernels.

    Where there is no deterministic kernel torch warns. Across kinds of machines the last bits may still differ.
    """
    count, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch._C._get_deterministic_fill_uninitialized_memory()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch._C._set_deterministic_fill_uninitialized_memory(False)  # it only costs time: nothing here reads such memory
    try:
        yield
    finally:
        torch.set_num_threads(count)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch._C._set_deterministic_fill_uninitialized_memory(filled)


def _one_round(
    algorithm_run: Run, config: ExperimentConfig, round_: int, history: list[Round], progress: Progress | None
) -> Round:
    training = config.training
    participants = participants_of(training, config.dataset_name, config.seed, round_)
    before = sum(sum(entry.uplink_bytes.values()) + sum(entry.downlink_bytes.values()) for entry in history)
    known = next((entry.accuracy for entry in reversed(history) if entry.accuracy is not None), None)
    clock = time.perf_counter()
    losses, n_samples = 0.0, 0
    for step in algorithm_run.train_round(round_, participants):
        losses += step.loss * step.n_samples
        n_samples += step.n_samples
        if progress is not None:
            mib = (before + algorithm_run.uplink().total() + algorithm_run.downlink().total()) / 2**20
            accuracy = "" if known is None else f" acc {known:.3f}"
            progress(f"round {round_}/{training.rounds} loss {step.loss:.3f}{accuracy} {mib:.1f} MiB", 0)
    trained = time.perf_counter()
    accuracy_on = accuracy_off = None
    if training.evaluates(round_):
        try:
            accuracy_on, accuracy_off = algorithm_run.evaluate()
        except NumericsError as error:
            raise NumericsError(f"round {round_}: {error}") from None
    if progress is not None:
        shown = "not evaluated" if accuracy_on is None else f"acc {accuracy_on:.3f}"
        progress(f"round {round_}/{training.rounds} {shown}", 1)
    return Round(
        round=round_,
        participants=participants,
        n_samples=n_samples,
        train_loss=losses / n_samples if n_samples else None,
        accuracy=accuracy_on,
        accuracy_uncompressed=accuracy_off,
        uplink_bytes=dict(sorted(algorithm_run.uplink().items())),
        downlink_bytes=dict(sorted(algorithm_run.downlink().items())),
        devices=algorithm_run.devices,
        seconds={"train": trained - clock, "evaluate": time.perf_counter() - trained},
    )


def _geometry(config: ExperimentConfig, server: ServerSide, weights_sha256: str) -> Geometry:
    vit = server.back.vit
    return Geometry(
        backbone=config.backbone.name,
        n_blocks=len(server.front.vit.blocks) + len(vit.blocks),
        cut=config.cut,
        dim=vit.embed_dim,
        n_heads=vit.blocks[0].attn.num_heads,
        n_patches=server.terms.n_patches,
        n_classes=server.terms.n_classes,
        batch_size=config.training.batch_size,
        device_adapter_entries=sum(tensor.numel() for tensor in read_adapter(server.front).values()),
        server_adapter_entries=sum(tensor.numel() for tensor in read_adapter(server.back).values()),
        weights_sha256=weights_sha256,
    )


def _peak_memory_mib(where: torch.device) -> float:
    """Peak of the accelerator's allocator, else of this process's resident set so far; 0 where nobody keeps it."""
    if where.type == "cuda":
        return torch.cuda.max_memory_allocated(where) / 2**20
    try:
        import resource
    except ImportError:  # Windows has none
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
