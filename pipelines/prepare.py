"""First stages of a study: load what it starts from once, check it, and leave a copy for the runs."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.config import did_you_mean
from tsflora.errors import ConfigError
from tsflora.prepared import prepare_backbone, prepare_images
from tsflora.settings import Settings
from tsflora.study import StudyConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Output = Annotated[Path, typer.Option(help="Folder for the checked copy.")]
Params = Annotated[Path, typer.Option(help="The study's params.yaml.")]


@app.command()
def data(
    dataset: Annotated[str, typer.Option(help="A key of `datasets` in the params file.")],
    output: Output,
    params: Params = Path("params.yaml"),
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the original files [TSFLORA_DATA_DIR].")] = None,
) -> None:
    """Read an image set from its original files (or download them) and store it decoded."""
    with one_line_errors():
        study = StudyConfig.read(params)
        if dataset not in study.datasets:
            raise ConfigError(f"unknown dataset {dataset!r}; {did_you_mean(dataset, study.datasets)}")
        settings = Settings.from_environment(data_dir=data_dir)
        train, test = prepare_images(study.datasets[dataset], settings, output)
        print(f"{dataset}: {len(train)} training and {len(test)} test images, {train.n_classes} classes -> {output}")


@app.command()
def backbone(
    output: Output,
    params: Params = Path("params.yaml"),
    weights_dir: Annotated[Path | None, typer.Option(help="Folder of weight files [TSFLORA_WEIGHTS_DIR].")] = None,
) -> None:
    """Load the backbone's weights from the hub, a file or the package, check that they fit, and store them."""
    with one_line_errors():
        settings = Settings.from_environment(weights_dir=weights_dir)
        print(json.dumps(prepare_backbone(StudyConfig.read(params).backbone, settings, output), indent=1))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app()
