"""info: the published figures, what a directory's headers say, and what fits into the memory there is."""

import json
import re

import pytest

import cgpt
import cgpt.models.synth
from cgpt.analysis.info import render
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.checkpoint.sizes import SIZES
from cgpt.errors import CheckpointError, ContextLengthError, InputError
from cgpt.machine.memory import available_memory
from cgpt.models import description, streaming_speed
from cgpt.models.accounting import cache_bytes, cache_read
from cgpt.models.description import describe
from cgpt.models.streaming_speed import Rates, hit_rates, measure_rates

from support.machine_cases import CGROUP1, CGROUP2, write
from support.synth_cases import CONFIGS, GPT2, GPT_OSS, ORIGINAL, PLAIN, stored

GB = 1_000_000_000


def checkpoint(config, directory):
    cgpt.models.synth.write(config, directory)
    return directory


# ------------------------------------------------------------------------------------------ published figures


@pytest.mark.parametrize(
    "name, total",
    [("gpt2", 124_439_808), ("gpt2-medium", 354_823_168), ("gpt2-large", 774_030_080), ("gpt2-xl", 1_557_611_200)],
)
def test_parameters_of_gpt2(name, total):
    facts = describe(name)
    assert facts["parameters"]["total"] == total
    width, per_token = facts["shape"]["width"], facts["bytes"]["per_token"]
    active = total - 1023 * width  # of the positions, one
    assert facts["parameters"]["active"] == active
    assert sum(per_token.values()) == 4 * active + cache_read(SIZES[name], 1024)
    assert per_token["unembedding"] == 4 * 50257 * width


@pytest.mark.parametrize(
    "name, total, active, mlp, attention",
    [("gpt-oss-20b", 20.91, 3.61, 19.12, 0.64), ("gpt-oss-120b", 116.83, 5.13, 114.71, 0.96)],
)
def test_parameters_of_gpt_oss(name, total, active, mlp, attention):
    """The model card's table 1, in billions."""
    facts = describe(name)["parameters"]
    parts = facts["parts"]
    both = parts["embedding"] + parts["unembedding"]
    figures = [facts["total"], facts["active"], parts["mlp"], parts["attention"], both]
    assert [round(n / 1e9, 2) for n in figures] == [total, active, mlp, attention, 1.16]
    assert sum(parts.values()) == facts["total"]


@pytest.mark.parametrize("name, read, on_disk", [("gpt-oss-20b", 3.71, 13.76), ("gpt-oss-120b", 5.00, 65.25)])
def test_bytes_of_gpt_oss(name, read, on_disk):
    facts = describe(name)["bytes"]
    per_token = facts["per_token"]
    assert round((sum(per_token.values()) - per_token["cache"]) / GB, 2) == read
    assert round(facts["disk"] / GB, 2) == on_disk
    assert per_token["unembedding"] == 2 * 201088 * 2880


def test_cache_of_the_20b():
    """Of 24 layers 12 keep 128 positions; each of 8 heads keeps 64 keys and 64 values."""
    config = SIZES["gpt-oss-20b"]
    for size, kept in ((4, {"kv_cache_dtype": "f32"}), (2, {"kv_cache_dtype": "bf16"}), (2, {})):
        position = 2 * 8 * 64 * size
        for context in (128, 4096, 131072):
            assert cache_bytes(config, context, **kept) == 12 * position * (context + 128)
            assert cache_read(config, context, **kept) == 12 * position * (context + 128)
        assert cache_read(config, 100, **kept) == 24 * position * 100
        assert describe("gpt-oss-20b", 4096, **kept)["memory"]["cache"] == cache_bytes(config, 4096, **kept)
    with pytest.raises(InputError, match="kv_cache_dtype"):
        describe("gpt-oss-20b", kv_cache_dtype="int4")


# ---------------------------------------------------------------------------------------------- a directory's


@pytest.mark.parametrize("kind", CONFIGS)
def test_directory(kind, tmp_path, monkeypatch):
    directory = checkpoint(CONFIGS[kind], tmp_path / "model")
    monkeypatch.setattr(Checkpoint, "array", None)  # headers are enough
    facts = describe(directory)
    tensors = {name: array for name, (array, _) in stored(directory).items()}
    used = {n: a for n, a in tensors.items() if "blocks" in n or a.ndim < 4}  # not the masks of GPT-2
    parameters = [a.size * (2 if "blocks" in n else 1) for n, a in used.items() if "scales" not in n]
    assert facts["parameters"]["total"] == sum(parameters)
    assert facts["bytes"]["weights"] == sum(array.nbytes for array in used.values())
    assert facts["bytes"]["disk"] == (directory / "model.safetensors").stat().st_size
    assert facts["source"] == "files"
    assert facts["name"] == "model"
    assert json.loads(json.dumps(facts)) == facts
    assert render(facts)


def test_layouts_differ_in_bytes_only(tmp_path):
    layouts = dict(mxfp4=GPT_OSS, plain=PLAIN, original=ORIGINAL)
    facts = {name: describe(checkpoint(config, tmp_path / name)) for name, config in layouts.items()}
    assert facts["mxfp4"]["parameters"] == facts["plain"]["parameters"] == facts["original"]["parameters"]
    assert facts["mxfp4"]["bytes"]["per_token"] == facts["original"]["bytes"]["per_token"]
    assert facts["plain"]["bytes"]["per_token"]["mlp"] > 2 * facts["mxfp4"]["bytes"]["per_token"]["mlp"]


def test_active_experts(tmp_path):
    """All that four of eight experts leave out is half of the experts."""
    facts = describe(checkpoint(GPT_OSS, tmp_path / "model"))
    layers, width, inner = 4, 64, 96
    experts = layers * 8 * (2 * inner * width + 2 * inner + width * inner + width)
    unused_rows = 499 * width  # of the embedding
    assert facts["parameters"]["active"] == facts["parameters"]["total"] - experts // 2 - unused_rows
    router = layers * (8 * width + 8)
    assert facts["parameters"]["parts"]["mlp"] == experts + router


@pytest.mark.parametrize("config", [GPT2, GPT_OSS], ids=["gpt2", "gpt-oss"])
@pytest.mark.parametrize("context", [1, 15, 16, 17, 50, 96])
def test_cache_is_what_a_sequence_allocates(config, context, tmp_path):
    directory = checkpoint(config, tmp_path / "model")
    for options in ({}, {"kv_cache_dtype": "bf16"}, {"kv_cache_dtype": "int8"}, {"precision": "exact"}):
        model = cgpt.load(directory, **options)
        arrays = [array for pair in model.transformer.new_cache(context).arrays for array in pair]
        assert cache_bytes(model.config, context, model.kv_cache_dtype) == sum(array.nbytes for array in arrays)


def test_models_of_the_package():
    for name in cgpt.demo_models():
        facts = describe(name)
        assert facts["name"] == name
        assert facts["source"] == "files"
        assert facts["parameters"]["total"] > 1_000_000


def test_a_directory_comes_before_a_published_size(tmp_path, monkeypatch):
    checkpoint(GPT2, tmp_path / "gpt2")
    monkeypatch.chdir(tmp_path)
    assert describe("gpt2")["shape"]["layers"] == 3
    assert describe("gpt2-xl")["shape"]["layers"] == 48


def test_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="gpt-oss-20b"):
        describe("gpt-oss-2b")
    directory = checkpoint(GPT2, tmp_path / "model")
    (directory / "config.json").write_text(json.dumps(GPT2 | dict(n_layer=4)))
    with pytest.raises(CheckpointError, match="h.3"):
        describe(directory)


# ----------------------------------------------------------------------------------------------------- memory


def test_memory_at_a_context():
    small, large = describe("gpt-oss-20b", context=8192), describe("gpt-oss-20b")
    assert large["memory"]["context"] == 131072
    for facts in (small, large):
        memory = facts["memory"]
        assert memory["total"] == memory["weights"] + memory["cache"] + memory["runtime"]
        assert facts["bytes"]["per_token"]["cache"] == cache_read(SIZES["gpt-oss-20b"], memory["context"])
    assert large["memory"]["total"] - small["memory"]["total"] == 12 * 2048 * (131072 - 8192)


@pytest.mark.parametrize("context", [0, -1, True, 1.5, "8k"])
def test_refuses_a_bad_context(context):
    with pytest.raises(InputError, match="context"):
        describe("gpt2", context=context)


def test_refuses_too_long_a_context():
    assert describe("gpt2", context=1024)["memory"]["context"] == 1024
    with pytest.raises(ContextLengthError, match="1025"):
        describe("gpt2", context=1025)


def test_what_fits(monkeypatch):
    def here(available, context=None):
        monkeypatch.setattr(description, "available_memory", lambda root: available)
        return describe("gpt-oss-20b", context)

    def needed(context):
        return here(None, context)["memory"]["total"]

    for available in (15 * GB, 16 * GB, 17 * GB):
        found = here(available)["here"]["max_context"]
        assert needed(found) <= available < needed(found + 1)
        assert not here(available)["here"]["fits"]
        assert here(available, found)["here"]["fits"]
        assert f"{found:,} of 131,072" in render(here(available))
    assert here(64 * GB)["here"] == {"available": 64 * GB, "fits": True, "max_context": 131072}
    assert here(13 * GB)["here"] == {"available": 13 * GB, "fits": False, "max_context": 0}
    assert "does not fit at any context" in render(here(13 * GB))
    assert here(None)["here"] == {"available": None, "fits": None, "max_context": None}
    assert "cannot be told" in render(here(None))


# -------------------------------------------------------------------------------------------------- streamed


def test_what_a_budget_gives(tmp_path):
    """The files that are measured; bytes of the disk and of memory in the time of a token."""
    measured = []

    def measure(files):
        measured.extend(files)
        return Rates(1e9, 20e9)

    assert describe("demo-gpt-oss", measure=measure)["streaming"] is None and not measured
    config = GPT_OSS | dict(hidden_size=1024, intermediate_size=1024, num_hidden_layers=4, num_local_experts=32)
    directory = checkpoint(config, tmp_path / "model")
    least = describe(directory, memory="64GB")["streaming"]["least"]
    experts = 4 * 32 * 3 * 1024 * 1024 * 17 // 32
    found = describe(directory, memory=least + experts // 4, measure=measure, dense="int8")["streaming"]
    assert measured == [directory / "model.safetensors"]
    assert found["resident"] == pytest.approx(0.25 + 4 / 32, abs=0.04)
    assert 0 < found["least"] < least and found["hit_rates"]["uniform"] == found["resident"]
    missed = found["disk_bytes_per_token"]["text"]
    assert missed == pytest.approx(experts / 8 * (1 - found["resident"]) ** 5.3)
    read = describe(directory, 512, dense="int8")["bytes"]["per_token"]
    rest = sum(read.values()) - experts / 8
    assert found["tokens_per_second"]["text"] == pytest.approx(1 / (missed / 1e9 + rest / 20e9))
    everything = describe(directory, memory="64GB", measure=measure)["streaming"]
    assert everything["resident"] == 1 and everything["hit_rates"] == {"uniform": 1, "text": 1}
    whole = sum(describe(directory, 512)["bytes"]["per_token"].values())
    assert everything["tokens_per_second"]["uniform"] == pytest.approx(20e9 / whole)
    assert describe(directory, memory="64GB")["streaming"]["tokens_per_second"] is None


def test_published_hit_rates():
    assert hit_rates(0.3) == {"uniform": 0.3, "text": pytest.approx(0.85, abs=0.003)}
    assert hit_rates(0) == {"uniform": 0, "text": 0}


def test_the_rates_of_a_disk_and_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(streaming_speed, "DISK_SECONDS", 0.01)
    monkeypatch.setattr(streaming_speed, "read_bandwidth", lambda threads, seconds: 10e9)
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(1 << 20))
    asked = []
    disk_rate = streaming_speed.disk_rate
    monkeypatch.setattr(
        streaming_speed, "disk_rate", lambda file, *a, **k: asked.append(file) or disk_rate(file, *a, **k)
    )
    found = measure_rates(tmp_path / name for name in ("small", "large"))
    assert asked == [tmp_path / "large"] and found.measured and found.disk > 0 and found.memory == 6.5e9
    assert measure_rates([]) == Rates(1e9, 6.5e9, measured=False)
    assert measure_rates([tmp_path / "gone"]) is None


def test_a_budget_is_refused_as_load_does():
    for name, memory, why in (
        ("gpt2", "1MB", "GPT-2 has no experts"),
        ("gpt-oss-20b", "1GB", "least that works is"),
        ("gpt2", "much", "number of bytes"),
    ):
        with pytest.raises(InputError, match=why):
            describe(name, memory=memory)
    assert describe("gpt2", memory="9GB")["streaming"] is None


def test_text_of_what_is_streamed(monkeypatch, tmp_path):
    def text(available=None, **options):
        monkeypatch.setattr(description, "available_memory", lambda root: available)
        options |= dict(dense="int8", root=tmp_path, measure=lambda files: Rates(3e9, 30e9, False))
        return render(describe("gpt-oss-120b", **options))

    assert "streamed" not in text() and "streamed" not in text(99 * GB)
    for shown in (text(20 * GB), text(99 * GB, memory="18GB")):
        assert re.search(r"\n  streamed +about 1\.\d to [45]\.\d tok/s from a disk of 3\.00 GB/s \(assumed", shown)
        assert "26% of the experts in memory within 18.00 GB; the least memory that works is 3" in shown
        assert re.search(
            r"26% of the choices hit and 1\.4\d GB per token .*\n +80% of .* 3\d\d\.\d\d MB per token", shown
        )
    assert "streamed        experts read from the files as they are chosen: the least memory that" in text(2 * GB)
    assert "choices hit" not in text(memory="90GB")


NO_LIMIT = 9223372036854771712  # v1's word for it
V1_LIMIT, V1_USAGE = "memory.limit_in_bytes", "memory.usage_in_bytes"


def system(root, meminfo_kib, cgroup, files):
    """A /proc and a /sys below `root`."""
    mounts = CGROUP1.format(n=1, top="/", name="memory", controllers="memory") + CGROUP2.format(top="/")
    return write(
        root,
        {
            "proc/meminfo": f"MemTotal: 99 kB\nMemFree: 7 kB\nMemAvailable: {meminfo_kib} kB",
            "proc/self/cgroup": cgroup,
            "proc/self/mountinfo": mounts,
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        },
    )


@pytest.mark.parametrize("cgroup, files, expected", [
    ("", {}, 1_024_000),
    ("0::/a/b\n", {"a/b/memory.max": 9000, "a/b/memory.current": 2000}, 7000),
    ("0::/a/b\n", {"a/b/memory.max": "max", "a/b/memory.current": 2000}, 1_024_000),
    ("0::/a/b\n", {"a/memory.max": 9000, "a/memory.current": 1000, "a/b/memory.max": "max"}, 8000),
    ("0::/a\n", {"a/memory.max": 9000, "a/memory.current": 8000,
                 "a/memory.stat": "anon 1\ninactive_file 500\nactive_file 300\nslab 9"}, 1800),
    ("0::/a\n", {"a/memory.max": 9000, "a/memory.current": 9500}, 0),
    ("0::/a\n", {"a/memory.max": 2_000_000, "a/memory.current": 0}, 1_024_000),
    ("4:memory:/a\n1:cpu:/b\n", {
        f"memory/a/{V1_LIMIT}": 9000, f"memory/a/{V1_USAGE}": 4000,
        "memory/a/memory.stat": "inactive_file 1\ntotal_inactive_file 70\ntotal_active_file 30",
    }, 5100),
    ("4:memory:/a\n", {f"memory/{V1_LIMIT}": 9000, f"memory/{V1_USAGE}": 0}, 9000),
    ("4:memory:/\n", {f"memory/{V1_LIMIT}": NO_LIMIT, f"memory/{V1_USAGE}": 5}, 1_024_000),
    ("1:cpu:/a\n", {f"memory/a/{V1_LIMIT}": 9000, f"memory/a/{V1_USAGE}": 0}, 1_024_000),
])  # fmt: skip
def test_available_memory(cgroup, files, expected, tmp_path):
    assert available_memory(system(tmp_path, 1000, cgroup, files)) == expected


def test_available_memory_here():
    found = available_memory()
    assert found is None or 10_000_000 < found < 1 << 50


# ------------------------------------------------------------------------------------------------------- text


def test_text():
    text = render(describe("gpt-oss-20b", context=8192))
    figures = "20.91 B", "3.61 B", "13.76 GB", "3.71 GB", "4 of 32 experts", "131,072", "12 layers see 128"
    for figure in figures:
        assert figure in text, figure
    assert "GPT-2, 12 layers, width 768" in render(describe("gpt2"))
    assert max(map(len, text.splitlines())) < 200


@pytest.mark.parametrize(
    "name, sampling",
    [
        ("gpt-oss-20b", "temperature 1 (generation_config.json)"),
        ("demo-gpt-oss", "temperature 1 (generation_config.json)"),
        ("gpt2", "temperature 0"),
    ],
)
def test_how_tokens_are_chosen(name, sampling):
    assert f"  sampling        {sampling}\n" in render(describe(name))


def test_how_tokens_of_a_directory_are_chosen(tmp_path):
    directory = checkpoint(GPT2, tmp_path / "m")
    (directory / "generation_config.json").write_text('{"do_sample": true, "top_p": 0.9, "top_k": 0}')
    for name in (directory, directory / "config.json"):
        assert "temperature 1, top_p 0.9 (generation_config.json)\n" in render(describe(name))
