"""Loads the kernels, and with them OpenMP's runtime, so that threads which wait for each other soon sleep.

GCC's libgomp lets them spin 300,000 times, several milliseconds of a core: beside any other load they take the time
that the one they wait for needs. SPINS bridge the gaps between the kernels of a step and cost nothing where the machine
is idle; bench/SPEED.md has the measurements. An iteration is one pause instruction, 40 to 140 cycles by CPU: SPINS are
30 to 90 us.
"""

import os
import sys
from pathlib import Path

SPINS = 2000
WINDOWS = "cgpt does not run on Windows itself; install it in the Windows Subsystem for Linux (wsl --install)"


def _load() -> None:
    """libgomp reads its settings once, when it is loaded, so the variable lasts no longer: child processes and other
    libraries get the environment as it was. Without effect where libgomp is there already (another package's import),
    and on other runtimes, such as Clang's. What the user has set stays."""
    ours = not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    if ours:
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
    try:
        from cgpt.kernels import _kernels  # noqa: F401
    except ImportError:
        folder = Path(__file__).parent
        if any(folder.glob("_kernels*.so")):
            raise
        if sys.platform == "win32":
            raise ImportError(f"{WINDOWS}, and there are no kernels in {folder}") from None
        raise ImportError(
            f"the kernels in {folder} are not compiled: pip install -e . there, or run Python from another folder if "
            f"cgpt is installed already"
        ) from None
    finally:
        if ours:
            del os.environ["GOMP_SPINCOUNT"]


_load()
