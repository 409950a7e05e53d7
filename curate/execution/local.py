"""The local engine: this process, or several processes on this machine."""

import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any

from curate.errors import CurateError
from curate.execution import tasks
from curate.execution.devices import find_local_devices
from curate.execution.limits import cpu_count
from curate.execution.reporting import no_progress, set_reporter
from curate.execution.types import Cores, Devices, Outcome, ReportProgress, Resources, Task

_TASKS_PER_WORKER = 4  # in flight, so that no worker waits for the driver
_POLL_INTERVAL = 0.02  # seconds


def map(  # noqa: A001 - the usual word for it
    task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
) -> Iterator[Outcome]:
    """See `engine.map`; several processes only where there is work for more than one."""
    remaining = iter(items)
    first_items = list(itertools.islice(remaining, resources.workers))
    workers, all_items = len(first_items), itertools.chain(first_items, remaining)
    if workers <= 1:
        yield from _map_in_process(task, all_items, advance)
    else:
        yield from _map_in_pool(task, all_items, workers, resources, advance)


def reduce(
    task: Task,
    items: Iterable[Any],
    merge: Callable[[Any, Any], Any],
    resources: Resources,
    advance: ReportProgress,
) -> Outcome:
    """See `engine.reduce`; this process merges."""
    failures: list[Outcome] = []

    def iterate_results() -> Iterator[Any]:
        for outcome in map(task, items, resources, advance):
            if outcome.error:
                failures.append(outcome)
                return
            yield outcome.result

    result = tasks.tree_reduce(iterate_results(), merge)
    return failures[0] if failures else Outcome(None, result, None)


def find_devices(device: str) -> Devices:
    """See `types.Engine`. Raises CurateError."""
    return find_local_devices(device)


def count_cores(device: str = "cpu") -> Cores:
    """See `types.Engine`."""
    return Cores(cpu_count(), cpu_count())


def _map_in_process(task: Task, items: Iterator[Any], advance: ReportProgress) -> Iterator[Outcome]:
    # GPUs and threads are left as they are: torch and the libraries may use all of this process.
    set_reporter(advance)
    try:
        for item in items:
            yield tasks.run_task(task, item)
    finally:
        set_reporter(no_progress)


def _map_in_pool(
    task: Task, items: Iterator[Any], workers: int, resources: Resources, advance: ReportProgress
) -> Iterator[Outcome]:
    # spawn: a fork would copy the locks of torch's, faiss' and DuckDB's threads in whatever state
    # they are.
    context = multiprocessing.get_context("spawn")
    _start_resource_tracker()
    counters = context.Array("q", 2)  # work and samples that workers have reported
    gpus = context.SimpleQueue()
    for worker in range(workers):
        gpus.put(resources.gpus[worker % len(resources.gpus)] if resources.gpus else None)
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_initialize_worker,
        initargs=(counters, gpus, resources.threads),
    )
    in_flight: deque[tuple[Any, Future[Outcome]]] = deque()
    last_counts = [0, 0]

    def submit(count: int) -> None:
        with _hide_main_module():  # every submission may start a process
            for item in itertools.islice(items, count):
                in_flight.append((item, pool.submit(tasks.run_task, task, item)))

    def report() -> None:
        counts = counters[:]
        advance(counts[0] - last_counts[0], counts[1] - last_counts[1])
        last_counts[:] = counts

    try:
        submit(_TASKS_PER_WORKER * workers)
        while in_flight:
            item, future = in_flight.popleft()
            while not future.done():
                time.sleep(_POLL_INTERVAL)
                report()
            outcome = future.result()._replace(item=item)
            submit(1)
            yield outcome
        report()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        # Errors of tasks are outcomes, so this is a lost worker: the pool is broken, or a pipe to
        # it is closed. Where a worker dies while another starts, multiprocessing fails with "bad
        # value(s) in fds_to_keep".
        if isinstance(error, BrokenProcessPool | OSError) or "fds_to_keep" in str(error):
            raise CurateError(
                "a worker process died, possibly out of memory: run the same command again "
                "with fewer --workers (finished work is kept)"
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_resource_tracker() -> None:
    """Start what removes semaphores after a kill, so that the end of a terminal does not end it.

    It ignores Ctrl-C by itself. A signal that is blocked stays so in a process that is started.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGQUIT, signal.SIGHUP))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _hide_main_module() -> Iterator[None]:
    """Keep spawned workers from running the user's own script; tasks come from this package."""
    main = sys.modules["__main__"]
    attributes = {
        name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)
    }
    for name in attributes:
        setattr(main, name, None)
    if "__file__" in attributes:
        del main.__file__
    try:
        yield
    finally:
        for name, value in attributes.items():
            setattr(main, name, value)


def _initialize_worker(counters: Any, gpus: Any, threads: int) -> None:
    """Set up a worker: threads, its GPU, the progress counters, and an end with its parent."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    # Ctrl-C reaches the whole process group, and so does the end of its terminal; the parent
    # decides, and ends its workers itself.
    for signal_number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)

    def count(work: int, num_samples: int) -> None:
        with counters.get_lock():
            counters[0] += work
            counters[1] += num_samples

    set_reporter(count)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """A killed parent cannot end its workers: they watch for its end, and leave nothing running."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
