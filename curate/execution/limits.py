"""How much memory and how many cores this process may use."""

import contextlib
import os
from pathlib import Path

_CGROUP_FILES = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def memory_limit() -> int:
    """Bytes: what the machine has, or less where a container (cgroup) or `ulimit` says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_FILES:
        with contextlib.suppress(OSError, ValueError):  # it does not exist, or it is "max"
            limits.append(int(Path(path).read_text()))
    with contextlib.suppress(ImportError):
        import resource

        soft_limits = [
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        ]
        limits += [limit for limit in soft_limits if limit != resource.RLIM_INFINITY]
    return min(limits)


def cpu_count() -> int:
    """The processor cores of this machine that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
