"""Small valid run records for tests, with known accuracies and bytes."""

from collections.abc import Mapping, Sequence
from typing import Any

from tsflora.records import Basis, Geometry, Provenance, Round, RunRecord

LABELS = {
    "local_lora": "LocalLoRA",
    "fed_lora": "FedLoRA",
    "split_lora": "SplitLoRA",
    "sflora": "SFLora",
    "sflora_8bit": "SFLora (8-bit)",
    "sflora_4bit": "SFLora (4-bit)",
    "tsflora_8bit_40": "TSFLora (8-bit, 40 tokens)",
    "tsflora_8bit_30": "TSFLora (8-bit, 30 tokens)",
}


def make_geometry() -> Geometry:
    return Geometry(
        backbone="vit_tiny_patch16_224",
        n_blocks=12,
        cut=2,
        dim=192,
        n_heads=3,
        n_patches=49,
        n_classes=10,
        batch_size=64,
        device_adapter_entries=1000,
        server_adapter_entries=5000,
        weights_sha256="0" * 64,
    )


def make_provenance() -> Provenance:
    return Provenance(versions={"torch": "2.13.0"}, git_commit=None, code_sha256="1" * 64, host={"cores": "2"})


def make_basis(**changes: Any) -> Basis:
    values = {
        "trajectory": 1,
        "revisions": {"Algorithm.sflora": 1},
        "weights_sha256": "0" * 64,
        "images_sha256": "2" * 64,
        "versions": {"torch": "2.13.0"},
        "device": "cpu",
        "threads": 1,
    }
    return Basis(**(values | changes))


def make_record(
    method: str = "sflora",
    *,
    accuracies: Sequence[float | None] = (0.5,),
    seed: int = 0,
    partition: str = "iid",
    dataset: str = "digits",
    label: str | None = None,
    uplink_bytes: Mapping[str, int] | None = None,
    downlink_bytes: Mapping[str, int] | None = None,
    participants: Sequence[int] = (0, 1),
    **fields: Any,
) -> RunRecord:
    """A complete record with one round per accuracy; byte counts are those of each round, all participants together."""
    history = tuple(
        Round(
            round=number,
            participants=tuple(participants),
            n_samples=400 * len(participants),
            train_loss=1.0 / number,
            accuracy=accuracy,
            accuracy_uncompressed=accuracy,
            uplink_bytes=dict(uplink_bytes if uplink_bytes is not None else {"activations": 2**21, "headers": 2**11}),
            downlink_bytes=dict(downlink_bytes if downlink_bytes is not None else {"gradients": 2**21}),
            seconds={"train": 1.0, "evaluate": 0.5},
        )
        for number, accuracy in enumerate(accuracies, start=1)
    )
    config = {"method": method, "partition": partition, "dataset": dataset, "seed": seed}
    values: dict[str, Any] = {
        "status": "complete",
        "dataset": dataset,
        "method": method,
        "label": LABELS.get(method, method) if label is None else label,
        "partition": partition,
        "seed": seed,
        "config": config,
        "basis": make_basis(),
        "geometry": make_geometry(),
        "shard_sizes": (400, 400),
        "history": history,
        "started_at": "2026-01-01T00:00:00+00:00",
        "seconds": 3.0,
        "peak_memory_mib": 100.0,
        "provenance": make_provenance(),
    }
    return RunRecord(**(values | fields))
