"""`tsflora export`: a finished run's model, for use without this package."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

_CHECKPOINTS = Path("build/checkpoints")


class Form(StrEnum):
    """What is written."""

    TIMM = "timm"
    PEFT = "peft"


def export(
    record: Annotated[Path, typer.Argument(help="A finished run's record, a .json file.", metavar="RECORD")],
    output: Annotated[
        Path, typer.Argument(help="What to write: a .safetensors file, or with peft a folder.", metavar="OUTPUT")
    ],
    form: Annotated[
        Form,
        typer.Option("--format", help="timm: a state dict, adapters merged into it. peft: the adapter and the head."),
    ] = Form.TIMM,
    device: Annotated[
        int | None, typer.Option(help="Whose model, where each device has its own (LocalLoRA), from 0.")
    ] = None,
    checkpoint_dir: Annotated[
        Path | None,
        typer.Option(
            help=f"Where the run kept its checkpoints. [default: TSFLORA_CHECKPOINT_DIR, else {_CHECKPOINTS}]"
        ),
    ] = None,
    plugin: Annotated[
        list[Path] | None, typer.Option(help="A Python file whose components the run used; again for each.")
    ] = None,
) -> None:
    """Write a finished run's model for timm or peft.

    The model after the last round, as it was judged, without compression at the cut. It is put together from the run's
    last checkpoint, its backbone and its images, so those have to be there, as for the run. The file's header holds
    classes, input size, mean, standard deviation, accuracy and which run it is of.
    """
    from tsflora.export import export
    from tsflora.plugins import load_plugins
    from tsflora.settings import Settings

    load_plugins([str(path) for path in plugin or ()], Path())
    settings = Settings.from_environment(checkpoint_dir=checkpoint_dir)
    if settings.checkpoint_dir is None:
        settings = settings.model_copy(update={"checkpoint_dir": _CHECKPOINTS})
    loading = export(record, output, form.value, device, settings)
    typer.echo(f"written: {output}; load it by {loading}")
