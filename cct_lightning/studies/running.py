"""Carries out the runs of a study, one after another or in processes side by side; each writes what it says into a log beside its run."""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from cct_lightning.evaluation.measures import measured
from cct_lightning.studies.plan import Job
from cct_lightning.wording import duration, percent, reason

LOG = "log.txt"
Call = Callable[[Job], None]


@dataclass
class Result:
    """How a run ended.

    Attributes:
        job: The run.
        error: Why it failed, in a line; None where it did not.
        seconds: That it took now.
        stopped: The exit code of a signal that stopped it; it can go on.
    """

    job: Job
    error: str | None
    seconds: float
    stopped: int = 0


def carry_out(jobs: Iterable[Job], call: Call, processes: int = 1) -> Generator[Result]:
    """Carries out runs; one that fails ends nothing but itself. To be closed, where it is not followed to its end: processes may be at work.

    Args:
        jobs: The runs, in the order in which they begin; each is asked for when it can begin, and so may depend on the results before.
        call: Trains one, or goes on with it; a function of a module, which other processes can import.
        processes: How many run side by side, each on its share of the cores; 1: in this process.

    Yields:
        How each ended, as soon as it has.

    Raises:
        KeyboardInterrupt: Ctrl-C; the runs at hand have written what they go on from.
        SystemExit: Another signal that asks a process to end; likewise.
    """
    processes = min(processes, len(jobs)) if isinstance(jobs, Sequence) else processes
    if processes > 1:
        yield from _side_by_side(iter(jobs), call, processes)
        return
    for job in jobs:
        result = _one(job, call)
        yield result
        _raise_stop(result.stopped)


def _raise_stop(code: int) -> None:
    if code == 128 + signal.SIGINT:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)


def _one(job: Job, call: Call) -> Result:
    begun, error, stopped = time.monotonic(), None, 0
    job.folder.mkdir(parents=True, exist_ok=True)
    with into(job.folder / LOG):
        try:
            call(job)
        except KeyboardInterrupt:
            stopped = 128 + signal.SIGINT
        except SystemExit as ended:
            stopped = ended.code if isinstance(ended.code, int) and ended.code > 128 else 0
            error = None if stopped else f"it ended with code {ended.code}"
        except Exception as fault:
            traceback.print_exc()
            error = reason(fault)
    return Result(job, error, time.monotonic() - begun, stopped)


@contextmanager
def into(log: Path) -> Iterator[None]:
    """Sends what is printed, also past Python's own streams, into a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    with log.open("a", encoding="utf-8", errors="replace") as file:
        _hand_loggers(sys.stderr, file)
        kept = {number: os.dup(number) for number in (1, 2)}
        try:
            for number in kept:
                os.dup2(file.fileno(), number)
            with redirect_stdout(file), redirect_stderr(file):
                yield
        finally:
            file.flush()
            for number, before in kept.items():
                os.dup2(before, number)
                os.close(before)
            _hand_loggers(file, sys.stderr)


def _hand_loggers(before: object, now: IO[str]) -> None:
    """Has loggers that write into one stream write into another: Lightning's keep the one that was there when it was imported."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        for handler in logger.handlers if isinstance(logger, logging.Logger) else ():
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                handler.setStream(now)


def _end_with_parent() -> None:
    """Has the run at hand stop, which writes what it goes on from, once the process that gave it is gone: killed, it can't say so itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


def _work(pipe: Connection, call: Call) -> None:
    """A process that carries out runs one after another until there are no more."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    while True:
        try:
            job = pipe.recv()
            if job is None:
                return
            result = _one(job, call)
            pipe.send(result)
            if result.stopped:
                return
        except (EOFError, BrokenPipeError, KeyboardInterrupt):  # the study has ended, or a signal came between two runs
            return


class _Worker:
    """A process beside this one, and the run that it has."""

    def __init__(self, call: Call, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # torch's threads don't survive a fork
        self.pipe, theirs = spawn.Pipe()
        self.process: BaseProcess = spawn.Process(target=_work, args=(theirs, call), daemon=False)
        with _environment(OMP_NUM_THREADS=str(threads)):
            self.process.start()
        theirs.close()
        self.job: Job | None = None
        self.begun = 0.0

    def give(self, job: Job) -> None:
        self.job, self.begun = job, time.monotonic()
        self.pipe.send(job)

    def end(self) -> None:
        with suppress(OSError):
            self.pipe.send(None)
        self.pipe.close()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _leaving_by_exception() -> Iterator[None]:
    """Has SIGTERM and SIGHUP raise SystemExit, once: by default they end the process at once, which then waits for no run that saves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def leave(number: int, frame: object) -> None:
        came.append(number)
        if len(came) == 1:
            raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, leave) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}  # as nohup leaves it
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _side_by_side(jobs: Iterator[Job], call: Call, processes: int) -> Iterator[Result]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(cores // processes, 1)
    workers: list[_Worker] = []
    with _leaving_by_exception():
        try:
            while True:
                workers = [worker for worker in workers if worker.process.is_alive() or worker.job]
                while sum(worker.job is not None for worker in workers) < processes and (job := next(jobs, None)) is not None:
                    idle = next((worker for worker in workers if worker.job is None), None)
                    if idle is None:
                        workers.append(idle := _Worker(call, threads))
                    idle.give(job)
                if not any(worker.job for worker in workers):
                    return
                for worker in _ready(workers):
                    result = _result(worker)
                    worker.job = None
                    if result.stopped or not worker.process.is_alive():
                        workers.remove(worker)
                        worker.end()
                        worker.process.join()
                    yield result
                    _raise_stop(result.stopped)
        finally:
            _end(workers)


def _ready(workers: Sequence[_Worker]) -> list[_Worker]:
    """Waits until a worker has something to say, or has died."""
    busy: dict[Any, _Worker] = {worker.pipe: worker for worker in workers if worker.job}
    return [busy[pipe] for pipe in wait(list(busy))]


def _result(worker: _Worker) -> Result:
    assert worker.job is not None
    try:
        result: Result = worker.pipe.recv()
        return result
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"code {code}"
        return Result(worker.job, f"its process ended by {how}: for want of memory, where nobody killed it", time.monotonic() - worker.begun)


def _end(workers: Sequence[_Worker]) -> None:
    """Has the workers end: those in a run stop it, which writes what it goes on from."""
    for worker in workers:
        if worker.job is not None and worker.process.is_alive() and worker.process.pid is not None:
            os.kill(worker.process.pid, signal.SIGTERM)
        worker.end()
    for worker in workers:
        worker.process.join()


def line(number: int, count: int, result: Result) -> str:
    """Tells how a run ended: "[3/40] seqpool, seed 1: 83.9 % test, 1 min 40 s"."""
    summary, head = result.job.summary, f"[{number}/{count}] {result.job.title}"
    if result.error is not None:
        return f"{head}: FAILED, {result.error} ({result.job.folder / LOG})"
    if summary is None:
        return f"{head}: stopped, it goes on from there"
    found, which = measured(summary, "test"), "test"
    if found is None:
        found, which = measured(summary, "val"), "validation"
    return f"{head}: {percent(found, 2)} {which}, {duration(result.seconds)}"
