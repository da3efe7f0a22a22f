"""Many runs: side by side, each to its record; what fails is a failed record, and what is complete stays."""

import contextlib
import datetime
import functools
import logging
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cloudpickle
import joblib
from filelock import FileLock, Timeout
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from tsflora.errors import ConfigError, NumericsError, StorageError, TsfloraError
from tsflora.experiment import Progress, run
from tsflora.files import check_writable
from tsflora.planned import ExperimentConfig
from tsflora.plugins import load_plugins
from tsflora.records import RunRecord, provenance
from tsflora.revisions import components_of
from tsflora.settings import Settings
from tsflora.workers import Died, side_by_side

_log = logging.getLogger(__name__)
_REPORT_EVERY_S = 0.5


class _Outcome(NamedTuple):
    record: RunRecord
    is_finding: bool = True
    """Complete, or diverged: running it again gives the same."""


def run_cells(
    cells: Sequence[ExperimentConfig], settings: Settings, records_dir: Path | str | None = None
) -> list[RunRecord]:
    """Run cells side by side, with one progress bar over all their rounds. Records come back in the cells' order.

    A cell that is given twice is run once. A record that `records_dir` already holds and that is still valid is read,
    not run again (see `experiment.run`), and one that another process is at work on is waited for. A run that fails
    gives a failed record, which `records_dir` holds as `*.failed.json` beside a complete one of an earlier run, and
    the others go on. A run that diverged is a finding: its failed record is among those that come back.

    Raises:
        ConfigError: different runs would have one file of `records_dir`; found out before anything runs.
        StorageError: `records_dir` cannot be written; found out before anything runs.
        TsfloraError: at the end, all runs failed, or one for another reason than that it diverged; the line says how
            many and why the first one did.
    """
    records_dir = None if records_dir is None else Path(records_dir)
    cells = list({cell.digest: cell for cell in cells}.values())
    if records_dir is not None:
        _check_places(cells, records_dir)
        check_writable(records_dir)
    outcomes: dict[int, _Outcome] = {}
    with (
        tqdm(total=sum(cell.training.rounds for cell in cells), unit="round") as bar,
        logging_redirect_tqdm(),
        contextlib.closing(_outcomes(cells, settings, records_dir, bar)) as arriving,
    ):
        for index, outcome in arriving:
            outcomes[index] = outcome
            if outcome.record.status == "failed":
                _log.error("%s", "\n".join(filter(None, [_line(outcome.record), outcome.record.traceback])))
    failed = [outcome for outcome in outcomes.values() if outcome.record.status == "failed"]
    if failed:
        first = min(failed, key=lambda outcome: outcome.is_finding)
        summary = f"{len(failed)} of {len(cells)} runs failed; {_line(first.record)}"
        if len(failed) == len(cells) or not first.is_finding:
            raise TsfloraError(summary)
        _log.warning("%s", summary)
    return [outcomes[index].record for index in range(len(cells))]


def record_path(folder: Path, cell: ExperimentConfig) -> Path:
    """Where a cell's record lies."""
    return folder / cell.method_key / cell.dataset_name / f"{cell.partition_name}-seed{cell.seed}.json"


def workers_of(settings: Settings) -> int:
    """How many runs `run_cells` works on at once: one on an accelerator, else one for each core it may use."""
    return settings.workers or (joblib.cpu_count() if settings.torch_device().type == "cpu" else 1)


def _check_places(cells: Sequence[ExperimentConfig], records_dir: Path) -> None:
    for path, count in Counter(record_path(records_dir, cell) for cell in cells).items():
        if count > 1:
            raise ConfigError(f"{count} runs of different configuration would write {path}; give them different keys")


def _line(record: RunRecord) -> str:
    return f"{record.method} on {record.dataset}, {record.partition}, seed {record.seed}: {record.error}"


def _outcomes(
    cells: Sequence[ExperimentConfig], settings: Settings, records_dir: Path | None, bar: tqdm
) -> Generator[tuple[int, _Outcome], None, None]:
    """Index and outcome of each cell as it is done."""

    def show(text: str, finished: int) -> None:
        bar.set_postfix_str(text, refresh=not finished)
        bar.update(finished)

    job = functools.partial(_run_cell, settings=settings, records_dir=records_dir)
    n_workers = min(workers_of(settings), len(cells))
    if n_workers <= 1:
        for index, cell in enumerate(cells):
            yield index, job(cell, show)
        return
    threads = max(joblib.cpu_count() // n_workers, 1)
    elsewhere = functools.partial(_run_elsewhere, settings=settings, records_dir=records_dir)
    # Packed: a class of a study's own file can be unpacked in another process only once that has run the file.
    jobs = [(list(cell.plugins), cloudpickle.dumps(cell)) for cell in cells]
    with contextlib.closing(side_by_side(elsewhere, jobs, n_workers, threads, show)) as arriving:
        for index, outcome in arriving:
            if isinstance(outcome, Died):
                hint = "; too little memory is the usual cause, fewer TSFLORA_WORKERS need less"
                error = f"its process ended by {outcome.how}{hint if outcome.how == 'SIGKILL' else ''}"
                record = _failed_record(cells[index], settings, error, records_dir)
                outcome = _Outcome(record, is_finding=False)
            yield index, outcome


def _run_elsewhere(
    job: tuple[list[str], bytes], report: Progress, settings: Settings, records_dir: Path | None
) -> _Outcome:
    plugins, packed = job
    load_plugins(plugins, Path())
    return _run_cell(cloudpickle.loads(packed), report, settings, records_dir)


def _run_cell(cell: ExperimentConfig, report: Progress, settings: Settings, records_dir: Path | None) -> _Outcome:
    progress = _named(cell, report)
    path = None if records_dir is None else record_path(records_dir, cell)
    start = datetime.datetime.now(datetime.UTC)
    with contextlib.nullcontext() if path is None else _alone(path, progress):
        try:
            record = run(cell, settings, progress, path)
        except StorageError:
            raise
        except Exception as error:  # whatever a component does, the other cells go on and the record says what happened
            line, text = str(error), None
            if not isinstance(error, TsfloraError):
                line = f"{type(error).__name__}: {' '.join(line.split())} ({_place(error, cell)})"
                text = "".join(traceback.format_exception(error))
            return _Outcome(
                _failed_record(cell, settings, line, records_dir, text, start), isinstance(error, NumericsError)
            )
        if path is not None:
            _failed_path(path).unlink(missing_ok=True)
    return _Outcome(record)


@contextlib.contextmanager
def _alone(path: Path, progress: Progress) -> Iterator[None]:
    """One process at a time for each record: a second one waits, and then finds the record.

    Raises:
        StorageError: the record's folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            progress("waits for the process that is at work on it", 0)
            lock.acquire()
    except OSError as error:
        raise StorageError(f"cannot lock {path}: {error.strerror or error}; choose another folder") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # who holds it may remove it: one that waits looks for it anew
            Path(lock.lock_file).unlink()
        lock.release()


def _failed_path(path: Path) -> Path:
    return path.with_suffix(".failed.json")


def _failed_record(
    cell: ExperimentConfig,
    settings: Settings,
    error: str,
    records_dir: Path | None,
    traceback_text: str | None = None,
    start: datetime.datetime | None = None,
) -> RunRecord:
    """The record of a run that failed, written beside the place of a complete one."""
    now = datetime.datetime.now(datetime.UTC)
    start = start or now
    record = RunRecord(
        status="failed",
        error=error,
        traceback=traceback_text,
        dataset=cell.dataset_name,
        method=cell.method_key,
        label=cell.label,
        partition=cell.partition_name,
        seed=cell.seed,
        config=cell.dump(),
        started_at=start.isoformat(timespec="seconds"),
        seconds=(now - start).total_seconds(),
        peak_memory_mib=0.0,
        provenance=provenance(settings.torch_device(), settings.threads),
    )
    if records_dir is not None:
        record.write(_failed_path(record_path(records_dir, cell)))
    return record


def _place(error: Exception, cell: ExperimentConfig) -> str:
    """Where to look: the last line in the code of a component's author that was running, else the last one of ours."""
    frames = [
        (frame.f_globals.get("__name__", "").partition(".")[0], f"{frame.f_code.co_filename}:{line}")
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    ours = __name__.partition(".")[0]
    authors = {type(part).__module__.partition(".")[0] for part in components_of(cell)} - {ours}
    for packages in (authors, {ours}):
        if places := [place for package, place in frames if package in packages]:
            return places[-1]
    return frames[-1][1]


def _named(cell: ExperimentConfig, report: Progress) -> Progress:
    """`report` with the cell's name before the text, and not more often than anyone can read."""
    last = 0.0

    def named(text: str, finished: int) -> None:
        nonlocal last
        if finished or time.monotonic() - last > _REPORT_EVERY_S:
            last = time.monotonic()
            report(f"{cell.method_key}/{cell.partition_name}/{cell.seed} {text}", finished)

    return named
