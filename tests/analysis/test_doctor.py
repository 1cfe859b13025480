"""doctor: what it finds on trees of /proc and /sys that only look like a machine's, what it advises, what it prints."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import cgpt
from cgpt.analysis.doctor import ENVIRONMENT, examine, render
from cgpt.checkpoint.sizes import SIZES
from cgpt.cli import doctor
from cgpt.cli import main as cli
from cgpt.kernels import _kernels, isa
from cgpt.machine.cpu_time import CpuTime
from cgpt.machine.disk import DiskRate
from cgpt.machine.roofline import Roofline
from cgpt.models.accounting import cache_read, dense_bits, loaded_bytes
from cgpt.models.description import describe
from cgpt.models.forecast import VARIANTS, flops_per_token, forecast

from support.machine_cases import cpus, smt, v1, v2, write

ROOFLINE = Roofline(40e9, 500e9, "avx2", "f32", 8)
DISK = Path("/models/one/model.safetensors"), DiskRate(1.05e9, 4 << 20, 2, True)
AMX = Roofline(40e9, 6e12, "amx", "bf16", 8)
MEMINFO = """MemTotal: 32000000 kB
MemAvailable: 20000000 kB
HugePages_Total: 0
HugePages_Free: 0
Hugepagesize: 2048 kB"""
LEVELS = {"ref": None, "avx2": None, "avx512": None, "amx": None}
MACHINE = smt(8) | {
    "proc/cpuinfo": "processor : 0\nmodel name\t: Fast CPU @ 3 GHz\nflags : fpu",
    "proc/meminfo": MEMINFO,
    "proc/loadavg": "0.25 0.10 0.05 1/100 4242",
    "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never",
    "sys/devices/system/node/node0/cpulist": "0-15",
    "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal: 32000000 kB",
}


@pytest.fixture
def facts(tmp_path, monkeypatch):
    """What doctor finds on a healthy machine of 8 cores with SMT and every level, but for what `files` changes."""

    def found(
        files=MACHINE,
        threads=None,
        measure=None,
        affinity=range(16),
        level="amx",
        levels=LEVELS,
        runtime="OpenMP",
        disk=None,
        **environment,
    ):
        for name in ENVIRONMENT:
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(_kernels, "openmp_places", lambda: [])
        monkeypatch.setattr(_kernels, "thread_runtime", lambda: runtime)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(affinity), raising=False)
        monkeypatch.setattr(isa, "level", lambda: level)
        monkeypatch.setattr(isa, "levels", lambda: levels)
        return examine(threads, measure, write(tmp_path, files), disk)

    return found


# ------------------------------------------------------------------------------------------------------- facts


def test_a_healthy_machine(facts):
    found = facts(measure=lambda threads: ROOFLINE)
    assert found["cpu"] == {
        "name": "Fast CPU @ 3 GHz",
        "packages": 1,
        "cores": 8,
        "efficient_cores": 0,
        "cpus": 16,
        "numa_nodes": [{"node": 0, "cpus": 16, "memory": 32_768_000_000}],
    }
    assert found["usable"] == {"cpus": 16, "cores": 8, "quota": None}
    assert found["threads"] == {"default": 8, "in_use": 8, "runtime": "OpenMP"}
    assert found["memory"] == {
        "available": 20_480_000_000,
        "total": 32_768_000_000,
        "huge_pages": {"transparent": "madvise", "reserved": 0, "free": 0, "size": 2 << 20},
    }
    assert found["load"] == {"average": 0.25, "others": None, "stolen": None}  # no proc/stat
    assert found["roofline"] == vars(ROOFLINE)
    assert found["disk"] is None
    assert [(size["name"], size["dense"]) for size in found["models"]["sizes"]] == VARIANTS
    assert found["advice"] == []


def kinds(value):
    """The keys and types of what JSON holds; lists by their first element."""
    if isinstance(value, dict):
        return {name: kinds(inner) for name, inner in value.items()}
    return [kinds(value[0])] if isinstance(value, list) and value else type(value).__name__


def test_json_schema(facts):
    """Scripts read it: names do not change."""
    found = json.loads(json.dumps(facts(measure=lambda threads: ROOFLINE, disk=DISK)))
    rates = {"at_most": "float", "expected": "float"}
    assert kinds(found) == {
        "cgpt": "str",
        "environment": {},
        "level": {"in_use": "str", "missing": dict.fromkeys(LEVELS, "NoneType")},
        "cpu": {"name": "str", "packages": "int", "cores": "int", "efficient_cores": "int", "cpus": "int",
                "numa_nodes": [{"node": "int", "cpus": "int", "memory": "int"}]},
        "usable": {"cpus": "int", "cores": "int", "quota": "NoneType"},
        "threads": {"default": "int", "in_use": "int", "runtime": "str"},
        "memory": {"available": "int", "total": "int",
                   "huge_pages": {"transparent": "str", "reserved": "int", "free": "int", "size": "int"}},
        "load": {"average": "float", "others": "NoneType", "stolen": "NoneType"},
        "roofline": {"read_bytes_per_s": "float", "flops_per_s": "float", "level": "str", "dtype": "str",
                     "threads": "int"},
        "disk": {"file": "str", "bytes_per_second": "float", "request_bytes": "int", "readers": "int",
                 "direct": "bool"},
        "models": {"context": "int", "reached": {"decode": "float", "prompt": "float"}, "sizes": [{
            "name": "str", "dense": "NoneType", "weights": "int", "available": "int", "fits": "bool",
            "max_context": "int", "context": "int", "bytes_per_token": "int", "flops_per_token": "int",
            "decode": rates, "prompt": rates, "streaming": "NoneType",
        }]},
        "advice": "list",
    }  # fmt: skip


def test_the_threads_that_measure(facts):
    asked = []
    for threads in (3, None):
        facts(threads=threads, measure=lambda threads: asked.append(threads) or ROOFLINE)
    assert asked == [3, 8]


def test_a_system_without_proc_and_sys(facts, monkeypatch):
    """As macOS."""
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    levels = dict.fromkeys(LEVELS, "an x86-64 processor") | {"ref": None}
    found = facts({}, affinity=range(10), level="ref", levels=levels)
    assert found["cpu"] | {"name": ""} == {
        "name": "",
        "packages": 1,
        "cores": 10,
        "efficient_cores": 0,
        "cpus": 10,
        "numa_nodes": [],
    }
    assert found["load"] == {"average": None, "others": None, "stolen": None}
    assert found["memory"]["huge_pages"] == dict.fromkeys(("transparent", "reserved", "free", "size"))
    text = render(found)
    assert "10 cores, 10 CPUs (no SMT), 1 socket;" in text and "transparent huge pages: unknown" in text
    assert "ref; avx2 needs an x86-64 processor" in text and "portable C" in text
    found["memory"]["available"] = None
    assert "unknown;" in render(found)


@pytest.mark.parametrize("name", MACHINE)
@pytest.mark.parametrize("text", ["", "garbage", "[", "-1", "\x00", "9" * 30])
def test_garbage_in_any_file(facts, name, text):
    assert render(facts(MACHINE | {name: text}, measure=lambda threads: ROOFLINE))


def test_a_hybrid_machine(facts):
    files = cpus((0, 0, (0, 1)), (0, 4, (2, 3)), *((0, 8 + n, (4 + n,)) for n in range(4)))
    found = facts(MACHINE | files | {"sys/devices/cpu_atom/cpus": "4-7"}, affinity=range(8))
    assert (found["cpu"]["cores"], found["cpu"]["efficient_cores"]) == (6, 4)
    assert "6 cores (2 performance, 4 efficiency), 8 CPUs (SMT)" in render(found)


def test_who_used_the_cpus(tmp_path, monkeypatch):
    def at(own, *per_cpu):
        lines = [f"cpu{n} {' '.join(map(str, fields))}" for n, fields in enumerate(per_cpu)]
        write(tmp_path, {"proc/stat": "\n".join(["cpu 1 2 3 4 5 6 7 8 9", *lines, "intr 5"])})
        monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=own, system=0.0))
        return CpuTime.now({0, 1}, tmp_path)

    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    before = at(5.0, [100] * 8 + [0, 0], [100] * 8 + [0, 0], [0] * 10)
    # 2 CPUs, a second each: 1.2 s busy of which 0.8 s are this process's, 0.6 s idle or waiting, 0.2 s stolen
    first, second = [140, 120, 110, 110, 105, 105, 105, 110, 7, 7], [115, 110, 110, 130, 115, 100, 105, 110, 0, 0]
    after = at(5.8, first, second, [900] * 10)
    assert after.shares_since(before) == pytest.approx((0.2, 0.1))
    assert before.shares_since(before) == (None, None)
    (tmp_path / "proc/stat").unlink()
    assert CpuTime.now({0, 1}, tmp_path).shares_since(before) == (None, None)


def test_load_while_measuring(facts, tmp_path, monkeypatch):
    """Only what happens during the measurement counts."""
    monkeypatch.setattr(os, "times", lambda: SimpleNamespace(user=1.0, system=1.0))
    stat = {"proc/stat": "cpu0 0 0 0 500 0 0 0 0"}

    def measure(threads):
        write(tmp_path, {"proc/stat": "cpu0 30 0 0 560 0 0 0 10"})
        return ROOFLINE

    found = facts(MACHINE | stat, measure=measure)
    assert (found["load"]["others"], found["load"]["stolen"]) == pytest.approx((0.3, 0.1))
    assert "other processes used 30% while measuring, steal 10%" in render(found)
    assert [bool(re.search("30%|10%", line)) for line in found["advice"]] == [True, True]


# ------------------------------------------------------------------------------------------------------ advice


BARRED = "an operating system that enables AVX-512"


@pytest.mark.parametrize("change, expected", [
    ({}, []),
    (dict(level="avx2", CGPT_ISA="avx2"), ["CGPT_ISA keeps the level at avx2; this machine offers amx"]),
    (dict(level="avx2"), ["a call keeps the level at avx2"]),
    (dict(level="avx2", levels=LEVELS | {"avx512": "AVX512F", "amx": "AVX512F"}), []),
    (dict(level="avx2", levels=LEVELS | {"avx512": BARRED, "amx": BARRED}), ["AVX-512 is there but the operating"]),
    (dict(level="avx512", levels=LEVELS | {"amx": "the system's permission for AMX"}), ["AMX is there but the system"]),
    (dict(affinity=range(4)), ["this process may use 4 of 8 cores"]),
    (dict(affinity={0, 8}), ["this process may use 1 of 8 cores"]),
    (dict(files=v2("/", **{"__cpu-max": "150000 100000"})), ["limited to 1.5 CPUs, of 8 cores"]),
    (dict(files=v1("cpu", "/a", **{"a__cpu-cfs_quota_us": 50000, "a__cpu-cfs_period_us": 100000})),
     ["limited to 0.5 CPUs, of 8 cores"]),
    (dict(files=v2("/", **{"__cpu-max": "900000 100000"})), []),
    (dict(files={"sys/devices/system/node/node1/cpulist": "8-15"}), ["2 NUMA nodes"]),
    (dict(files={"sys/devices/system/node/node1/cpulist": ""}), []),  # memory only
    (dict(files={"sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]"}), ["huge pages are off"]),
    (dict(files={"proc/meminfo": MEMINFO.replace("Free: 0", "Free: 500")}), ["1.0 GB are set aside as huge pages"]),
    (dict(threads=16), ["16 threads on 8 physical cores"]),
    (dict(threads=4), []),
    (dict(threads=4, files=v2("/", **{"__cpu-max": "300000 100000"})), ["limited to 3", "4 threads are more"]),
    (dict(OMP_NUM_THREADS="2"), ["OMP_NUM_THREADS=2 holds the default at 2 threads; there are 8 cores"]),
    (dict(OMP_NUM_THREADS="16"), ["OMP_NUM_THREADS=16 does not raise the default"]),
    (dict(OMP_NUM_THREADS="8"), []),
    (dict(OMP_NUM_THREADS="many"), []),
    (dict(OMP_THREAD_LIMIT="3,1"), ["OMP_THREAD_LIMIT=3,1 holds the default at 3 threads"]),
    (dict(files={"proc/loadavg": "9.5 1 1"}), ["9.5 processes wanted a CPU during the last minute: threads that wait"]),
    (dict(files={"proc/loadavg": "9.5 1 1"}, OMP_WAIT_POLICY="PASSIVE"), ["minute: all figures are those of a shared"]),
])  # fmt: skip
def test_advice(facts, change, expected):
    found = facts(**change | {"files": MACHINE | change.get("files", {})})
    assert len(found["advice"]) == len(expected), found["advice"]
    for line, part in zip(found["advice"], expected, strict=True):
        assert part in line
    text = render(found)
    assert max(map(len, text.splitlines())) <= 140
    assert text.count("\n! ") == len(expected) and ("nothing stands in the way" in text) == (not expected)


def test_threads_without_openmp(facts):
    found = facts(threads=4, runtime="pthreads")
    assert found["threads"]["runtime"] == "pthreads" and "4 asked for, pthreads" in render(found)


# ---------------------------------------------------------------------------------------------------- forecast


@pytest.mark.parametrize("name, gigabytes", [("gpt-oss-20b", 3.71), ("gpt-oss-120b", 5.00), ("gpt2", 0.4946)])
def test_decode_reads_its_bytes(name, gigabytes):
    rate = forecast(name, None, ROOFLINE)["decode"]["at_most"]
    read = 40e9 / rate - cache_read(SIZES[name], 512)
    assert read / 1e9 == pytest.approx(gigabytes, rel=0.002)


def test_bf16_halves_what_gpt2_reads():
    stored, rounded = (describe("gpt2-xl", 512, dense)["bytes"] for dense in (None, "bf16"))
    vectors = 4 * (48 * 13 + 2) * 1600  # biases and norms stay f32
    assert rounded["weights"] == (stored["weights"] - vectors) / 2 + vectors
    assert describe("gpt-oss-20b", 512, "bf16")["bytes"] == describe("gpt-oss-20b", 512)["bytes"]


@pytest.mark.parametrize("name", SIZES)
def test_int8_takes_eight_bits_and_a_scale_for_64_weights(name):
    config, plain, small = SIZES[name], *(describe(name, 512, dense)["bytes"]["per_token"] for dense in (None, "int8"))
    if name.startswith("gpt2"):
        C, L, V = config.n_embd, config.n_layer, config.vocab_size
        weights = {"attention": L * 4 * C * C, "mlp": L * 8 * C * C, "unembedding": V * C}
        vectors = {"attention": 4 * L * 4 * C, "mlp": 4 * L * 5 * C, "unembedding": 0}
        assert small == plain | {part: weights[part] * 33 // 32 + vectors[part] for part in weights}
    else:
        C, L, V = 2880, config.num_hidden_layers, config.vocab_size
        assert small["mlp"] == plain["mlp"] and small["embedding"] == plain["embedding"]
        assert small["unembedding"] == V * C * 33 // 32
        out, rows = 4096, 5120
        vectors = 2 * L * (rows + C + 64)
        assert small["attention"] == L * (rows * C + C * out) * 33 // 32 + vectors
    assert dense_bits("int4", 64) == 4.25 and dense_bits("int4", 96) == 4.25 * 4 / 3
    assert dense_bits("int8", 64) == 8.25 and dense_bits("int8", 96) == 11 and dense_bits("bf16", 64) == 16


def test_packed_bf16_takes_little_more_than_twelve_bits():
    """Of the 20b as published all that is not experts, but for the rows of the embedding: 3.71 GB a token are 3.13."""
    plain, packed = (describe("gpt-oss-20b", 512, dense)["bytes"]["per_token"] for dense in (None, "bf16-packed"))
    weights = {"attention": 24 * (5120 + 4096) * 2880, "unembedding": 201088 * 2880}
    assert {part for part in plain if packed[part] != plain[part]} == set(weights)
    for part, count in weights.items():
        assert 12 * count / 8 < packed[part] - (plain[part] - 2 * count) < 12.25 * count / 8
    assert sum(packed.values()) - packed["cache"] == pytest.approx(3.13e9, rel=0.002)
    assert dense_bits("bf16-packed", 1024) == 12.25 and dense_bits("bf16-packed", 768) == 12 + 1 / 3


def test_biases_of_experts_stay_as_they_are():
    """They have two dimensions, [E, N], and are no matrices."""
    name = "model.layers.0.mlp.experts.down_proj_bias"
    bias = SimpleNamespace(name=name, shape=(32, 2880), dtype="F32", nbytes=368640)
    assert [loaded_bytes(SIZES["gpt-oss-20b"], bias, dense) for dense in (None, "bf16", "int8")] == [368640] * 3


def test_flops_of_a_prompt():
    """GPT-2 124M: 85 M weights in the blocks; 512 positions see 256.5 keys on average."""
    C, L = 768, 12
    assert flops_per_token(describe("gpt2")) == 2 * L * 12 * C * C + 4 * C * L * 256.5
    found = flops_per_token(describe("gpt-oss-20b"))
    keys = 12 * 256.5 + 12 * (128 * 129 / 2 + 384 * 128) / 512
    assert found == pytest.approx(2 * (3.61e9 - 201088 * 2880) + 4 * 4096 * keys, rel=0.002)


def test_the_peak_of_bf16_says_nothing_of_f32():
    assert forecast("gpt2", None, AMX)["prompt"] is None and forecast("gpt2", None, AMX)["decode"]
    for name, dense in (("gpt2", "bf16"), ("gpt2", "int8"), ("gpt-oss-20b", None)):
        found = forecast(name, dense, AMX)
        assert found["prompt"]["at_most"] == AMX.flops_per_s / found["flops_per_token"]
        assert 0 < found["prompt"]["expected"] < found["prompt"]["at_most"]


def test_what_fits(facts):
    """In a container of 15 GB, of which the 20b takes 13.8."""
    limited = MACHINE | v2("/", **{"__memory-max": 15_000_000_000, "__memory-current": 0})
    found = facts(limited, measure=lambda threads: ROOFLINE)
    sizes = {(s["name"], s["dense"]): s for s in found["models"]["sizes"]}
    assert found["memory"]["available"] == sizes["gpt2", None]["available"] == 15_000_000_000
    assert 0 < sizes["gpt-oss-20b", None]["max_context"] < sizes["gpt-oss-20b", "int8"]["max_context"] < 131072
    assert sizes["gpt-oss-120b", "int8"]["max_context"] == 0
    rows = {row.split()[0]: row for row in render(found).splitlines() if row.startswith("  gpt")}
    assert "streamed" in rows["gpt-oss-120b"] and "<" not in rows["gpt-oss-120b"]
    assert "<" in rows["gpt-oss-20b"]
    assert f"{sizes['gpt-oss-20b', None]['max_context']:,} of 131,072" in rows["gpt-oss-20b"]


def test_what_is_streamed(facts):
    """In 15 GB the 120b's experts come from the disk, in 3 GB the 20b's do not either."""
    rates, rows = {}, {}
    for memory in (15_000_000_000, 3_000_000_000):
        limited = MACHINE | v2("/", **{"__memory-max": memory, "__memory-current": 0})
        found = facts(limited, measure=lambda threads: ROOFLINE, disk=DISK)
        for size in found["models"]["sizes"]:
            rates[memory, size["name"], size["dense"]] = size["streaming"]
        rows[memory] = {row.split()[0]: row for row in render(found).splitlines() if row.startswith("  gpt")}
    assert rates[15_000_000_000, "gpt-oss-20b", None] is None
    assert rates[3_000_000_000, "gpt-oss-20b", None]["memory"] is None
    assert "does not fit" in rows[3_000_000_000]["gpt-oss-20b"]
    streaming = rates[15_000_000_000, "gpt-oss-120b", None]
    assert streaming["memory"] == 13_500_000_000
    share = streaming["resident"]
    assert streaming["disk_bytes_per_token"]["uniform"] == pytest.approx(1.9035e9 * (1 - share), rel=0.01)
    rest = 5.00e9 - 1.9035e9  # what is read from memory, at 0.65 of the roofline
    slow = 1 / (streaming["disk_bytes_per_token"]["uniform"] / 1.05e9 + rest / 26e9)
    speeds = streaming["tokens_per_second"]
    assert speeds["uniform"] == pytest.approx(slow, rel=0.01) and speeds["text"] > 1.3 * slow
    assert (
        f"streamed, about {speeds['uniform']:.1f} to {speeds['text']:.1f} tok/s" in rows[15_000_000_000]["gpt-oss-120b"]
    )


# ---------------------------------------------------------------------------------------------------------- CLI


def test_command(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(doctor, "_measure", lambda threads: asked.append(threads) or replace(ROOFLINE, threads=threads))
    assert cli.main(["doctor", "--json", "--threads", "2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert asked == [2] and found["roofline"]["read_bytes_per_s"] == 40e9 and found["level"]["in_use"] == isa.level()
    assert cli.main(["doctor", "--threads", "2"]) == 0
    text = capsys.readouterr().out
    assert "40.0 GB/s read, 500 GFLOP/s in f32 (avx2), by 2 threads" in text and "gpt-oss-120b" in text
    assert "(< " in text and "Estimates" in text


def test_the_disk_of_a_checkpoint(capsys, monkeypatch, tmp_path):
    """That of the model named, else of the largest file in the hub's cache, else none."""
    monkeypatch.setattr(doctor, "_measure", lambda threads: ROOFLINE)
    monkeypatch.setattr(doctor, "SECONDS", 0.01)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))

    def disk(*argv):
        assert cli.main(["doctor", "--json", *argv]) == 0
        return json.loads(capsys.readouterr().out)["disk"]

    assert disk() is None
    weights = Path(cgpt.__file__).parent / "demo" / "demo-gpt2" / "model.safetensors"
    found = disk("demo-gpt2")
    assert found["file"] == str(weights) and found["bytes_per_second"] > 0
    assert found["request_bytes"] == -(-weights.stat().st_size // 4096) * 4096
    for size, name in enumerate(("one", "two", "six"), 1):
        snapshot = tmp_path / f"models--any--{name}" / "snapshots" / "abc"
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"x" * size)
    (snapshot / "model-2.safetensors").symlink_to("gone")
    assert disk()["file"] == str(snapshot / "model.safetensors")
    assert cli.main(["doctor", "no-such-model"]) == 2
    assert "no-such-model" in capsys.readouterr().err


def test_the_row_of_the_disk(facts):
    assert "\n  disk" not in render(facts())
    file, rate = DISK
    text = render(facts(disk=DISK))
    assert "\n  disk      1.05 GB/s in requests of 4.2 MB by 2 threads, past the page cache, from /models/one/" in text
    assert "through the page cache" in render(facts(disk=(file, replace(rate, direct=False))))


def test_no_measure(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "_measure", None)
    monkeypatch.setattr(doctor, "disk_rate", None)
    assert cli.main(["doctor", "--no-measure", "demo-gpt2"]) == 0
    text = capsys.readouterr().out
    assert "GB/s" not in text and "tok/s" not in text and "Estimates" not in text and "fits up to" in text


@pytest.mark.parametrize("threads", ["0", "-1", "5000"])
def test_refuses_bad_threads(capsys, threads):
    assert cli.main(["doctor", "--threads", threads]) == 2
    assert "from 1 to 4096" in capsys.readouterr().err


def test_with_openmp_bound_and_limited():
    """A process of its own, since OpenMP's runtime reads its settings once."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "CGPT_"))}
    env |= {"PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_PROC_BIND": "true", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cgpt", "doctor", "--json", "--no-measure"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["threads"]["default"] == 1 and found["roofline"] is None
    assert found["environment"] == {"OMP_NUM_THREADS": "1", "OMP_PROC_BIND": "true"}
    if hasattr(os, "sched_getaffinity"):
        assert found["usable"]["cpus"] == len(os.sched_getaffinity(0))
