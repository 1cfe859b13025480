"""Other systems: what Linux alone has is hidden, and a Mac's answers stand in."""

import json
import subprocess
import sys

import cgpt

# Before cgpt is imported. Modules of Python that look at sys.platform are there by then.
MAC = """
import asyncio, ctypes, json, mmap, os, sys, tempfile
import numpy, safetensors, tiktoken
from pathlib import Path

for name in ("sched_getaffinity", "sched_setaffinity", "O_DIRECT", "posix_fadvise"):
    delattr(os, name)
del mmap.MADV_HUGEPAGE
mmap.MADV_FREE = mmap.MADV_DONTNEED
real = Path.read_text, os.open

def guarded(call):
    def checked(path, *args, **options):
        if str(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(path)
        return call(path, *args, **options)
    return checked

Path.read_text, os.open = guarded(Path.read_text), guarded(os.open)
sys.platform = "darwin"

import cgpt
from cgpt.machine import sysctl

TOLD = {
    "hw.perflevel0.physicalcpu": (4).to_bytes(4, "little"), "hw.physicalcpu": (8).to_bytes(4, "little"),
    "machdep.cpu.brand_string": b"Apple M2\\0", "hw.pagesize": (16384).to_bytes(8, "little"),
    "vm.page_free_count": (100_000).to_bytes(4, "little"), "vm.page_purgeable_count": (1_000).to_bytes(4, "little"),
    "vm.page_pageable_external_count": (99_000).to_bytes(4, "little"),
}
sysctl.raw = lambda name: TOLD.get(name, b"")
"""
USE = """
from cgpt.analysis.doctor import examine
from cgpt.bench.session import bench
from cgpt.machine import memory, threads, topology

os.environ.pop("OMP_NUM_THREADS", None)
ids = lambda model: model.generate("1+2=", max_new_tokens=8, temperature=0).ids
streamed = cgpt.load("demo-gpt-oss", 1, "exact", memory="1GB")
streamed.transformer.streaming.store.resize(8)
row, = bench(cgpt.locate("demo-gpt2"), prompts=[8], gens=[], threads=[1], repetitions=1)
found = {
    "threads": threads.default_threads(), "cpu": topology.cpu_name(), "memory": memory.available_memory(),
    "ids": ids(cgpt.load("demo-gpt-oss", 1, "exact")), "streamed": ids(streamed),
    "huge": examine()["memory"]["huge_pages"]["transparent"], "rate": row["median_ts"] > 0,
}
print(json.dumps(found))
"""


def run(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return done.stdout.strip(), done.stderr


def test_a_mac():
    out, err = run(MAC + USE)
    assert out, err
    ids = cgpt.load("demo-gpt-oss", 1, "exact").generate("1+2=", max_new_tokens=8, temperature=0).ids
    assert json.loads(out) == {
        "threads": 4,
        "cpu": "Apple M2",
        "memory": 200_000 * 16384,
        "ids": ids,
        "streamed": ids,
        "huge": None,
        "rate": True,
    }


def test_windows_is_told_what_to_do():
    """Of a package whose kernels are not compiled, as it would be there."""
    hide = "import sys\nsys.modules['cgpt.kernels._kernels'] = None\nsys.platform = 'win32'\n"
    hide += "import pathlib\npathlib.Path.glob = lambda path, pattern: iter(())\n"
    _, err = run(f"{hide}import cgpt")
    assert "Windows Subsystem for Linux" in err.splitlines()[-1]
