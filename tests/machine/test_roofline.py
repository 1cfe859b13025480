"""The roofline: what is measured and how it is sized. No test asks how fast this machine is."""

import numpy as np
import pytest

from cgpt.errors import InputError, OutOfMemoryError
from cgpt.kernels import _kernels
from cgpt.machine import roofline

MIB = 1 << 20


def test_measure(level):
    found = roofline.measure(2, seconds=0.02)
    assert found.threads == 2 and found.level == _kernels.level()
    assert found.dtype == ("bf16" if _kernels.kernels()["peak_tile"] != "-" else "f32")
    bytes_too = roofline.measure(1, seconds=0.02, precision="int8").dtype
    assert bytes_too == ("int8" if _kernels.kernels()["linear_int8_a8"] == "avx512vnni" else found.dtype)
    assert 0 < found.read_bytes_per_s < 1e14 and 0 < found.flops_per_s < 1e17


def test_bytes_and_operations_over_the_shortest_time(monkeypatch):
    calls = []

    def fastest(call, seconds):
        calls.append(seconds)
        call()
        return 0.25

    monkeypatch.setattr(roofline, "_fastest", fastest)
    monkeypatch.setattr(roofline, "buffer_bytes", lambda caches, available: 8 * MIB)
    assert roofline.read_bandwidth(1, 3.0) == 8 * MIB / 0.25
    # 1000 rounds took 0.25 s, so 40 take a slice of 0.01 s; there are four for each of three threads.
    assert roofline.peak(3, "f32", 5.0) == 40 * _kernels.peak(_kernels.Context(1, "exact"), results(12), 1) / 0.25
    assert calls == [3.0, 0, 5.0]


def results(tasks):
    return _kernels.Tensor(np.zeros(tasks, np.float32))


def test_the_fastest_of_at_least_three(monkeypatch):
    clock = iter([0, 0, 3, 3, 5, 5, 9, 9])  # end; start and end of each call; the last look
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(clock))
    assert roofline._fastest(lambda: None, 0) == 2


@pytest.mark.parametrize(
    "caches, available, expected",
    [
        (0, None, 256),  # nothing is known
        (32 * MIB, 8 << 30, 256),
        (100 * MIB, 8 << 30, 400),
        (512 * MIB, 8 << 30, 1024),
        (100 * MIB, 800 * MIB, 200),  # a quarter of what is free
        (100 * MIB, 0, 64),
        (100 * MIB, 403 * MIB, 100),  # in whole pieces of 4
    ],
)
def test_how_much_is_read(caches, available, expected):
    assert roofline.buffer_bytes(caches, available) == expected * MIB


def test_the_caches_nearest_to_memory_are_added_up(tmp_path):
    def cache(cpu, index, level, size, shared):
        directory = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
        directory.mkdir(parents=True)
        for name, text in {"level": level, "size": size, "shared_cpu_list": shared}.items():
            (directory / name).write_text(f"{text}\n")

    assert roofline._last_level_caches(tmp_path) == 0
    for cpu in range(4):
        cache(cpu, 0, 1, "32K", cpu)
        cache(cpu, 3, 3, "16M" if cpu < 2 else "8192K", "0-1" if cpu < 2 else "2-3")
    assert roofline._last_level_caches(tmp_path) == 24 * MIB
    (tmp_path / "sys/devices/system/cpu/cpu0/cache/index3/size").write_text("what\n")
    assert roofline._last_level_caches(tmp_path) == 24 * MIB, "cpu1 says it too"


def test_no_memory(monkeypatch):
    def refuse(*args):
        raise MemoryError

    monkeypatch.setattr(roofline.np, "empty", refuse)
    with pytest.raises(OutOfMemoryError, match="no 256 MiB of memory"):
        monkeypatch.setattr(roofline, "buffer_bytes", lambda caches, available: 256 * MIB)
        roofline.read_bandwidth(1, 0)


@pytest.mark.parametrize("threads", [0, -1, True, 1.5])
def test_a_number_of_threads(threads):
    with pytest.raises(InputError, match="threads"):
        roofline.measure(threads)
