"""Worker processes: side by side, and gone when a job kills its own, when a job raises, and when their parent ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tsflora.errors import StorageError
from tsflora.workers import Died, side_by_side


def work(job, report):
    report(f"at {job}", 1)
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(3)
    if job == "raise":
        raise StorageError("disk full")
    if job == "sleep":
        time.sleep(600)
    return job, os.getpid(), os.environ["OMP_NUM_THREADS"]


def outcomes(jobs, n_workers=2, report=lambda *_: None):
    return dict(side_by_side(work, jobs, n_workers, 1, report))


def gone(processes, within_s=60):
    return not psutil.wait_procs(processes, timeout=within_s)[1]


def children():
    # multiprocessing's resource tracker lives as long as we do
    return [p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]


def test_jobs_share_workers_and_report():
    said = []
    found = outcomes(range(5), report=lambda *message: said.append(message))
    assert [found[index][0] for index in range(5)] == list(range(5))
    assert len({pid for _, pid, _ in found.values()} | {os.getpid()}) == 3
    assert sorted(said) == [(f"at {job}", 1) for job in range(5)]
    assert not children()
    assert outcomes([]) == {}


def test_a_worker_that_dies_is_one_jobs_failure_and_is_replaced():
    found = outcomes(["kill", 1, "exit", 3, 4])
    assert found[0] == Died("SIGKILL")
    assert found[2] == Died("exit status 3")
    assert [found[index][0] for index in (1, 3, 4)] == [1, 3, 4]


def test_an_idle_worker_that_was_killed_is_replaced():
    arriving = side_by_side(work, [0, 1, 2], 1, 1, lambda *_: None)
    _, first = next(arriving)
    assert not isinstance(first, Died)
    _, pid, _ = first
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert [result[0] for _, result in arriving if not isinstance(result, Died)] == [1, 2]


def test_an_exception_is_raised_here_and_ends_the_others():
    with pytest.raises(StorageError, match="disk full"):
        outcomes(["sleep", "raise"])
    assert not children()


def test_whoever_stops_asking_ends_the_workers():
    arriving = side_by_side(work, [0, "sleep"], 2, 1, lambda *_: None)
    next(arriving)
    arriving.close()
    assert not children()


SCRIPT = """
import sys, time
sys.path.insert(0, {tests!r})

class Mine:  # lives in a script without `if __name__ == "__main__"`, as in a notebook
    def __call__(self, job, report):
        report("", 0)
        if job:
            time.sleep(600)
        return "done"

from tsflora.workers import side_by_side
print(sorted(side_by_side(Mine(), [0, 0], 2, 1, lambda *_: None)), flush=True)
for _ in side_by_side(Mine(), [1, 1], 2, 1, lambda *said: print("working", flush=True)):
    pass
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_workers_end_with_their_parent_whatever_ends_it(tmp_path, how):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        assert lines == ["[(0, 'done'), (1, 'done')]\n", "working\n", "working\n"]
        below = psutil.Process(process.pid).children(recursive=True)
        assert len(below) >= 2
        # Ctrl-C in a terminal reaches them all
        for one in [*below, process] if how == signal.SIGINT else [process]:
            os.kill(one.pid, how)
        _, errors = process.communicate(timeout=120)
        assert gone(below)
    finally:
        process.kill()
    assert process.returncode == -how
    assert errors.count("Traceback") == (how == signal.SIGINT), "ours alone: workers say nothing"
