"""Limits of control groups, in trees of files as kernels, Slurm and Kubernetes make them."""

from pathlib import Path

import pytest

from curate.execution import limits

GIB = 1 << 30


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine of 8 cores and 64 GiB, without a ulimit."""
    import resource

    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda process: set(range(8)))
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 64 * GIB // 4096}
    monkeypatch.setattr(limits.os, "sysconf", pages.__getitem__)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_groups_the_machine_is_the_limit(tmp_path):
    assert (limits.cpu_count(tmp_path), limits.memory_limit(tmp_path)) == (8, 64 * GIB)


@pytest.mark.parametrize("level", ["", "slurm/", "slurm/job_7/", "slurm/job_7/step_0/"])
def test_a_limit_in_any_of_nested_groups_counts(tmp_path, level):
    """As Slurm nests them; the groups below say max, or nothing."""
    inner = "sys/fs/cgroup/slurm/job_7/step_0"
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            f"{inner}/cpu.max": "max 100000\n",
            f"{inner}/memory.max": "max\n",
            f"sys/fs/cgroup/{level}cpu.max": "300000 100000\n",
            f"sys/fs/cgroup/{level}memory.max": f"{4 * GIB}\n",
        },
    )
    assert (limits.cpu_count(root), limits.memory_limit(root)) == (3, 4 * GIB)


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("50000 100000", 1), ("100000 100000", 1), ("150000 100000", 2), ("max 100000", 8)],
)
def test_half_a_core_counts_as_one(tmp_path, quota, cores):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota}
    assert limits.cpu_count(write_tree(tmp_path, files)) == cores


def test_the_smallest_of_several_limits_counts(tmp_path):
    """A pod of two cores in a slice of one and a half, with a soft limit of memory."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/kubepods.slice/pod1.slice\n",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/cpu.max": "200000 100000",
            "sys/fs/cgroup/kubepods.slice/cpu.max": "150000 100000",
            "sys/fs/cgroup/kubepods.slice/pod1.slice/memory.max": str(8 * GIB),
            "sys/fs/cgroup/kubepods.slice/pod1.slice/memory.high": str(6 * GIB),
        },
    )
    assert (limits.cpu_count(root), limits.memory_limit(root)) == (2, 6 * GIB)


def test_groups_of_version_1_count_too(tmp_path):
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n0::/\n",
            "sys/fs/cgroup/memory/docker/a/memory.limit_in_bytes": str(2 * GIB),
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_quota_us": "250000",
            "sys/fs/cgroup/cpu,cpuacct/docker/a/cpu.cfs_period_us": "100000",
        },
    )
    assert (limits.cpu_count(root), limits.memory_limit(root)) == (3, 2 * GIB)


def test_a_container_whose_groups_have_names_of_the_outside_has_its_own_limits(tmp_path):
    """What /proc/self/cgroup names is not below the container's /sys/fs/cgroup."""
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../../outside/pod\n3:memory:/docker/b\n",
            "sys/fs/cgroup/cpu.max": "100000 100000",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(GIB),
        },
    )
    assert (limits.cpu_count(root), limits.memory_limit(root)) == (1, GIB)


def test_no_quota_and_nonsense_limit_nothing(tmp_path):
    root = write_tree(
        tmp_path,
        {
            "proc/self/cgroup": "nonsense\n0::/\n2:cpu:/\n",
            "sys/fs/cgroup/cpu.max": "some text",
            "sys/fs/cgroup/memory.max": "",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
    )
    assert (limits.cpu_count(root), limits.memory_limit(root)) == (8, 64 * GIB)
