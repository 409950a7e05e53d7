"""Child processes that behave: they run none of the user's script, and end with their parent."""

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt, in malloc.h
_KEPT_BYTES = 32 << 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def start_resource_tracker() -> None:
    """Start what removes semaphores after a kill, so that the end of a terminal does not end it.

    It ignores Ctrl-C by itself. A signal that is blocked stays so in a process that is started.
    """
    previous = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGQUIT, signal.SIGHUP))
    try:
        resource_tracker.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, previous)


@contextlib.contextmanager
def hide_main_module() -> Iterator[None]:
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


def begin_child(threads: int) -> None:
    """Set up a child that computes with so many threads, and ends with its parent."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
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
