"""Join a study's run records into the one file that its tables and figures are drawn from."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.errors import DataError
from tsflora.records import RunRecord, config_digest
from tsflora.report import load_records, write_jsonl
from tsflora.study import StudyConfig


def main(
    records: Annotated[Path, typer.Argument(help="Folder of run records.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
    params: Annotated[Path, typer.Option(help="The study's params.yaml: says which runs belong to it.")] = Path(
        "params.yaml"
    ),
) -> None:
    """Write the study's complete records below RECORDS to OUTPUT, one a line, in a fixed order.

    A record of another configuration than the study has now is left out and named: it would be averaged with others
    that it does not belong to.
    """
    with one_line_errors():
        planned = {config_digest(cell.dump()) for cell in StudyConfig.read(params).all_cells()}
        found = load_records(records).complete
        kept = [record for record in found if record.config_sha256 in planned]
        for record in found:
            if record.config_sha256 not in planned:
                logging.warning("left out, not a run of this study as it is now: %s", _name(record))
        if not kept:
            raise DataError(f"{records} holds no record of a run in {params}; run the study's run stages first")
        write_jsonl(kept, output)
        print(f"{len(kept)} of {len(planned)} planned records -> {output}")


def _name(record: RunRecord) -> str:
    return f"{record.dataset}, {record.method}, {record.partition}, seed {record.seed}"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
