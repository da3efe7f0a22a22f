"""What a study starts from: images and backbone, loaded once and checked, and runs that are finished already."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.experiment import run_of
from tsflora.files import write_atomically
from tsflora.prepared import prepare_backbone, prepare_images
from tsflora.revisions import revisions as all_revisions
from tsflora.runs import record_path
from tsflora.settings import Settings
from tsflora.study import StudyConfig

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

Params = Annotated[Path, typer.Option(help="The study's params.yaml.")]


@app.command()
def inputs(
    output: Annotated[Path, typer.Option(help="Folder for the checked copies.")],
    params: Params = Path("params.yaml"),
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the original files [TSFLORA_DATA_DIR].")] = None,
    weights_dir: Annotated[Path | None, typer.Option(help="Folder of weight files [TSFLORA_WEIGHTS_DIR].")] = None,
) -> None:
    """Read a study's image sets from their original files (or download them) and store them decoded.

    And load the backbone's weights from the hub, a file or the package, check that they fit, and store them.
    """
    with one_line_errors():
        study = StudyConfig.read(params)
        settings = Settings.from_environment(data_dir=data_dir, weights_dir=weights_dir)
        for key, source in study.datasets.items():
            train, test = prepare_images(source, settings, output / key)
            n_images = f"{len(train)} training and {len(test)} test images"
            print(f"{key}: {n_images}, {train.n_classes} classes -> {output / key}")
        print(json.dumps(prepare_backbone(study.backbone, settings, output / "backbone"), indent=1))


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
            cell.digest: record_path(output / ("sweep" if cell.sweep else "methods"), cell)
            for cell in study.all_cells()
        }
        found = known.keys() & places.keys()
        for digest in found:
            known[digest].write(places[digest])
        print(f"{len(found)} of {len(places)} planned records -> {output}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app()
