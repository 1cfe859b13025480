"""Fixtures of the kernel tests."""

import signal

import numpy as np
import pytest

from cgpt.kernels import isa

from support.kernel_cases import VARIANTS, missing, use_level

# A shell's background jobs ignore Ctrl-C, and so would the commands that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header():
    reasons = {level: missing(level) for level in VARIANTS}
    isa.use_best()
    return "cgpt levels: " + ", ".join(f"{k} (no: {v})" if v else k for k, v in reasons.items())


@pytest.fixture(params=list(VARIANTS))
def level(request):
    """Runs the test at every level this machine has; CGPT_ISA and CGPT_MASK set a ceiling. The level's name."""
    reason = missing(request.param)
    try:
        if reason:
            pytest.skip(f"{request.param}: {reason}")
        use_level(request.param)
        yield request.param
    finally:
        isa.use_best()


@pytest.fixture
def rng():
    return np.random.default_rng(20240805)
