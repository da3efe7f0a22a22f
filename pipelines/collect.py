"""Join a study's run records into the one file that its tables and figures are drawn from."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.analysis.runs import load_records, method_records, read_jsonl, summary, write_jsonl
from tsflora.errors import ConfigError, DataError
from tsflora.experiment import run_of
from tsflora.files import write_atomically
from tsflora.records import RunRecord
from tsflora.study import StudyConfig


def main(
    records: Annotated[Path, typer.Argument(help="Folder of run records.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml: says which runs belong to it.")] = Path(
        "params.yaml"
    ),
    metrics: Annotated[
        Path | None, typer.Option(help="A .json file for accuracy and traffic by method, as `dvc metrics` shows them.")
    ] = None,
) -> None:
    """Write the study's records below RECORDS to OUTPUT, one a line, in a fixed order; failed runs are marked as such.

    A record of another configuration than the study has now is left out and named: it would be averaged with others
    that it does not belong to. Of two records of one run (a method that another stage ran before) a complete one stays,
    and of two complete ones the newer. A record in OUTPUT stays as it is where the run only repeats it: so clocks and
    hosts change there with a result, never alone.
    """
    with one_line_errors():
        planned = {cell.digest for cell in StudyConfig.read(params).all_cells()}
        found = load_records(records)
        kept: dict[str, RunRecord] = {}
        newest_first = sorted(found.complete, key=lambda record: record.started_at, reverse=True)
        for record in [*newest_first, *found.failed]:
            try:
                digest = run_of(record).digest
            except ConfigError as error:
                logging.warning("left out, %s", error)
                continue
            if digest not in planned:
                logging.warning("left out, not a run of this study as it is now: %s", _name(record))
            elif digest in kept:
                logging.warning("left out, there is a better record of the same run: %s", _name(record))
            else:
                kept[digest] = record
        if not kept:
            raise DataError(f"{records} holds no record of a run in {params}; run the study's run stages first")
        before = _by_result(output)
        n_repeated = sum(_result(record) in before for record in kept.values())
        write_jsonl([before.get(_result(record), record) for record in kept.values()], output)
        if metrics is not None:
            complete = method_records([record for record in kept.values() if record.status == "complete"])
            write_atomically(metrics, json.dumps(summary(complete), indent=1).encode() + b"\n")
        failed = sum(record.status == "failed" for record in kept.values())
        print(
            f"{len(kept)} of {len(planned)} planned records{f', {failed} failed' if failed else ''} -> {output}; "
            f"{n_repeated} repeat to the bit what was there"
        )


def _by_result(path: Path) -> dict[str, RunRecord]:
    """The records that are in `path`, by what they say but for clocks and hosts; none where it cannot be read."""
    try:
        found = read_jsonl(path)
    except DataError:
        return {}
    return {_result(record): record for record in [*found.complete, *found.failed]}


def _result(record: RunRecord) -> str:
    basis = None if record.basis is None else record.basis.model_dump(mode="json")
    return json.dumps([record.comparable(), basis], sort_keys=True)


def _name(record: RunRecord) -> str:
    return f"{record.dataset}, {record.method}, {record.partition}, seed {record.seed}"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
