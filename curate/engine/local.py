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
from typing import Any

from curate import engine
from curate.engine import Advance, Outcome, Resources
from curate.errors import CurateError


def map(  # noqa: A001 - the word for it
    task: Callable[[Any], Any], items: Iterable[Any], resources: Resources, advance: Advance
) -> Iterator[Outcome]:
    """See `curate.engine.map`; several processes only where there is work for more than one."""
    todo = iter(items)
    first = list(itertools.islice(todo, resources.workers))
    workers, todo = len(first), itertools.chain(first, todo)
    if workers <= 1:
        yield from _here(task, todo, advance)
    else:
        yield from _pool(task, todo, workers, resources, advance)


def reduce(
    task: Callable[[Any], Any], items: Iterable[Any], merge: Callable[[Any, Any], Any], resources: Resources, advance: Advance
) -> Outcome:
    """See `curate.engine.reduce`; this process merges."""
    failed: list[Outcome] = []

    def results() -> Iterator[Any]:
        for outcome in map(task, items, resources, advance):
            if outcome.error:
                failed.append(outcome)
                return
            yield outcome.result

    merged = engine.tree(results(), merge)
    return failed[0] if failed else Outcome(None, merged, None)


def devices(wanted: str) -> tuple[str, tuple[int, ...]]:
    """The device to use and this machine's GPUs, for `auto`, `cpu` or `cuda`. Raises CurateError."""
    from curate.engine import inference

    return inference.devices(wanted)


def cores(device: str = "cpu") -> tuple[int, int]:
    """The processor cores that work may use, in all and on one machine: the same here."""
    return engine.cores(), engine.cores()


def _here(task: Callable[[Any], Any], todo: Iterator[Any], advance: Advance) -> Iterator[Outcome]:
    engine._tick = advance
    try:
        for item in todo:
            yield attempt(task, item)
    finally:
        engine._tick = lambda amount, samples: None


def attempt(task: Callable[[Any], Any], item: Any) -> Outcome:
    """Run the task on one item; what it raises becomes the outcome's error."""
    try:
        return Outcome(item, task(item), None)
    except CurateError as error:
        return Outcome(item, None, str(error))
    except Exception as error:  # the boundary of the engine: a task's failure must not end the others
        import traceback

        place = traceback.extract_tb(error.__traceback__)[-1]
        return Outcome(item, None, f"{type(error).__name__}: {error} ({os.path.basename(place.filename)}:{place.lineno})")


def _pool(
    task: Callable[[Any], Any], todo: Iterator[Any], workers: int, resources: Resources, advance: Advance
) -> Iterator[Outcome]:
    # spawn: a fork would copy the locks of torch's, faiss' and DuckDB's threads in whatever state they are.
    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 2)
    gpus = context.SimpleQueue()
    for worker in range(workers):
        gpus.put(resources.gpus[worker % len(resources.gpus)] if resources.gpus else None)
    start = (done, gpus, resources.threads)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=start)
    waiting: deque[tuple[Any, Future[Outcome]]] = deque()
    told = [0, 0]

    def submit(count: int) -> None:
        with _without_main():  # every submission may start a process
            for item in itertools.islice(todo, count):
                waiting.append((item, pool.submit(attempt, task, item)))

    def tell() -> None:
        now = done[:]
        advance(now[0] - told[0], now[1] - told[1])
        told[:] = now

    try:
        submit(4 * workers)
        while waiting:
            item, future = waiting.popleft()
            while not future.done():
                time.sleep(0.02)
                tell()
            outcome = future.result()._replace(item=item)
            submit(1)  # one in, one out: a bounded window of tasks in flight
            yield outcome
        tell()
    except BaseException as error:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        # What a task raises is an outcome; a pool that broke, or whose pipe is closed, also while another worker starts, has
        # lost a worker.
        if isinstance(error, BrokenProcessPool | OSError) or "fds_to_keep" in str(error):
            raise CurateError(
                "a worker process died, perhaps for want of memory: run the same command again with fewer --workers "
                "or a smaller --batch-size (finished shards are kept)"
            ) from error
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """Keep spawned workers from running the user's own script again; tasks come from this package."""
    main = sys.modules["__main__"]
    kept = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
    for name in kept:
        setattr(main, name, None)
    if "__file__" in kept:
        del main.__file__
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(main, name, value)


def _start_worker(done: Any, gpus: Any, threads: int) -> None:
    """Set up a worker: threads, its GPU, the progress counter, and no life beyond that of the parent."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    gpu = gpus.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(gpu)
    # Ctrl-C reaches the whole group; the parent decides, and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tick(amount: int, samples: int) -> None:
        with done.get_lock():
            done[0] += amount
            done[1] += samples

    engine._tick = tick
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers: they watch for its end, and leave nothing running behind."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
