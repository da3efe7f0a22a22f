"""Join a study's run records into the one file that its tables and figures are drawn from."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from command import one_line_errors

from tsflora.errors import DataError
from tsflora.report import load_records, write_jsonl


def main(
    records: Annotated[Path, typer.Argument(help="Folder of run records.")],
    output: Annotated[Path, typer.Argument(help="The .jsonl file to write.")],
) -> None:
    """Write every complete record below RECORDS to OUTPUT, one a line, in a fixed order."""
    with one_line_errors():
        found = load_records(records)
        if not found.complete:
            raise DataError(f"{records} holds no complete run record; run the study's run stages first")
        write_jsonl(found.complete, output)
        print(f"{len(found.complete)} records -> {output}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    typer.run(main)
