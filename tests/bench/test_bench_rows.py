"""From seconds to figures: the arithmetic of a row by hand, its names, and what is called noise."""

import json
import re

import pytest

from cgpt.bench import noise, report, rows
from cgpt.bench.noise import spread, warnings
from cgpt.bench.trace import Op, Trace
from cgpt.bench.workload import Case, Measured
from cgpt.checkpoint.expert_store import ExpertStats
from cgpt.machine import topology
from cgpt.machine.cpu_time import CpuTime
from cgpt.machine.disk import DiskRate
from cgpt.machine.roofline import Roofline

LLAMA_BENCH = {  # the fields of its JSON that mean the same here
    "cpu_info", "model_filename", "model_type", "model_size", "model_n_params", "n_ubatch", "n_threads", "n_prompt",
    "n_gen", "n_depth", "test_time", "avg_ns", "stddev_ns", "avg_ts", "stddev_ts", "samples_ns", "samples_ts",
    "type_k", "type_v",
}  # fmt: skip
FACTS = {
    "model_filename": "/m/gpt2",
    "model_type": "GPT-2 124M F32",
    "model_size": 5e8,
    "cpu_info": "CPU",
    "level": "avx2",
    "precision": "auto",
    "dense": None,
    "type_k": "f16",
    "type_v": "f16",
    "n_threads": 2,
    "load_ns": 250_000_000,
}


def roofline(read=10e9, flops=100e9, dtype="f32"):
    return Roofline(read, flops, "avx2", dtype, 2)


def generation():
    """Two sequences, four steps; three repetitions of 4, 8 and 5 s, which read 40 GB and calculate 50 G operations."""
    return Measured(Case(n_gen=4, n_depth=7, n_parallel=2), 40e9, 50e9, [[1, 1, 1, 1], [1, 2, 2, 3], [1, 1, 1, 2]])


def test_a_row_of_generation():
    row = rows.row(generation(), (roofline(), roofline(read=16e9, flops=90e9)), (0.0, 0.0), 123)
    assert row["test"] == "tg4 x2 @ d7"
    assert (row["n_prompt"], row["n_gen"], row["n_depth"], row["n_parallel"]) == (0, 4, 7, 2)
    assert row["samples_ns"] == [4e9, 8e9, 5e9] and row["samples_ts"] == [2, 1, 1.6]
    assert row["median_ns"] == 5e9 and row["median_ts"] == 1.6 and row["spread"] == 0.8
    assert row["avg_ns"] == 5_666_666_667 and row["avg_ts"] == pytest.approx(4.6 / 3)
    assert row["stddev_ns"] == pytest.approx(2_081_665_999) and row["stddev_ts"] == pytest.approx(0.503322)
    assert row["token_ns_p50"] == 1e9 and row["token_ns_p99"] == pytest.approx(2.89e9)
    assert row["first_token_ns"] is None
    assert row["bytes_per_token"] == 5e9 and row["flops_per_token"] == 6.25e9
    assert row["bytes_per_s"] == 8e9 and row["bandwidth_share"] == 0.5, "of the better roofline, 16 GB/s"
    assert row["flops_per_s"] == 10e9 and row["peak_share"] == 0.1 and row["roofline_flops_per_s"] == 100e9
    assert row["peak_memory_bytes"] == 123


def test_a_row_of_a_prompt():
    row = rows.row(Measured(Case(n_prompt=100), 1e9, 8e9, [[1, 1]]), (roofline(), roofline()), (None, None), None)
    assert row["first_token_ns"] == 2e9 and row["token_ns_p50"] is None and row["token_ns_p99"] is None
    assert row["avg_ts"] == 50 and row["stddev_ts"] == 0 and row["bytes_per_token"] == 1e7
    assert row["others_share"] is None and row["warnings"] == []


@pytest.mark.parametrize(
    "values, expected",
    [
        (dict(), []),
        (dict(stolen=0.02, others=0.05), []),
        (dict(stolen=None, others=None), []),
        (dict(stolen=0.21), ["the host took 21% of the CPUs' time"]),
        (dict(others=0.4), ["other processes used 40% of the CPUs' time"]),
        (dict(samples=[1.0, 1.0, 1.11]), ["repetitions differ by 11%"]),
        (dict(after=roofline(read=8e9)), ["memory was read with 8.0 to 10.0 GB/s"]),
        (dict(after=roofline(read=9e9)), []),
        (dict(faults=1234), ["1,234 reads of the model waited for the disk"]),
    ],
)
def test_noise(values, expected):
    quiet = dict(samples=[1.0, 1.0, 1.05], others=0.0, stolen=0.0, before=roofline(), after=roofline(), faults=100)
    assert warnings(**quiet | values) == expected


def test_spread():
    assert spread([2.0, 3.0, 4.0]) == pytest.approx(2 / 3) and spread([5.0]) == 0


def test_the_shares_of_others_and_of_the_host(monkeypatch):
    """Counters that move: 10 s on two CPUs, this process used 12 s of 17 busy ones, 1 was stolen."""
    counters = iter([CpuTime(5.0, 100.0, 50.0, 1.0), CpuTime(17.0, 117.0, 52.0, 2.0)])
    monkeypatch.setattr(noise.CpuTime, "now", lambda cpus: next(counters))
    assert noise.Watch().shares() == (5 / 20, 1 / 20)


# ---- what is shown


def whole_row(**changes):
    return FACTS | rows.row(generation(), (roofline(), roofline()), (0.4, 0.0), 1_500_000_000) | changes


def test_the_names_of_llama_bench():
    import cgpt

    facts = rows.model_facts(cgpt.load("demo-gpt-oss", 1), "demo-gpt-oss", None, 0.25)
    row = json.loads(json.dumps(facts | rows.row(generation(), (roofline(), roofline()), (0.4, 0.0), None)))
    assert set(row) >= LLAMA_BENCH
    assert row["model_type"] == "gpt-oss 2M BF16+MXFP4" and row["load_ns"] == 250_000_000
    assert row["n_threads"] == 1 and row["test_time"].endswith("Z")


def test_table():
    text = report.table([whole_row(), whole_row(warnings=[])])
    lines = text.splitlines()
    assert re.split("  +", lines[1]) == [
        "tg4 x2 @ d7", "2", "1.60", "80.0%", "1,000 ms", "2,890 ms", "5,000", "8.0", "80%", "10.0", "10% (1)"
    ]  # fmt: skip
    assert not lines[2].endswith(")")
    assert lines[3] == "(1) noisy: other processes used 40% of the CPUs' time; repetitions differ by 80%"
    assert lines[4] == (
        "2 threads: memory 10.0 GB/s, f32 products 100.0 GFLOP/s; loaded in 0.25 s, at most 1.50 GB in memory"
    )
    assert report.heading(whole_row(dense="bf16")) == (
        "gpt2: GPT-2 124M F32, 0.50 GB stored; CPU, avx2, precision auto, dense=bf16, f16 cache"
    )


def test_streamed():
    """8 tokens in each of three repetitions of 4, 8 and 5 s: 6 of 16 hits, 5.1 GB, 4 s of waiting."""
    measured = generation()
    measured.experts = [ExpertStats(1, 4, 2_000_000_000, 1.0), ExpertStats(5, 0), ExpertStats(0, 6, 3_100_000_000, 3.0)]
    disks = DiskRate(0.4e9, 4 << 20, 4, True), DiskRate(0.6e9, 4 << 20, 4, True)
    found = rows.streamed(measured, disks)
    assert found == {
        "expert_hit_rate": 0.375,
        "disk_bytes_per_token": pytest.approx(5.1e9 / 24),
        "disk_bytes_per_s": 0.3e9,
        "disk_share": 0.5,
        "disk_rate_bytes_per_s": 0.6e9,
        "disk_request_bytes": 4 << 20,
        "wait_ns": 1_333_333_333,
        "compute_ns": 4_333_333_333,
    }
    text = report.table([whole_row(**found), whole_row(test="pp1")])
    lines = [re.split("  +", line) for line in text.splitlines()]
    assert ["tg4 x2 @ d7", "2", "37.5%", "212.5", "0.30", "50%", "1,333 ms", "4,333 ms"] in lines
    assert len([line for line in lines if line[0] == "pp1"]) == 1
    assert "the disk's own rate: 0.60 GB/s in requests of 4.2 MB" in text
    assert "experts streamed within 18.00 GB" in report.heading(whole_row(memory_limit=18 * 10**9))


def test_profile():
    """Two steps of 1 s; 1.5 s in two kernels, the rest outside."""
    trace = Trace.__new__(Trace)
    trace.ops = {"linear head": Op(2, 0.5, int(4e9), int(10e9)), "rope": Op(8, 1.0, 0, 0)}
    found = rows.profile(trace, 2.0, 2, whole_row())
    assert [op["op"] for op in found] == ["rope", "linear head", "outside the kernels"]
    assert [op["ns"] for op in found] == [0.5e9, 0.25e9, 0.25e9] and [op["calls"] for op in found] == [4, 1, 0]
    assert sum(op["share"] for op in found) == 1
    assert found[1]["bytes_per_s"] == 8e9 and found[1]["bandwidth_share"] == 0.8 and found[1]["peak_share"] == 0.2
    text = report.profile_table(whole_row(profile=found)).splitlines()
    assert text[0] == "tg4 x2 @ d7, 2 threads, a step:"
    assert text[2].split() == ["rope", "4", "500.000", "50.0%"]
    assert text[3].split() == ["linear", "head", "1", "250.000", "25.0%", "8.0", "80%", "20.0", "20%"]


def test_peak_memory_and_the_processor(tmp_path):
    assert rows.peak_memory(tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Name:\tx\nVmHWM:\t     2000 kB\nVmRSS:\t 1000 kB\n")
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: A CPU: fast\n")
    assert rows.peak_memory(tmp_path) == 2_048_000 and topology.cpu_name(tmp_path) == "A CPU: fast"
