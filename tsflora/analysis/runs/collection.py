"""Records from disk and back: a folder of one file per run, or one JSON-lines file of a whole study."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tsflora.analysis.runs.naming import in_order
from tsflora.config import explain
from tsflora.errors import ConfigError, DataError
from tsflora.files import write_atomically
from tsflora.planned import run_of
from tsflora.records import RunRecord

log = logging.getLogger(__name__)


class Records(NamedTuple):
    """Runs in report order; only complete ones are evaluated, failed ones are kept so that a report can name them."""

    complete: list[RunRecord]
    failed: list[RunRecord]


def separate(records: Iterable[RunRecord]) -> Records:
    """Split runs by status, each part in report order; every failed run is logged as a warning."""
    ordered = in_order([_as_of_now(run) for run in records])
    failed = [run for run in ordered if run.status == "failed"]
    for run in failed:
        log.warning(
            "left out, run failed: %s, %s, %s, seed %d: %s", run.dataset, run.partition, run.method, run.seed, run.error
        )
    return Records([run for run in ordered if run.status == "complete"], failed)


def _as_of_now(record: RunRecord) -> RunRecord:
    """The record with its configuration as today's code writes it, so that it can be compared with a plan.

    An option that was added since has its default: without it, the run was as if it were so. A configuration that is no
    longer valid stays as it was written, and is then not one of a plan.
    """
    try:
        return record.model_copy(update={"config": run_of(record).dump()})
    except ConfigError:
        return record


def load_records(folder: Path) -> Records:
    """Read every `*.json` below `folder`.

    Raises:
        DataError: the folder is missing or holds no record, or a file is damaged (a run is never skipped in silence).
    """
    paths = sorted(folder.rglob("*.json"))
    if not paths:
        raise DataError(f"{folder}: no run records (*.json) there; run an experiment first or name another folder")
    return separate(RunRecord.read(path) for path in paths)


def method_records(records: Sequence[RunRecord]) -> list[RunRecord]:
    """The runs of a study's methods, without the points of its sweeps."""
    return [run for run in records if run.config.get("sweep") is None]


def write_jsonl(records: Iterable[RunRecord], path: Path) -> None:
    """Write records, one per line in report order, atomically; the same records always give the same bytes."""
    lines = [json.dumps(run.model_dump(mode="json"), sort_keys=True, allow_nan=False) for run in in_order(records)]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_jsonl(path: Path) -> Records:
    """Read what `write_jsonl` wrote.

    Raises:
        DataError: the file is missing, empty, or a line is not a record; the message names the line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not lines:
        raise DataError(f"{path}: holds no run records; write it with write_jsonl")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(RunRecord.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            broken = problem["type"] == "json_invalid"  # its input is the whole line, too long for a message
            reason = problem["msg"] if broken else explain(error, "record", RunRecord)
            raise DataError(f"{path}, line {number}: not a run record: {reason}") from None
    return separate(records)
