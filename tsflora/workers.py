"""Jobs side by side, each worker a process of its own: it ends when whoever started it does, and may die alone."""

import contextlib
import multiprocessing
import os
import queue
import signal
import sys
import threading
import types
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import cloudpickle

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")
Report = Callable[[str, int], None]
"""What a job says on its way: a text, and a count."""

_CONTEXT = multiprocessing.get_context("spawn")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
_PATIENCE_S = 5.0


@dataclass(frozen=True)
class Died:
    """In the place of a job's result: the process that worked on it is gone."""

    how: str


def side_by_side(
    function: Callable[[JobT, Report], ResultT], jobs: Sequence[JobT], n_workers: int, n_threads: int, report: Report
) -> Generator[tuple[int, ResultT | Died], None, None]:
    """`function(job, report)` for every job, in `n_workers` processes; each job's index and result as it is done.

    What a job reports arrives at `report`. A job whose process dies gives `Died`, is not tried again, and leaves the
    others alone. An exception of `function` is raised here and ends the other jobs, as does closing this iterator.
    `n_threads` is the number of threads of numerical libraries in a process, where the environment does not say.
    """
    waiting = deque(enumerate(jobs))
    idle: list[_Worker] = []
    busy: dict[Connection, tuple[_Worker, int]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < n_workers:
                while idle and not idle[-1].process.is_alive():
                    idle.pop().end()
                worker = idle.pop() if idle else _Worker(n_threads)
                index, job = waiting.popleft()
                busy[worker.connection] = worker, index
                worker.give(function, job)
            for connection in wait(list(busy)):
                worker, index = busy[connection]  # type: ignore[index]
                try:
                    sort, content = worker.connection.recv()
                except (EOFError, OSError):
                    del busy[worker.connection]
                    yield index, Died(worker.end())
                    continue
                if sort == "report":
                    report(*content)
                    continue
                del busy[worker.connection]
                idle.append(worker)
                if sort == "raised":
                    raise content
                yield index, content
    finally:
        for worker in [*idle, *(worker for worker, _ in busy.values())]:
            worker.end()


class _Worker:
    """A process that takes one job after another through its connection, and ends with it."""

    def __init__(self, n_threads: int) -> None:
        self.connection, theirs = _CONTEXT.Pipe()
        self.process = _CONTEXT.Process(target=_serve, args=(theirs, n_threads))
        with _for_a_start():
            self.process.start()
        theirs.close()

    def give(self, function: Callable[[JobT, Report], ResultT], job: JobT) -> None:
        # cloudpickle, so that a component that was defined in a notebook or script can be part of a job.
        content = cloudpickle.dumps((function, job))
        with contextlib.suppress(OSError):  # a process that is gone is seen when it does not answer
            self.connection.send_bytes(content)

    def end(self) -> str:
        """End the process if it has not ended; returns how it did."""
        self.connection.close()
        self.process.join(_PATIENCE_S)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        code = self.process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else f"exit status {code}"


@contextlib.contextmanager
def _for_a_start() -> Iterator[None]:
    """A new process neither runs the caller's script again nor dies of the caller's Ctrl-C with a traceback."""
    main, can_block = sys.modules["__main__"], hasattr(signal, "pthread_sigmask")
    sys.modules["__main__"] = types.ModuleType("__main__")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if can_block else None
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        if before is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, n_threads: int) -> None:
    """The worker's side. Light until the first job: numerical libraries read the environment when they are loaded."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever gives the jobs decides
    for name in _THREADS:
        os.environ.setdefault(name, str(n_threads))
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(connection, jobs), daemon=True).start()

    def send(*message: Any) -> None:
        try:
            connection.send(message)
        except OSError:
            os._exit(1)

    while True:
        content = jobs.get()
        try:
            function, job = cloudpickle.loads(content)
            result = function(job, lambda *said: send("report", said))
        except Exception as error:
            send("raised", error)
        else:
            send("done", result)


def _listen(connection: Connection, jobs: "queue.SimpleQueue[bytes]") -> None:
    """Take jobs until there is nobody left to give any: then the process ends, in the middle of a job if need be."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            jobs.put(connection.recv_bytes())
    os._exit(1)
