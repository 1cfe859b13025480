"""The default number of threads, on trees of /proc and /sys that only look like a container's."""

import os

import pytest

from cgpt.threads import usable_cpus

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)

    def write(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def test_no_cgroup(tree):
    assert usable_cpus(tree({})) == 16


def test_v2_quota(tree):
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "350000 100000\n"}
    assert usable_cpus(tree(files)) == 3


def test_v2_quota_of_a_parent(tree):
    files = {
        "proc/self/cgroup": "0::/a/b\n",
        "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
        "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
    }
    assert usable_cpus(tree(files)) == 2


def test_v1_quota(tree):
    files = {
        "proc/self/cgroup": "4:cpu,cpuacct:/job\n2:memory:/job\n",
        "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "500000",
        "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000",
    }
    assert usable_cpus(tree(files)) == 5


def test_no_quota_and_half_a_cpu(tree):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}
    assert usable_cpus(tree(files)) == 16
    assert usable_cpus(tree({"sys/fs/cgroup/cpu.max": "50000 100000\n"})) == 1


@pytest.mark.parametrize("text", ["", "nonsense", "1 0", "a b"])
def test_damaged_files_are_no_quota(tree, text):
    assert usable_cpus(tree({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": text})) == 16


def test_affinity():
    assert 1 <= usable_cpus() <= ALL
