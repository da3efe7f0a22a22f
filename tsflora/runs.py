"""Many runs: side by side over worker processes, each to its record."""

import datetime
import logging
import os
import threading
import time
from collections.abc import Sequence
from multiprocessing import Manager
from pathlib import Path
from typing import Any

import joblib
from tqdm import tqdm

from tsflora.errors import StorageError, TsfloraError
from tsflora.experiment import ExperimentConfig, Progress, run
from tsflora.files import check_writable
from tsflora.records import RunRecord, config_digest, provenance
from tsflora.settings import Settings

_log = logging.getLogger(__name__)
_REPORT_EVERY_S = 0.5

Reports = Any
"""A manager's proxy of a queue of (text, rounds finished), ended by None; the proxy's class is made at run time."""


def run_cells(
    cells: Sequence[ExperimentConfig], settings: Settings, records_dir: Path | str | None = None
) -> list[RunRecord]:
    """Run cells side by side, with one progress bar over all their rounds. Records come back in the cells' order.

    A record that `records_dir` already holds and that is still valid is read, not run again (see `experiment.run`). A
    run that fails leaves `*.failed.json` there, the others go on, and the first error is raised at the end.

    Raises:
        StorageError: `records_dir` cannot be written; found out before anything runs.
        TsfloraError: at least one run failed; the line says how many and why the first one did.
    """
    records_dir = None if records_dir is None else Path(records_dir)
    if records_dir is not None:
        check_writable(records_dir)
    workers = settings.workers or (os.cpu_count() or 1 if settings.torch_device().type == "cpu" else 1)
    rounds = sum(cell.training.rounds for cell in cells)
    if workers == 1 or len(cells) == 1:
        with tqdm(total=rounds, unit="round") as bar:

            def show(text: str, finished: int) -> None:
                bar.set_postfix_str(text, refresh=not finished)
                bar.update(finished)

            outcomes = [_run_cell(cell, settings, records_dir, _named(cell, show)) for cell in cells]
    else:
        with Manager() as manager, tqdm(total=rounds, unit="round") as bar:
            reports = manager.Queue()
            reader = threading.Thread(target=_show_reports, args=(reports, bar), daemon=True)
            reader.start()
            jobs = (joblib.delayed(_run_cell_in_worker)(cell, settings, records_dir, reports) for cell in cells)
            try:
                outcomes = joblib.Parallel(n_jobs=workers)(jobs)
            finally:
                reports.put(None)
                reader.join()
    failed = [outcome for outcome in outcomes if outcome.status == "failed"]
    if failed:
        first = failed[0]
        raise TsfloraError(
            f"{len(failed)} of {len(cells)} runs failed; "
            f"{first.method} on {first.dataset}, {first.partition}, seed {first.seed}: {first.error}"
        )
    return outcomes


def record_path(folder: Path, cell: ExperimentConfig) -> Path:
    """Where a cell's record lies."""
    return folder / cell.dataset_name / cell.method_key / f"{cell.partition_name}-seed{cell.seed}.json"


def _run_cell(cell: ExperimentConfig, settings: Settings, records_dir: Path | None, progress: Progress) -> RunRecord:
    path = None if records_dir is None else record_path(records_dir, cell)
    failed_path = None if path is None else path.with_suffix(".failed.json")
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    try:
        record = run(cell, settings, progress, path)
    except StorageError:
        raise
    except Exception as error:  # whatever a component does, the other cells go on and the study says what happened
        expected = isinstance(error, TsfloraError)
        line = str(error) if expected else f"{type(error).__name__}: {' '.join(str(error).split())}"
        _log.error("%s, %s, seed %d failed: %s", cell.method_key, cell.partition_name, cell.seed, line)
        if not expected:
            _log.info("traceback of the failed run", exc_info=True)
        record = RunRecord(
            status="failed",
            error=line,
            dataset=cell.dataset_name,
            method=cell.method_key,
            label=cell.label,
            partition=cell.partition_name,
            seed=cell.seed,
            config=cell.dump(),
            config_sha256=config_digest(cell.dump()),
            started_at=started.isoformat(timespec="seconds"),
            seconds=time.perf_counter() - clock,
            peak_memory_mib=0.0,
            provenance=provenance(settings.torch_device(), settings.threads),
        )
        if path is not None and failed_path is not None:
            path.unlink(missing_ok=True)
            record.write(failed_path)
        return record
    if failed_path is not None:
        failed_path.unlink(missing_ok=True)
    return record


def _run_cell_in_worker(
    cell: ExperimentConfig, settings: Settings, records_dir: Path | None, reports: Reports
) -> RunRecord:
    return _run_cell(cell, settings, records_dir, _named(cell, lambda text, finished: reports.put((text, finished))))


def _named(cell: ExperimentConfig, report: Progress) -> Progress:
    """`report` with the cell's name before the text, and not more often than anyone can read."""
    last = 0.0

    def named(text: str, finished: int) -> None:
        nonlocal last
        if finished or time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            report(f"{cell.method_key}/{cell.partition_name}/{cell.seed} {text}", finished)

    return named


def _show_reports(reports: Reports, bar: tqdm) -> None:
    while (message := reports.get()) is not None:
        bar.set_postfix_str(message[0], refresh=not message[1])
        bar.update(message[1])
