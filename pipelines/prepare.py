"""What a study starts from: images and backbone, loaded once and checked, and runs that are finished already."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.config import did_you_mean
from tsflora.errors import ConfigError
from tsflora.experiment import run_of
from tsflora.files import write_atomically
from tsflora.prepared import prepare_backbone, prepare_images
from tsflora.revisions import revisions as all_revisions
from tsflora.runs import record_path
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


@app.command()
def revisions(output: Annotated[Path, typer.Option(help="The .json file to write.")]) -> None:
    """Write what runs depend on in place of code: revisions of loop and components, versions of what computes."""
    with one_line_errors():
        content = all_revisions()
        write_atomically(output, json.dumps(content, indent=1, sort_keys=True).encode() + b"\n")
        print(f"trajectory {content['trajectory']}, {len(content['components'])} components -> {output}")


@app.command()
def records(
    source: Annotated[Path, typer.Argument(help="A study's committed records, one a line.")],
    output: Annotated[Path, typer.Argument(help="The folder of records that its run stages write below.")],
    params: Params = Path("params.yaml"),
) -> None:
    """Lay committed records where run stages look for finished ones, so that a grown study runs only what is new.

    A stage takes a record only if everything that its numbers depend on is the same; any other is run again.
    """
    # The report brings plotting and statistics along, which the other commands need not wait for.
    from tsflora.analysis.runs.collection import read_jsonl

    with one_line_errors():
        study = StudyConfig.read(params)
        known = {run_of(record).digest: record for record in read_jsonl(source).complete}
        places = {
            cell.digest: record_path(output / "sweep" if cell.sweep else output, cell) for cell in study.all_cells()
        }
        found = known.keys() & places.keys()
        for digest in found:
            known[digest].write(places[digest])
        print(f"{len(found)} of {len(places)} planned records -> {output}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app()
