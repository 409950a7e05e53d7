"""The Ray engine: stateless tasks, one per item, on whatever machines the cluster has.

Ray retries what dies with a worker. Every machine needs this package in the same version, and the
catalog and the shards at the same paths or URLs.
"""

import contextlib
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from curate.errors import CurateError
from curate.execution import tasks
from curate.execution.limits import cpu_count
from curate.execution.reporting import set_reporter
from curate.execution.types import Cores, Devices, Outcome, ReportProgress, Resources, Task

_MAX_RETRIES = 10  # of a task whose worker or machine died; spot machines come and go
_TASKS_PER_SLOT = 4  # tasks in flight for each that can run at once
_POLL_INTERVAL = 0.1  # seconds


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Be the driver of a cluster: at an address, or one on this machine that ends with the block.

    Raises CurateError.
    """
    # Before the import, which reads it: Ray reports its use to nobody.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise CurateError("--engine ray needs Ray: pip install 'foundation-curate[ray]'") from error
    if ray.is_initialized():
        raise CurateError(
            "this process is connected to Ray already, by an earlier ray.init: call ray.shutdown() "
            "first, and name the cluster to curate by --ray-address HOST:PORT"
        )
    if address:
        _check_reachable(address)
    # A bare init joins whatever cluster it finds; our own is in a folder of its own, whose path
    # must be short (sockets).
    folder = None if address else Path(tempfile.mkdtemp(prefix="curate-ray-"))
    options: dict[str, Any] = {}
    if folder:
        options = {"_temp_dir": str(folder), "include_dashboard": False, "num_cpus": cpu_count()}
    previous_handler = signal.getsignal(signal.SIGTERM)
    logging.getLogger("ray").setLevel(logging.ERROR)  # stderr is for our own messages
    try:
        ray.init(
            address=address or "local", log_to_driver=False, configure_logging=False, **options
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
        raise CurateError(_describe_failed_start(error, address)) from error
    if previous_handler is not None:
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, previous_handler)  # Ray has installed its own
    try:
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _describe_failed_start(error: Exception, address: str | None) -> str:
    """Why there is no cluster to work on, and the remedy. Ray tells the causes apart by text."""
    message = str(error)
    cluster = f"the Ray cluster at '{address}'" if address else "a Ray cluster on this machine"
    if "AF_UNIX path length" in message:
        return (
            f"the temporary folder '{tempfile.gettempdir()}' has too long a path for Ray's "
            "sockets: set TMPDIR to a shorter one, such as /tmp"
        )
    versions = re.findall(r"^\s*((?:Ray|Python): \S+)", message, re.MULTILINE)
    if "Version mismatch" in message and len(versions) == 4:
        theirs, ours = (", ".join(two).replace(":", "") for two in (versions[:2], versions[2:]))
        return (
            f"{cluster} has {theirs}, this machine {ours}: "
            "install the same versions of both on all machines"
        )
    reason = message.partition("\n")[0] or type(error).__name__
    return (
        f"cannot reach {cluster} ({reason}): is it up, and have this machine "
        "and its own the same token (RAY_AUTH_MODE, RAY_AUTH_TOKEN)?"
    )


def _check_reachable(address: str) -> None:
    """CurateError where nobody listens at HOST:PORT, for which Ray itself would wait minutes.

    Also for an address of Ray's client, behind which no driver of ours runs.
    """
    if address.startswith("ray://"):
        raise CurateError(
            f"'{address}' is an address of Ray's client: run curate on a machine of the cluster, "
            "with --ray-address HOST:PORT of its head (the port of `ray start --head`, 6379)"
        )
    host, colon, port = address.rpartition(":")
    if colon and host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except OSError as error:
            raise CurateError(
                f"no Ray cluster at '{address}' ({error.strerror or error}): start one there with "
                "`ray start --head`, or leave out --ray-address"
            ) from error


def map(  # noqa: A001 - the usual word for it
    task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
) -> Iterator[tuple[int, Outcome]]:
    """See `types.Engine`. The size of the cluster decides how many tasks run, not `resources`."""
    for submitted, error in _submit_all(task, items, resources, advance):
        item, result = submitted.item, submitted.result
        yield submitted.position, Outcome(item, None, error) if error else _fetch(item, result)


def reduce(
    task: Task,
    items: Iterable[Any],
    merge: Callable[[Any, Any], Any],
    resources: Resources,
    advance: ReportProgress,
) -> Outcome:
    """See `engine.reduce`; workers merge, and results do not pass through the driver."""
    failures: list[Outcome] = []

    def iterate_results() -> Iterator[tuple[int, Any]]:
        for submitted, error in _submit_all(task, items, resources, advance):
            if error:
                failures.append(Outcome(submitted.item, None, error))
                return
            yield submitted.position, submitted.result

    merge_remotely = _remote_functions().merge
    result_reference = tasks.tree_reduce(
        iterate_results(), lambda left, right: merge_remotely.remote(merge, left, right)
    )
    if failures:
        return failures[0]
    return Outcome(None, None, None) if result_reference is None else _fetch(None, result_reference)


def find_devices(device: str) -> Devices:
    """See `types.Engine`; GPUs of the cluster, numbered arbitrarily. Raises CurateError."""
    import ray

    count = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and not count:
        raise CurateError(
            "--device cuda, but no machine of the Ray cluster has a GPU: add one, "
            "or use --device cpu"
        )
    return Devices("cuda", tuple(range(count))) if count and device != "cpu" else Devices("cpu", ())


def count_cores(device: str = "cpu") -> Cores:
    """See `types.Engine`; for `cuda`, of the machines with a GPU."""
    import ray

    machines = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (device == "cpu" or node["Resources"].get("GPU"))
    ]
    counts = [int(machine.get("CPU", 0)) for machine in machines]
    return Cores(max(sum(counts), 1), min((count for count in counts if count), default=1))


class _Status(NamedTuple):
    """What the driver reads of every task, apart from its result: error, work and samples."""

    error: str | None
    work: int
    num_samples: int


class _Submitted(NamedTuple):
    """A task in flight: its item, with the position among the items, and its result's reference."""

    position: int
    item: Any
    result: Any


def _submit_all(
    task: Task, items: Iterable[Any], resources: Resources, advance: ReportProgress
) -> Iterator[tuple[_Submitted, str | None]]:
    """Each item with its error, as they finish; a bounded window is in flight."""
    import ray

    num_gpus = 1 if resources.gpus else 0
    run_remotely = _remote_functions().run.options(num_cpus=resources.threads, num_gpus=num_gpus)
    shared_task = ray.put(task)
    window = _Window(resources)
    numbered_items = enumerate(items)
    in_flight: dict[Any, _Submitted] = {}  # by the reference to the status
    try:
        while True:
            num_free = window.size() - len(in_flight)
            for position, item in itertools.islice(numbered_items, max(num_free, 0)):
                result, status = run_remotely.remote(shared_task, item)
                in_flight[status] = _Submitted(position, item, result)
            if not in_flight:
                return
            finished, _ = ray.wait(
                list(in_flight), num_returns=len(in_flight), timeout=_POLL_INTERVAL
            )
            for reference in finished:
                status = _fetch_status(reference)
                advance(status.work, status.num_samples)
                yield in_flight.pop(reference), status.error
    finally:  # nobody takes these results any more, so nothing may go on writing
        for reference in in_flight:
            ray.cancel(reference, force=True)


class _Window:
    """How many tasks are in flight: a few for each that can run at once.

    The cluster's size is looked up again every second, as machines come and go.
    """

    def __init__(self, resources: Resources) -> None:
        self._resources, self._size, self._expires = resources, 0, 0.0

    def size(self) -> int:
        if time.monotonic() > self._expires:
            if self._resources.gpus:
                slots = len(find_devices("auto").gpus)
            else:
                slots = count_cores().total // self._resources.threads
            self._size, self._expires = _TASKS_PER_SLOT * max(slots, 1), time.monotonic() + 1
        return self._size


class _RemoteFunctions(NamedTuple):
    run: Any
    merge: Any


@cache
def _remote_functions() -> _RemoteFunctions:
    """Our two functions as Ray's.

    max_calls=0 keeps a process, and the encoder that it loaded, for further tasks with a GPU.
    """
    import ray

    run = ray.remote(
        num_returns=2, max_calls=0, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD"
    )(_run_in_worker)
    return _RemoteFunctions(run, ray.remote(max_calls=0, max_retries=_MAX_RETRIES)(_merge))


def _run_in_worker(task: Task, item: Any) -> tuple[Any, _Status]:
    counts = [0, 0]

    def count(work: int, num_samples: int) -> None:
        counts[0] += work
        counts[1] += num_samples

    set_reporter(count)
    outcome = tasks.run_task(task, item)
    return outcome.result, _Status(outcome.error, counts[0], counts[1])


def _merge(merge: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    return merge(left, right)


def _fetch(item: Any, result: Any) -> Outcome:
    import ray

    try:
        return Outcome(item, ray.get(result), None)
    except ray.exceptions.RayError as error:
        return Outcome(item, None, _describe_error(error))


def _fetch_status(reference: Any) -> _Status:
    import ray

    try:
        return _Status(*ray.get(reference))
    except ray.exceptions.RayError as error:
        return _Status(_describe_error(error), 0, 0)


def _describe_error(error: Exception) -> str:
    return f"Ray gave up: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
