"""How much memory and how many cores this process may use."""

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")  # tests have trees of their own


def memory_limit(root: Path = _ROOT) -> int:
    """Bytes: what the machine has, or less where a container (cgroup) or `ulimit` says so."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for group in _list_groups(root, "memory"):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limits += _read_numbers(group / name)[:1]
    with contextlib.suppress(ImportError):
        import resource

        soft_limits = [
            resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)
        ]
        limits += [limit for limit in soft_limits if limit != resource.RLIM_INFINITY]
    return min(limits)


def cpu_count(root: Path = _ROOT) -> int:
    """The processor cores that this process may use: those of its affinity, or the quota of its
    container (cgroup) in whole cores, rounded up."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    for group in _list_groups(root, "cpu"):
        quota_and_period = _read_numbers(group / "cpu.max")
        if not quota_and_period:  # version 1 has two files, and −1 for no quota
            quota_and_period = [
                *_read_numbers(group / "cpu.cfs_quota_us"),
                *_read_numbers(group / "cpu.cfs_period_us"),
            ]
        if len(quota_and_period) == 2 and min(quota_and_period) > 0:
            quota, period = quota_and_period
            count = min(count, math.ceil(quota / period))
    return max(count, 1)


def _list_groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process' control groups, from the innermost upwards.

    A limit may stand in any of them: Slurm, systemd and Kubernetes nest groups. Inside a container,
    `/proc/self/cgroup` may name folders that are only outside; those are passed over.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    mount = root / "sys/fs/cgroup"
    groups = {mount: None, mount / controller: None}  # ordered, each once
    for line in lines:
        _, _, names_and_path = line.partition(":")
        names, _, path = names_and_path.partition(":")
        controllers = names.split(",") if names else []
        if controllers and controller not in controllers:
            continue
        # Version 2 has one tree, which may be mounted beside those of version 1.
        mounts = (mount / names, mount / controller) if names else (mount, mount / "unified")
        folders = [folder for folder in path.split("/") if folder]
        if ".." in folders:  # above the root of this process' view
            continue
        for depth in range(len(folders), -1, -1):
            groups |= {root_group.joinpath(*folders[:depth]): None for root_group in mounts}
    return iter(sorted(groups, key=lambda group: -len(group.parts)))


def _read_numbers(path: Path) -> list[int]:
    """The numbers in a file; none where it does not exist or says "max"."""
    try:
        return [int(word) for word in path.read_text().split()]
    except (OSError, ValueError):
        return []
