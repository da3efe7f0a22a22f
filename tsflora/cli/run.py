"""`tsflora run`: runs of a study, without the pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tsflora.cli.common import PARAMS, Params, read_study

if TYPE_CHECKING:
    from tsflora.records import RunRecord


def run(
    params: Params = PARAMS,
    method: Annotated[list[str] | None, typer.Option(help="A key of `methods`; again for each. [default: all]")] = None,
    partition: Annotated[
        list[str] | None, typer.Option(help="A key of `partitions`; again for each. [default: all]")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="A seed; again for each. [default: the study's]")] = None,
    dataset: Annotated[str | None, typer.Option(help="A key of `datasets`. [default: all]")] = None,
    records_dir: Annotated[
        Path | None, typer.Option(help="Keep records here; one that is there and still valid is not run again.")
    ] = None,
    checkpoint_dir: Annotated[
        Path | None, typer.Option(help="Keep half-finished runs here, to go on with [TSFLORA_CHECKPOINT_DIR].")
    ] = None,
) -> None:
    """Train methods of a study; print accuracy and traffic.

    Without --records-dir nothing is written. Fails if a run failed.
    """
    from tsflora.runs import run_cells
    from tsflora.settings import Settings

    cells = read_study(params).cells(dataset, method or None, partition or None, seed or None)
    settings = Settings.from_environment(checkpoint_dir=checkpoint_dir)
    records = run_cells(cells, settings, records_dir)
    for record in records:
        typer.echo(_line(record))
    if any(record.status == "failed" for record in records):
        raise typer.Exit(1)


def _line(record: "RunRecord") -> str:
    from tsflora.analysis.runs import runs_frame

    name = f"{record.method} on {record.dataset}, {record.partition}, seed {record.seed}"
    if record.status == "failed":
        return f"{name}: failed, {record.error}"
    (row,) = runs_frame([record]).to_dict("records")
    diverged = "diverged, " if row["diverged"] else ""
    return (
        f"{name}: {diverged}accuracy {row['accuracy']:.4f} ({row['accuracy_uncompressed']:.4f} with compression off), "
        f"{row['uplink_mib_per_device_round']:.4g} MiB up and {row['downlink_mib_per_device_round']:.4g} MiB down "
        f"per device and round, {record.seconds:.0f} s"
    )
