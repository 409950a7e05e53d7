"""The local engine: this process, or several processes on this machine."""

import itertools
import os
import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from curate.errors import CurateError
from curate.execution import tasks
from curate.execution.devices import find_local_devices, only_this_gpu
from curate.execution.limits import cpu_count
from curate.execution.processes import begin_child, child_context, without_users_code
from curate.execution.reporting import no_progress, set_reporter
from curate.execution.types import Cores, Devices, Outcome, ReportProgress, Resources, Task

_TASKS_PER_WORKER = 4  # in flight, so that no worker waits for the driver
_POLL_INTERVAL = 0.02  # seconds


def map(  # noqa: A001 - the usual word for it
    task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
) -> Iterator[tuple[int, Outcome]]:
    """See `types.Engine`; several processes only where there is work for more than one."""
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

    def iterate_results() -> Iterator[tuple[int, Any]]:
        for position, outcome in map(task, items, resources, advance):
            if outcome.error:
                failures.append(outcome)
                return
            yield position, outcome.result

    result = tasks.tree_reduce(iterate_results(), merge)
    return failures[0] if failures else Outcome(None, result, None)


def find_devices(device: str) -> Devices:
    """See `types.Engine`. Raises CurateError."""
    return find_local_devices(device)


def count_cores(device: str = "cpu") -> Cores:
    """See `types.Engine`."""
    return Cores(cpu_count(), cpu_count())


def _map_in_process(
    task: Task, items: Iterator[Any], advance: ReportProgress
) -> Iterator[tuple[int, Outcome]]:
    # GPUs and threads are left as they are: torch and the libraries may use all of this process.
    set_reporter(advance)
    try:
        for position, item in enumerate(items):
            yield position, tasks.run_task(task, item)
    finally:
        set_reporter(no_progress)


def _map_in_pool(
    task: Task, items: Iterator[Any], workers: int, resources: Resources, advance: ReportProgress
) -> Iterator[tuple[int, Outcome]]:
    context = child_context(getattr(task, "modules", ()), resources.threads)
    counters = context.Array("q", 2)  # work and samples that workers have reported
    gpus = context.SimpleQueue()
    for worker in range(workers):
        gpu = resources.gpus[worker % len(resources.gpus)] if resources.gpus else None
        gpus.put({} if gpu is None else only_this_gpu(gpu))
    pool = ProcessPoolExecutor(
        workers,
        mp_context=context,
        initializer=_initialize_worker,
        initargs=(counters, gpus, resources.threads, dict(os.environ)),
    )
    numbered_items = enumerate(items)
    in_flight: dict[Future[Outcome], tuple[int, Any]] = {}
    finished: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
    last_counts = [0, 0]

    def submit(count: int) -> None:
        with without_users_code():  # every submission may start a process
            for position, item in itertools.islice(numbered_items, count):
                future = pool.submit(tasks.run_task, task, item)
                in_flight[future] = position, item
                future.add_done_callback(finished.put)

    def report() -> None:
        counts = counters[:]
        advance(counts[0] - last_counts[0], counts[1] - last_counts[1])
        last_counts[:] = counts

    try:
        submit(_TASKS_PER_WORKER * workers)
        while in_flight:
            report()
            try:
                future = finished.get(timeout=_POLL_INTERVAL)
            except queue.Empty:
                continue
            position, item = in_flight.pop(future)
            outcome = future.result()._replace(item=item)
            submit(1)
            yield position, outcome
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


def _initialize_worker(counters: Any, gpus: Any, threads: int, environment: dict[str, str]) -> None:
    """Set up a worker: threads, its GPU, the progress counters, and an end with its parent."""
    begin_child(threads, environment)
    os.environ.update(gpus.get())

    def count(work: int, num_samples: int) -> None:
        with counters.get_lock():
            counters[0] += work
            counters[1] += num_samples

    set_reporter(count)
