"""How a study was run, in words: the settings that all of its runs share."""

from collections.abc import Iterable

from tsflora.analysis.runs.naming import dataset_label, partition_label
from tsflora.study import StudyConfig


def setting(study: StudyConfig) -> dict[str, str]:
    """Name and value of every shared setting, for a table."""
    training, backbone = study.training, study.backbone
    return {
        "Data sets": ", ".join(map(dataset_label, study.datasets)),
        "Test images": _test_images(study),
        "Partitions": ", ".join(map(partition_label, study.partitions)),
        "Images per device and round": _shard(study),
        "Seeds": ", ".join(map(str, study.seeds)),
        "Backbone": backbone.name if backbone.image_size is None else f"{backbone.name} at {backbone.image_size} px",
        "LoRA rank": str(study.lora.rank),
        "Cut after block": str(study.cut),
        "Rounds": str(training.rounds),
        "Devices": f"{training.n_devices}, {training.participants} in each round",
        "Local epochs": str(training.local_epochs),
        "Batch size": str(training.batch_size),
        "Optimiser": _optimizer(study),
        "Precision": training.precision,
    }


def setting_sentence(study: StudyConfig) -> str:
    """What was run, exactly, for the caption of a table."""
    training, said = study.training, setting(study)
    epochs = "" if training.local_epochs == 1 else f" for {training.local_epochs} epochs"
    return (
        f"{training.rounds} rounds, {training.participants} of {training.n_devices} devices a round, "
        f"{_shard(study)} images each{epochs} in batches of {training.batch_size}, {_test_images(study)} test images, "
        f"seeds {said['Seeds']}; {said['Backbone']}, cut {study.cut}, LoRA rank {study.lora.rank}, "
        f"{said['Optimiser']}, {training.precision}."
    )


def _test_images(study: StudyConfig) -> str:
    return _span("all" if source.test_size is None else f"{source.test_size:,}" for source in study.datasets.values())


def _shard(study: StudyConfig) -> str:
    return _span(
        "all of a shard's"
        if partition.min_samples is None
        else _span([f"{partition.min_samples}", f"{partition.max_samples}"], " to ")
        for partition in study.partitions.values()
    )


def _optimizer(study: StudyConfig) -> str:
    optimizer = study.training.optimizer
    name = {"sgd": "SGD", "adamw": "AdamW"}[optimizer.name]
    return f"{name} at {optimizer.lr:g}" + (f", momentum {optimizer.momentum:g}" if optimizer.name == "sgd" else "")


def _span(values: Iterable[str], between: str = " or ") -> str:
    """One value if all are equal, else each of them once."""
    return between.join(dict.fromkeys(values))
