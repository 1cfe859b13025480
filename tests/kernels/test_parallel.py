"""Threads that cannot be had: fewer work, and one warning says so. (What a fork needs:
tests/machine/test_threads_fork.py.)"""

import os
import subprocess
import sys

import pytest

from cgpt.kernels import _kernels

PROGRAM = """
import os, resource, sys, warnings
import numpy as np
from cgpt.kernels import _kernels

def product():
    y = np.zeros((64, 256), np.float32)
    tensors = [_kernels.Tensor(a) for a in (y, np.ones((64, 256), np.float32))]
    matrix = _kernels.Matrix("F32", np.ones((256, 256), np.float32))
    _kernels.linear(_kernels.Context(4, "exact"), *tensors, matrix, 64)
    assert (y == 256).all()

if sys.argv[1] == "before":
    product()
resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
if os.getuid() == 0:
    os.setuid(65534)  # root has no limit
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        product()
print("|".join(str(w.message) for w in caught))
"""
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or _kernels.thread_runtime() != "OpenMP",
    reason="needs Linux's limits and OpenMP",
)


def said(when):
    """The warnings of products on four threads where the system starts no more, `when` the limit begins or before."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROGRAM, when]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


def test_threads_that_cannot_be_started():
    """libgomp alone ends the process."""
    (warning,) = said("after")
    assert "only 1 of 4 threads" in warning


def test_threads_that_are_there_go_on():
    assert said("before") == [""]
