"""A thread for every CPU: each has one to itself, and whoever calls stays free."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cgpt
from cgpt.kernels import _kernels

PROGRAM = """
import json, os, sys
import numpy as np
import cgpt
from cgpt.kernels import _kernels as k

threads, (cpus, later) = int(sys.argv[1]), json.loads(sys.argv[2])
x, y = k.Tensor(np.ones((1, 64), np.float32)), k.Tensor(np.ones((1, 4096), np.float32))
weights = k.Matrix("F32", np.ones((4096, 64), np.float32))
before, callers = set(os.listdir("/proc/self/task")), []
for cpu in [*cpus] * 3 + later[:1]:  # wherever the caller is
    os.sched_setaffinity(0, {cpu})
    os.sched_setaffinity(0, cpus if len(callers) < 3 * len(cpus) else later)
    for _ in range(70):
        k.linear(k.Context(threads, "exact"), y, x, weights, 1)
    callers.append(sorted(os.sched_getaffinity(0)))
team = sorted(map(int, set(os.listdir("/proc/self/task")) - before))
print(json.dumps([[sorted(os.sched_getaffinity(task)) for task in team], callers]))
"""

CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or len(CPUS) < 2 or _kernels.thread_runtime() != "OpenMP",
    reason="needs Linux, two CPUs and OpenMP",
)


def run(threads, cpus, later=(), **environment):
    """The CPUs of each thread of the team but the caller, and the caller's at some times, who may use `cpus`, and
    others `later`."""
    command = [sys.executable, "-c", PROGRAM, str(threads), json.dumps([cpus, later])]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=clean | environment,
        cwd=Path(cgpt.__file__).parents[1],
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def test_each_thread_has_a_cpu_of_its_own():
    team, callers = run(len(CPUS), CPUS)
    assert callers == [CPUS] * len(callers) and len(team) == len(CPUS) - 1
    assert all(len(one) == 1 for one in team) and len({one[0] for one in team}) == len(team)


@pytest.mark.parametrize(("threads", "cpus"), [(3, 2), (2, 3)])
def test_more_or_fewer_threads_than_cpus_are_left_to_the_system(threads, cpus):
    if len(CPUS) < cpus:
        pytest.skip(f"needs {cpus} CPUs")
    assert run(threads, CPUS[:cpus])[0] == [CPUS[:cpus]] * (threads - 1)


def test_no_more_than_two_threads_for_each_cpu():
    assert len(run(16, CPUS[:2])[0]) == 3


def test_a_caller_that_may_use_fewer_cpus_later_has_its_threads_there():
    assert run(len(CPUS), CPUS, CPUS[:1])[0] == [CPUS[:1]] * (len(CPUS) - 1)


def test_openmp_that_binds_threads_itself_is_let_alone():
    assert run(len(CPUS), CPUS, OMP_PROC_BIND="true", OMP_PLACES=f"{{{CPUS[0]}}}")[0] == [[CPUS[0]]] * (len(CPUS) - 1)
