"""Child processes that behave: they run none of the user's script, and end with their parent."""

import contextlib
import ctypes
import functools
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.context import ForkServerContext, SpawnContext

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt, in malloc.h
_KEPT_BYTES = 32 << 20
# Finalizers of a priority below 0 run when children have ended; below -100, folders are gone too.
_AFTER_CHILDREN = -10
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def child_context(
    modules: tuple[str, ...] = (), threads: int = 1
) -> ForkServerContext | SpawnContext:
    """How to start children that compute with so many threads and need these modules.

    They are forked from a process that has done nothing but import the modules, which takes its
    time once, and memory that all children share: of torch, seconds and hundreds of MB. A fork of
    this process would copy the locks of torch's, faiss' and DuckDB's threads in whatever state they
    are. With several threads, and where there is no such process, each child imports for itself.

    Its socket is in a folder of Python's own, pymp-… in the temporary folder, which is empty or
    nearly so and stays when this process is killed.
    """
    with _survive_terminal(), without_users_code():
        resource_tracker.ensure_running()  # it removes semaphores after a kill
        if modules and threads == 1 and sys.platform == "linux":
            forkserver.set_forkserver_preload(list(modules))
            # OSError where sockets cannot be made, as below a folder with a long name.
            with _environment(_thread_counts(1)), contextlib.suppress(OSError):
                forkserver.ensure_running()
                _wait_for_it_at_exit()
                return multiprocessing.get_context("forkserver")
    return multiprocessing.get_context("spawn")


@functools.cache
def _wait_for_it_at_exit() -> None:
    """End the process that children are forked from after the last of them, and wait for it.

    What nobody waits for is in no measurement of time, as by `time curate embed`.
    """
    server = forkserver._forkserver
    if hasattr(server, "_stop"):
        util.Finalize(None, server._stop, exitpriority=_AFTER_CHILDREN)


@contextlib.contextmanager
def without_users_code() -> Iterator[None]:
    """For the block in which a child is started: tasks come from this package.

    The child runs neither the user's own script, nor a types.py or random.py that happens to be in
    the folder where the user is, in place of Python's own.
    """
    main = sys.modules["__main__"]
    attributes = {
        name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)
    }
    for name in attributes:
        setattr(main, name, None)
    if "__file__" in attributes:
        del main.__file__
    try:
        with _environment({"PYTHONSAFEPATH": "1"}):
            yield
    finally:
        for name, value in attributes.items():
            setattr(main, name, value)


@contextlib.contextmanager
def _survive_terminal() -> Iterator[None]:
    """Let the end of a terminal not end processes that are started in the block.

    They ignore Ctrl-C by themselves. A signal that is blocked stays so in a process that is
    started.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGQUIT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started in the block."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _thread_counts(threads: int) -> dict[str, str]:
    return dict.fromkeys(_THREAD_VARIABLES, str(threads))


def begin_child(threads: int, environment: Mapping[str, str]) -> None:
    """Set up a child that computes with so many threads, and ends with its parent.

    `environment` is its parent's, which the process that it was forked from may not have.
    """
    os.environ.clear()
    os.environ.update({**environment, **_thread_counts(threads)})
    _keep_freed_memory()
    # Ctrl-C reaches the whole process group, and so does the end of its terminal; the parent
    # decides, and ends its workers itself.
    for signal_number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(signal_number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next image, up to 32 MB.

    It would give every large block back to the system, which fills the next one with zeros, page by
    page: a sixth of the time that decoding takes.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        set_option = ctypes.CDLL(None).mallopt
        set_option(_MMAP_THRESHOLD, _KEPT_BYTES)
        set_option(_TRIM_THRESHOLD, _KEPT_BYTES)


def _exit_with_parent() -> None:
    """A killed parent cannot end its workers: they watch for its end, and leave nothing running."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)
