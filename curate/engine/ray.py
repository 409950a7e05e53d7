"""The Ray engine: stateless tasks, one an item, on whatever machines the cluster has. Ray retries what dies with a worker.

Every machine needs this package in the same version, and the catalog and the shards at the same paths or URLs.
"""

import contextlib
import logging
import os
import shutil
import signal
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from curate import engine
from curate.engine import Advance, Outcome, Resources, inference, local
from curate.errors import CurateError

_RETRIES = 10  # of a task whose worker or machine died; spot machines come and go
_AHEAD = 4  # tasks in flight for each that can run at once
_PATIENCE = 0.1  # seconds between two looks at what is done


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Be the driver of the cluster at an address, or of one on this machine that ends with the block. Raises CurateError."""
    # Before the import, which reads it: nobody is told that Ray is used.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise CurateError("--engine ray needs Ray: pip install 'foundation-curate[ray]'") from error
    if address:
        _knock(address)
    # A bare init joins whatever cluster it finds; ours alone lives in a folder of its own, whose path must be short (sockets).
    folder = None if address else Path(tempfile.mkdtemp(prefix="curate-ray-"))
    own: dict[str, Any] = {"_temp_dir": str(folder), "include_dashboard": False, "num_cpus": engine.cores()} if folder else {}
    on_term = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray").setLevel(logging.ERROR)  # stderr is for our own messages
    try:
        ray.init(address=address or "local", log_to_driver=False, configure_logging=False, **own)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        where = f"the Ray cluster at '{address}'" if address else "a Ray cluster on this machine"
        raise CurateError(
            f"cannot reach {where} ({str(error).splitlines()[0] or type(error).__name__}): is it up, and have this machine "
            "and its own the same token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)?"
        ) from error
    if on_term is not None:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, on_term)  # Ray put its own there
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _knock(address: str) -> None:
    """CurateError where nobody listens at HOST:PORT, for which Ray itself would wait minutes."""
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise CurateError(f"no Ray cluster at '{address}' ({error.strerror or error}): start one there with "
                              "`ray start --head`, or leave out --ray-address") from error  # fmt: skip


def map(  # noqa: A001 - the word for it
    task: Callable[[Any], Any], items: Iterable[Any], resources: Resources, advance: Advance
) -> Iterator[Outcome]:
    """See `curate.engine.map`; `resources.workers` is the local engine's: the cluster's size decides."""
    for item, result, error in _outcomes(task, items, resources, advance):
        yield Outcome(item, None, error) if error else _fetched(item, result)


def reduce(
    task: Callable[[Any], Any], items: Iterable[Any], merge: Callable[[Any, Any], Any], resources: Resources, advance: Advance
) -> Outcome:
    """See `curate.engine.reduce`; workers merge, and what is merged does not pass through the driver."""
    failed: list[Outcome] = []

    def results() -> Iterator[Any]:
        for item, result, error in _outcomes(task, items, resources, advance):
            if error:
                failed.append(Outcome(item, None, error))
                return
            yield result

    merging = _remote()[1]
    merged = engine.tree(results(), lambda left, right: merging.remote(merge, left, right))
    if failed or merged is None:
        return failed[0] if failed else Outcome(None, None, None)
    return _fetched(None, merged)


def devices(wanted: str) -> tuple[str, tuple[int, ...]]:
    """The device to use and the cluster's GPUs, numbered anyhow, for `auto`, `cpu` or `cuda`. Raises CurateError."""
    import ray

    inference.check_device(wanted)
    count = int(ray.cluster_resources().get("GPU", 0))
    if wanted == "cuda" and not count:
        raise CurateError("--device cuda, but no machine of the Ray cluster has a GPU: add one, or use --device cpu")
    return ("cuda", tuple(range(count))) if count and wanted != "cpu" else ("cpu", ())


def cores(device: str = "cpu") -> tuple[int, int]:
    """The processor cores of the cluster, in all and on the smallest of its machines; for `cuda`, of those with a GPU."""
    import ray

    machines = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and (device == "cpu" or node["Resources"].get("GPU"))
    ]
    each = [int(machine.get("CPU", 0)) for machine in machines]
    return max(sum(each), 1), min((count for count in each if count), default=1)


def _outcomes(
    task: Callable[[Any], Any], items: Iterable[Any], resources: Resources, advance: Advance
) -> Iterator[tuple[Any, Any, str | None]]:
    """Each item with a reference to its result, and its error, in order; a bounded window of tasks in flight."""
    import ray

    attempting = _remote()[0].options(num_cpus=resources.threads, num_gpus=1 if resources.gpus else 0)
    shared = ray.put(task)
    window = _Window(resources)
    todo = iter(items)
    waiting: deque[tuple[Any, Any, Any]] = deque()  # (item, result, note), from the first that was not handed on
    running: set[Any] = set()  # notes
    notes: dict[Any, tuple[str | None, int, int]] = {}
    try:
        while True:
            while len(waiting) < window.size() and (some := next(((item,) for item in todo), None)):
                result, note = attempting.remote(shared, some[0])
                waiting.append((some[0], result, note))
                running.add(note)
            if not waiting:
                return
            done, _ = ray.wait(list(running), num_returns=len(running), timeout=_PATIENCE) if running else ([], [])
            for note in done:
                running.discard(note)
                notes[note] = _note(note)
                advance(*notes[note][1:])
            while waiting and waiting[0][2] in notes:
                item, result, note = waiting.popleft()
                yield item, result, notes.pop(note)[0]
    finally:  # nobody takes these results any more, so nothing may go on writing
        for note in running:
            ray.cancel(note, force=True)


class _Window:
    """How many tasks are in flight: a few for each that can run at once, which is looked up again as machines come and go."""

    def __init__(self, resources: Resources) -> None:
        self._resources, self._size, self._until = resources, 0, 0.0

    def size(self) -> int:
        if time.monotonic() > self._until:
            gpus = len(devices("auto")[1])
            at_once = gpus if self._resources.gpus else cores()[0] // self._resources.threads
            self._size, self._until = _AHEAD * max(at_once, 1), time.monotonic() + 1
        return self._size


@cache
def _remote() -> tuple[Any, Any]:
    """Our two functions as Ray's: max_calls=0 keeps a process, and the encoder that it loaded, for further tasks with a GPU."""
    import ray

    attempting = ray.remote(num_returns=2, max_calls=0, max_retries=_RETRIES, scheduling_strategy="SPREAD")(_attempt)
    merging = ray.remote(max_calls=0, max_retries=_RETRIES)(_merge)
    return attempting, merging


def _attempt(task: Callable[[Any], Any], item: Any) -> tuple[Any, tuple[str | None, int, int]]:
    """In a worker: the result, and apart from it what the driver looks at: the error, and what the task reported as done."""
    told = [0, 0]

    def tick(amount: int, samples: int) -> None:
        told[0] += amount
        told[1] += samples

    engine._tick = tick
    outcome = local.attempt(task, item)
    return outcome.result, (outcome.error, told[0], told[1])


def _merge(merge: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    return merge(left, right)


def _fetched(item: Any, result: Any) -> Outcome:
    import ray

    try:
        return Outcome(item, ray.get(result), None)
    except ray.exceptions.RayError as error:
        return Outcome(item, None, _reason(error))


def _note(reference: Any) -> tuple[str | None, int, int]:
    import ray

    try:
        error, amount, samples = ray.get(reference)
        return error, amount, samples
    except ray.exceptions.RayError as error:
        return _reason(error), 0, 0


def _reason(error: Exception) -> str:
    return f"Ray gave it up: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
