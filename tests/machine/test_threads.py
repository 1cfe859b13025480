"""The default number of threads, on trees of /proc and /sys that only look like a machine's or a container's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import cgpt
from cgpt.kernels import _kernels
from cgpt.kernels.runtime import SPINS
from cgpt.machine import topology
from cgpt.machine.threads import cpu_quota, default_threads

from support.machine_cases import cpus, smt, v1, v2, write

ALL = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def threads(tmp_path, monkeypatch):
    """The default on a tree of these files, where the affinity mask holds `affinity`."""

    def found(files, affinity=range(16), **environment):
        for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(_kernels, "openmp_places", lambda: [])
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity), raising=False)
        return default_threads(write(tmp_path, files))

    return found


# ------------------------------------------------------------------------------------------------------- cores


HYBRID = cpus(  # two performance cores with siblings, four efficiency cores
    (0, 0, (0, 1)), (0, 4, (2, 3)), *((0, 8 + n, (4 + n,)) for n in range(4))
)


@pytest.mark.parametrize(
    "files, affinity, expected",
    [
        ({}, range(16), 16),  # no sysfs: every CPU is a core
        (smt(8), range(16), 8),
        (smt(4, packages=2), range(16), 8),  # core 0 of either socket is two cores
        (smt(8), range(8), 8),  # one CPU of each core
        (smt(8), {0, 8}, 1),  # both of one core
        (smt(8), {1, 2, 3, 11}, 3),  # of cores 1 and 2 one, of core 3 both
        (smt(4, packages=2), {0, 4, 8, 12}, 2),  # core 0 of either socket, with siblings
        (HYBRID, range(8), 6),
        (HYBRID, range(4, 8), 4),
        (cpus(*((0, n, (n,)) for n in range(4))), range(4), 4),  # no SMT
        (cpus(*((0, n, (n,)) for n in range(4)), online="0-1"), range(4), 2),  # two CPUs switched off
        (cpus(*((0, n, (n,)) for n in range(4)), online="nonsense"), range(4), 4),
        (cpus((-1, 0, (0,)), (-1, 1, (1,))), range(2), 2),  # as ARM says it
        (smt(2) | {"sys/devices/system/cpu/cpu1/topology/core_id": "garbage"}, range(4), 3),
        (smt(2) | {"sys/devices/system/cpu/cpu1/topology/core_id": ""}, range(4), 3),
    ],
)
def test_cores(threads, files, affinity, expected):
    assert threads(files, affinity) == expected


def test_dies_of_a_package_number_their_cores_alike(threads):
    files = smt(2) | {f"sys/devices/system/cpu/cpu{n}/topology/core_id": 0 for n in range(4)}
    assert threads(files, range(4)) == 1
    assert threads({f"sys/devices/system/cpu/cpu{n}/topology/die_id": n % 2 for n in range(4)}, range(4)) == 2


def test_a_system_without_affinity(tmp_path, monkeypatch):
    """As macOS and Windows."""
    monkeypatch.setattr(_kernels, "openmp_places", lambda: [])
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert default_threads(tmp_path) == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_threads(tmp_path) == 1


# ------------------------------------------------------------------------------------------------------- quota

PERIOD = "cpu-cfs_period_us"
QUOTA = "cpu-cfs_quota_us"


def quota_v1(directory, quota, period=100000):
    return {f"{directory}__{QUOTA}": quota, f"{directory}__{PERIOD}": period}


@pytest.mark.parametrize(
    "files, expected",
    [
        (v2("/a/b", a_b__cpu_max="x"), 16),  # another file
        (v2("/a/b", **{"a_b__cpu-max": "350000 100000"}), 3),
        (v2("/a/b", **{"a_b__cpu-max": "max 100000", "a__cpu-max": "200000 100000"}), 2),
        (v2("/a/b", **{"a_b__cpu-max": "200000 100000", "a__cpu-max": "500000 100000"}), 2),
        (v2("/a", **{"a__cpu-max": "250000 100000"}), 2),
        (v2("/a", **{"a__cpu-max": "50000 100000"}), 1),
        (v2("/a", **{"a__cpu-max": "9900000 100000"}), 16),  # more than there is
        (v2("/", **{"__cpu-max": "max 100000"}), 16),
        (v2("/", **{"__cpu-max": "300000 100000"}), 3),  # a namespace of its own: the container's cgroup is "/"
        (v2("/../other", **{"__cpu-max": "300000 100000", "other__cpu-max": "100000 100000"}), 3),  # moved out of it
        (v2("/../other", **{"__cpu-max": "300000 100000"}) | {"sys/fs/other/cpu.max": "100000 100000"}, 3),
        (v2("/docker/1f", top="/docker/1f", **{"__cpu-max": "300000 100000"}), 3),  # no namespace
        (v2("/docker/1f/x", top="/docker/1f", **{"x__cpu-max": "200000 100000"}), 2),
        (v2("/docker/1f", top="/docker/2e", **{"__cpu-max": "300000 100000"}), 3),
        (v2("/a", **{"b__cpu-max": "100000 100000"}), 16),  # a neighbour's
        (v1("cpu", "/job", **quota_v1("job", 500000)), 5),
        (v1("cpu", "/job", **quota_v1("job", 500000), **quota_v1("", 400000)), 4),
        (v1("cpu", "/job", **quota_v1("job", -1)), 16),
        (v1("cpu", "/job", name="cpu,cpuacct", controllers="cpu,cpuacct", **quota_v1("job", 250000)), 2),
        (v1("cpu", "/docker/1f", top="/docker/1f", **quota_v1("", 150000)), 1),
        (v1("cpuset", "/job", **quota_v1("job", 500000)), 16),  # not the cpu controller
    ],
)
def test_quota(threads, files, expected):
    assert threads(files) == expected


def test_both_versions_at_once(threads):
    """v2 beside v1, as systemd's hybrid mode mounts it, without a cpu controller of its own."""
    files = v1("cpu", "/job", **quota_v1("job", 500000))
    files["proc/self/cgroup"] += "\n0::/job"
    files["proc/self/mountinfo"] += "40 24 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
    assert threads(files) == 5
    assert threads({"sys/fs/cgroup/unified/job/cpu.max": "200000 100000"}) == 2


def test_a_mount_point_with_a_space(threads):
    files = v2("/a") | {"sys/fs/my cgroup/a/cpu.max": "200000 100000"}
    files["proc/self/mountinfo"] = files["proc/self/mountinfo"].replace("fs/cgroup", r"fs/my\040cgroup")
    assert threads(files) == 2


@pytest.mark.parametrize("text", ["", "nonsense", "1 0", "a b", "0 100000", "-5 100000", "1.5 1", "\x00", "9" * 30])
def test_damaged_files_are_no_quota(threads, text):
    assert threads(v2("/", **{"__cpu-max": text})) == 16
    assert threads(v1("cpu", "/", **{f"__{QUOTA}": text, f"__{PERIOD}": "0"})) == 16


@pytest.mark.parametrize("text", ["", "nonsense", "0:", "::", "4:cpu", "0::\x00", "\udc80", "-", "3-"])
def test_damaged_lists(threads, tmp_path, text):
    """Of cgroups, of mounts, of CPUs."""
    files = smt(4) | v2("/", **{"__cpu-max": "200000 100000"})
    assert threads(files, range(8)) == 2
    for name in ("proc/self/cgroup", "proc/self/mountinfo", "sys/devices/system/cpu/online"):
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        assert threads({}, range(8)) in (2, 4)
        (tmp_path / name).write_text(before)


def test_quota_and_cores(threads, tmp_path):
    assert threads(smt(4) | v2("/", **{"__cpu-max": "600000 100000"}), range(8)) == 4  # 6 CPUs, 4 cores
    assert cpu_quota(tmp_path) == 6
    assert threads(v2("/", **{"__cpu-max": "250000 100000"}), range(8)) == 2
    assert cpu_quota(tmp_path) == 2.5


# ------------------------------------------------------------------------------------------------------ OpenMP


@pytest.mark.parametrize(
    "text, expected",
    [("3", 3), ("1", 1), ("12", 8), ("3,2", 3), (" 5 ", 5), ("0", 8), ("-2", 8), ("", 8), ("many", 8), ("2.5", 8)],
)
@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OMP_THREAD_LIMIT"])
def test_the_environment_lowers(threads, name, text, expected):
    assert threads(smt(8), **{name: text}) == expected


def test_load_uses_it(monkeypatch):
    monkeypatch.setattr(cgpt.machine.threads, "default_threads", lambda: 3)
    assert cgpt.load("demo-gpt2").threads == 3
    assert cgpt.load("demo-gpt2", threads=5).threads == 5


def test_here():
    assert 1 <= default_threads() <= ALL


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
@pytest.mark.parametrize("binding", ["OMP_PROC_BIND=false", "OMP_PROC_BIND=true", "OMP_PLACES=cores"])
def test_binding_leaves_the_default_as_it_is(binding):
    """OpenMP's runtime binds the thread that loads it to one CPU, which is not all that the process may use."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    clean["PYTHONPATH"] = str(Path(cgpt.__file__).parents[1])
    program = "import cgpt, cgpt.machine.topology as t; print(sorted(t.usable_cpus()))"
    env = clean | dict([binding.split("=")])
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(sorted(os.sched_getaffinity(0)))


@pytest.mark.skipif(_kernels.thread_runtime() != "OpenMP", reason="a build without OpenMP")
@pytest.mark.parametrize(
    "setting, spins", [("", f"'{SPINS}'"), ("GOMP_SPINCOUNT=77", "'77'"), ("OMP_WAIT_POLICY=passive", "'0'")]
)
def test_waiting_threads_soon_sleep(setting, spins):
    """libgomp says what it read; the user's word counts, and the environment is left as it was, C's too."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    env |= {"PYTHONPATH": str(Path(cgpt.__file__).parents[1]), "OMP_DISPLAY_ENV": "verbose"}
    env |= dict([setting.split("=")]) if setting else {}
    program = """
import ctypes, os
before = dict(os.environ)
import cgpt
assert dict(os.environ) == before
print(ctypes.CDLL(None).getenv(b"GOMP_SPINCOUNT") != 0, "libgomp" in open("/proc/self/maps").read())
"""
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    set_in_c, libgomp = done.stdout.split()
    assert set_in_c == str("GOMP_SPINCOUNT" in setting)
    if libgomp == "False":
        pytest.skip("built with another OpenMP than GCC's")
    assert f"GOMP_SPINCOUNT = {spins}" in done.stderr


def test_places_are_the_usable_cpus(monkeypatch, tmp_path):
    write(tmp_path, smt(4))
    monkeypatch.setattr(_kernels, "openmp_places", lambda: [0, 4, 1, 5, 2, 6])
    assert topology.usable_cpus(tmp_path) == {0, 1, 2, 4, 5, 6}
