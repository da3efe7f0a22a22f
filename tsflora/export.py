"""A finished run's model as files that timm and peft load without this package.

What was trained is in the run's last checkpoint, which a run with a checkpoint folder leaves when it is done.
"""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import save

from tsflora.compression import Adapter
from tsflora.errors import CheckpointError, ConfigError, DataError, StorageError, reason
from tsflora.experiment import checkpoints_of, run_of, start
from tsflora.federation import Checkpoint, Run
from tsflora.files import new_folder, write_atomically
from tsflora.models import Backbone, BackboneConfig, load_backbone, unsplit_names
from tsflora.models.published import adapter_state, merged_state, peft_model, write_adapter_config
from tsflora.planned import ExperimentConfig
from tsflora.prepared import images_sha256, prepared_backbone, weights_sha256
from tsflora.records import Basis, RunRecord
from tsflora.settings import Settings

Form = Literal["timm", "peft"]


def export(
    record_path: Path,
    output: Path,
    form: Form = "timm",
    device: int | None = None,
    settings: Settings | None = None,
) -> str:
    """Write the model that a run was judged by after its last round; returns the Python that loads it.

    `timm`: `output` is a safetensors file, the state dict of a timm model of this name, adapters merged into the
    weights. `peft`: `output` is a folder that `peft.PeftModel.from_pretrained` lays over the backbone. Neither holds
    anything of the compression at the cut. `device` says whose model, where each device has its own (LocalLoRA).

    The safetensors header holds, as JSON under `tsflora`, what a user has to know of the model: see `facts`.

    Raises:
        ConfigError: a device that there is not, or none where each has a model; a name or form that cannot be.
        DataError: not the record of a complete run, or other images or weights than the run's are here.
        CheckpointError: the run's last checkpoint is not in `settings.checkpoint_dir`, or does not fit it.
        StorageError: there is something at `output` already, or its folder cannot be written.
        TsfloraError: images or weights are missing; see `experiment.assemble`.
    """
    # What is merged and written is the same on any machine, and needs no accelerator.
    settings = (settings or Settings.from_environment()).model_copy(update={"device": "cpu"})
    record, basis = _complete(record_path)
    config = run_of(record)
    _check_output(output, form, config.backbone)
    checkpoint = _last_checkpoint(record, config, basis, settings)
    _check_basis(record_path, basis, config, settings)
    backbone = load_backbone(
        prepared_backbone(config.backbone, settings), _n_classes(record), config.seed, settings.weights_dir
    )
    run = start(config, settings)
    adapter = _chosen(_restored(run, checkpoint), record, device)
    known = {"tsflora": json.dumps(facts(record, run, backbone, device))}
    model = peft_model(backbone.model, unsplit_names(adapter), config.lora)
    if form == "timm":
        write_atomically(output, save(merged_state(model), known))
    else:
        with new_folder(output) as folder:
            write_adapter_config(model, folder)
            write_atomically(folder / "adapter_model.safetensors", save(adapter_state(model), known))
    return _loading(config.backbone, _n_classes(record), output, form)


def facts(record: RunRecord, run: Run, backbone: Backbone, device: int | None) -> dict[str, Any]:
    """What a user of the model has to know, as plain JSON values.

    The timm name, classes in the order of outputs, how an image becomes an input (values from 0 to 1, resized to
    `image_size` pixels, minus `mean`, by `std`), which run it is of, and its accuracy: `accuracy` with compression on,
    `accuracy_uncompressed` without it, as the exported model is used. One device's model has none in the record.
    """
    last = record.final
    judged = {"accuracy": last.accuracy, "accuracy_uncompressed": last.accuracy_uncompressed}
    return {
        "backbone": record.config["backbone"]["name"],
        "weights_sha256": backbone.weights_sha256,
        "classes": run.side.test.class_names,
        "image_size": backbone.image_size,
        "interpolation": "bicubic",
        "mean": backbone.mean,
        "std": backbone.std,
        "dataset": record.dataset,
        "partition": record.partition,
        "method": record.method,
        "label": record.label,
        "seed": record.seed,
        "rounds": last.round,
        **(judged if device is None else {"device": device}),
        "tsflora": version("tsflora"),
    }


def _complete(path: Path) -> tuple[RunRecord, Basis]:
    record = RunRecord.read(path)
    if record.status != "complete" or record.basis is None:
        raise DataError(f"{path} is the record of a run that failed ({record.error}); only a complete one has a model")
    return record, record.basis


def _n_classes(record: RunRecord) -> int:
    assert record.geometry is not None
    return record.geometry.n_classes


def _check_output(output: Path, form: Form, backbone: BackboneConfig) -> None:
    if form == "timm" and output.suffix != ".safetensors":
        raise ConfigError(f"output: {output} is no name for a state dict; allowed: a file that ends in .safetensors")
    if form == "peft" and backbone.weights == "random":
        raise ConfigError(
            "format: 'peft' is an adapter alone, and nobody else has the random weights of this run's backbone; "
            "allowed: 'timm'"
        )
    if output.exists() or output.is_symlink():
        raise StorageError(f"{output} exists; remove it, or choose another name")


def _last_checkpoint(record: RunRecord, config: ExperimentConfig, basis: Basis, settings: Settings) -> Checkpoint:
    again = f"train the sweep {config.sweep!r} again with new folders of records and of checkpoints"
    if config.sweep is None:
        again = (
            f"run it again with `tsflora run PARAMS --dataset {record.dataset} --method {record.method} "
            f"--partition {record.partition} --seed {record.seed} --records-dir NEW --checkpoint-dir DIR`"
        )
    hint = f"name the folder of its checkpoints by --checkpoint-dir, or {again}, and export the new record"
    if settings.checkpoint_dir is None:
        raise CheckpointError(f"a record alone holds no model, and no folder of checkpoints is given; {hint}")
    store = checkpoints_of(config, basis, settings.checkpoint_dir)
    last = record.final
    checkpoint = store.latest(at_most=last.round)
    if checkpoint is None or checkpoint.round != last.round:
        raise CheckpointError(f"no checkpoint of the run's last round, {last.round}, is in {store.folder}; {hint}")
    if checkpoint.history[-1]["train_loss"] != last.train_loss:  # kinds of machines differ in the last bits
        raise CheckpointError(f"the checkpoint in {store.folder} is of this run on another machine; {hint}")
    return checkpoint


def _check_basis(path: Path, basis: Basis, config: ExperimentConfig, settings: Settings) -> None:
    """Hold what the model is made of beside its checkpoint to what the run had."""
    here = {
        "weights_sha256": weights_sha256(config.backbone, settings),
        "images_sha256": images_sha256(config.dataset, config.dataset_name, settings),
    }
    if difference := basis.difference(basis.model_copy(update=here)):
        raise DataError(f"{path} is of a run with other files than those that are found here; {difference}")


def _restored(run: Run, checkpoint: Checkpoint) -> Run:
    try:
        run.restore(checkpoint.state)
    except (LookupError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"the checkpoint of round {checkpoint.round} does not fit this version of the run ({reason(error)}); "
            "export it with the version that its record names under provenance"
        ) from None
    return run


def _chosen(run: Run, record: RunRecord, device: int | None) -> Adapter:
    adapters, method = run.judged(), f"{record.method} on {record.dataset}"
    if len(adapters) == 1 and device is None:
        return adapters[0]
    if len(adapters) == 1:
        raise ConfigError(f"device: {method} has one model for all devices; given: {device}; leave it out")
    if device is None or not 0 <= device < len(adapters):
        given = "none" if device is None else device
        raise ConfigError(
            f"device: {method} has a model for each device; given: {given}; allowed: 0 to {len(adapters) - 1}"
        )
    return adapters[device]


def _loading(backbone: BackboneConfig, n_classes: int, output: Path, form: Form) -> str:
    """One expression of Python."""
    model = f"{backbone.name!r}, num_classes={n_classes}"
    if backbone.image_size is not None:
        model += f", img_size={backbone.image_size}"
    if form == "timm":
        return f"timm.create_model({model}, checkpoint_path={str(output)!r})"
    model += ", pretrained=True"
    if backbone.weights not in (None, "bundled"):
        model += f", pretrained_cfg_overlay={{'file': {backbone.weights!r}}}"
    return f"peft.PeftModel.from_pretrained(timm.create_model({model}), {str(output)!r})"
