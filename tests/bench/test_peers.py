"""bench/peers.py without any peer: what is skipped and why, the order of turns, the table, what conversions read and
write; ik_llama.cpp's interface against a library that is compiled here."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cgpt.kernels._kernels import mxfp4_dequantize

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
import peers  # noqa: E402
from peer_engines import ENGINES, engine_class, gguf_file  # noqa: E402
from peer_engines.base import Engine, Skip  # noqa: E402
from peer_engines.checkpoint import Reader  # noqa: E402
from peer_engines.engine_ik_llama import IkLlama  # noqa: E402

VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def decode_gguf(data):
    """GGUF's block_mxfp4 in float64, [.., K]: 17 bytes a group, the scale first; low nibbles are elements 0 to 15."""
    groups = data.reshape(*data.shape[:-1], -1, 17)
    codes = np.concatenate((groups[..., 1:] & 15, groups[..., 1:] >> 4), -1)
    values = VALUES[codes] * np.exp2(groups[..., :1].astype(np.float64) - 127)
    return values.reshape(*data.shape[:-1], -1)


def test_mxfp4_blocks_hold_the_values_of_the_checkpoint():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (3, 5, 4, 16), np.uint8)
    scales = rng.integers(100, 140, (3, 5, 4), np.uint8)
    packed = gguf_file.mxfp4_blocks(blocks, scales)
    assert packed.shape == (3, 5, 4 * 17)
    np.testing.assert_array_equal(decode_gguf(packed), mxfp4_dequantize(blocks, scales))


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_importable_without_its_packages_and_has_settings(name):
    cls = engine_class(name)
    assert issubclass(cls, Engine) and cls.packages
    assert all(states for precisions in cls.settings.values() for states in precisions.values()) and cls.settings


def test_an_absent_package_is_a_skip():
    class Absent(Engine):
        packages = ("numpy", "no-such-package-as-this")

    with pytest.raises(Skip, match="not installed: no-such-package-as-this"):
        Absent.versions()


def test_settings_are_chosen_by_engine_and_precision():
    assert [s.name for s in peers.choose("gpt2", "cgpt,llama.cpp", "f32")] == ["cgpt f32", "llama.cpp f32"]
    assert {s.engine for s in peers.choose("gpt_oss", "", "")} == set(ENGINES) - {"ctranslate2"}
    with pytest.raises(SystemExit, match="no grep"):
        peers.choose("gpt2", "grep", "")


def test_prepare_asks_versions_once_and_says_why_something_is_skipped():
    asked = []

    def job(setting, what):
        asked.append((what, setting.name))
        if setting.engine == "c":
            return {"skipped": "not installed: c"}
        if what == "versions":
            return {"versions": "1.2"}
        return {"skipped": "no f32"} if setting.name == "a f32" else {"path": "p", "seconds": 0}

    settings = [peers.Setting(*pair) for pair in (("a", "f32"), ("a", "int8"), ("c", "f32"), ("c", "int8"))]
    ready, lines = peers.prepare(settings, job)
    assert [(s.name, s.path) for s in ready] == [("a int8", "p")]
    assert lines == ["a: 1.2", "a f32: skipped: no f32", "c: skipped: not installed: c"]
    assert asked == [("versions", "a f32"), ("prepare", "a f32"), ("prepare", "a int8"), ("versions", "c f32")]


def test_a_library_for_another_level_has_a_version_of_its_own():
    asked = []

    def job(setting, what):
        asked.append((what, setting.precision))
        return {"versions": "1.2"} if what == "versions" else {"path": "p", "seconds": 0}

    ready, lines = peers.prepare([peers.Setting("a", "f32"), peers.Setting("a", "f32@avx2")], job)
    assert lines == ["a: 1.2", "a@avx2: 1.2"] and len(ready) == 2
    assert asked[0] == ("versions", "f32") and asked[2] == ("versions", "f32@avx2")


def test_rounds_interleave_and_a_failure_leaves():
    order = []

    def job(setting):
        order.append(setting.engine)
        return {"skipped": "gone"} if order.count("b") == 2 and setting.engine == "b" else {"turn": len(order)}

    a, b, c = (peers.Setting(name, "f32") for name in "abc")
    lines = peers.interleave([a, b, c], 3, job, lambda: order.append("|"))
    assert "".join(order) == "|abc|abc|ac|"
    assert lines == ["b f32: skipped: gone"]
    assert [len(s.turns) for s in (a, b, c)] == [3, 1, 3]


def turn(figures, first, peak, memory):
    return {"figures": figures, "first": first, "peak": peak, "memory": memory}


def test_the_table_has_medians_with_spread_over_all_turns_and_both_kinds_of_memory():
    a, silent, b = peers.Setting("a", "f32", "all f32"), peers.Setting("b", "f32"), peers.Setting("c", "int8", "int8")
    a.turns = [
        turn({"prompt 8": [900.0, 1100.0], "decode @8": [50.0, 51.0], "8 sequences": [9.0]}, 0.5, 1.0, [0.2, 0.9]),
        turn({"prompt 8": [1200.0, 1000.0], "decode @8": [49.0, 60.0], "8 sequences": [7.0]}, 0.7, 1.25, [0.5, 0.8]),
    ]
    b.turns = [turn({"prompt 16": [3.0]}, 0.5, 1.0, [0.0, 0.0])]
    rows = peers.table([a, silent, b], lambda turns: ("1e-6", f"{len(turns)}/16")).splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[:4]]
    assert cells[0][2:6] == ["prompt 8", "prompt 16", "decode @8", "8 sequences"]
    first = ["a", "f32", "1050 (900-1200)", "-", "50.5 (49-60)", "8 (7-9)", "0.6 (0.5-0.7)"]
    assert cells[2] == [*first, "1.25 (0.50 + 0.90)", "1e-6", "2/16"]
    assert cells[3][:6] == ["c", "int8", "-", "3 (3-3)", "-", "-"]
    assert len(set(map(len, rows[:4]))) == 1 and rows[5:] == ["* a f32: all f32.", "* c int8: int8."]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_its_own_and_mapped_files_are_watched_apart(tmp_path):
    (tmp_path / "file").write_bytes(bytes(100_000_000))
    code = f"""if True:
        import mmap, time
        file = open({str(tmp_path / "file")!r}, "rb")
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        read, own = mapped[::4096], bytearray(b"1") * 50_000_000
        time.sleep(1)"""
    process = subprocess.Popen([sys.executable, "-c", code])
    own, mapped = peers.watch(process, time.monotonic() + 60)
    process.wait()
    assert 0.05 < own < 0.09 and 0.1 < mapped < 0.14


def test_agreement_is_the_largest_difference_over_the_largest_logit(tmp_path):
    exact = np.array([2.0, -2.0, 2.0, -2.0], np.float32)  # and a constant does not count
    np.save(tmp_path / "reference.npy", exact)
    np.save(tmp_path / "a.npy", exact + np.array([5.02, 4.98, 5.0, 5.0], np.float32))
    reference = {"greedy": [1, 2, 3], "logits": "reference.npy"}
    checked = {"greedy": [1, 2, 4], "logits": "a.npy"}
    assert peers.agreement([{}, checked], reference, tmp_path) == ("1.0e-02", "2/3")
    assert peers.agreement([{"greedy": [1, 2, 3]}], reference, tmp_path) == ("-", "3/3")
    assert peers.agreement([{}], reference, tmp_path) == peers.agreement([checked], None, tmp_path) == ("-", "-")


def test_the_reader_needs_no_package_and_gives_float32(tmp_path):
    from safetensors.numpy import save_file

    values = {"transformer.wte.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(4, np.float16)}
    save_file({**values, "c": np.array([0x3F80, 0xC000], np.uint16).view(np.int16)}, tmp_path / "a.safetensors")
    text = (tmp_path / "a.safetensors").read_bytes().replace(b'"I16"', b'"BF16"')
    size = int.from_bytes(text[:8], "little")
    (tmp_path / "a.safetensors").write_bytes((size + 1).to_bytes(8, "little") + text[8:])
    read = Reader(tmp_path)
    assert read.prefix == "transformer." and read.has("b") and not read.has("lm_head.weight")
    np.testing.assert_array_equal(read("transformer.wte.weight"), values["transformer.wte.weight"])
    assert read("b").dtype == read("c").dtype == np.float32 and read("c").tolist() == [1, -2]


# A library with ik_llama.cpp's functions: "logits" of a token say what parameters and tokens arrived.
LIBRARY = r"""
#include <stdlib.h>
struct model { void *a[10]; char vocab_only, use_mmap, use_mlock, check, repack; char more[9]; };
struct context { int seed, n_ctx, n_batch, n_ubatch, n_seq_max, n_threads, n_threads_batch; int more[60]; };
struct batch { int n; int *token; float *embd; int *pos, *n_seq_id, **seq_id; signed char *logits; int a, b, c; };
static struct model model; static struct context context; static float out[512][16]; static int cleared, calls;
void llama_backend_init(void) {}
void llama_free(void *context) {}
void llama_kv_cache_clear(void *context) { cleared++; }
struct model llama_model_default_params(void) { struct model m = {.use_mmap = USE_MMAP}; return m; }
struct context llama_context_default_params(void) { struct context c = {-1, N_CTX, 2048, 512, 1, 4, 4}; return c; }
void *llama_model_load_from_file(const char *path, struct model m) { model = m; return &model; }
void *llama_init_from_model(void *m, struct context c) { context = c; return &context; }
struct batch llama_batch_init(int n, int embd, int sequences) {
    struct batch b = {0, malloc(4 * n), 0, malloc(4 * n), malloc(4 * n), malloc(sizeof(int *) * n), malloc(n)};
    for (int i = 0; i < n; i++) b.seq_id[i] = malloc(4 * sequences);
    return b;
}
int llama_decode(void *c, struct batch b) {
    calls++;
    for (int i = 0; i < b.n; i++)
        if (b.logits[i]) {
            float values[] = {b.token[i], b.pos[i], b.seq_id[i][0], model.repack, model.use_mlock, context.n_ctx,
                              context.n_seq_max, context.n_threads, context.n_threads_batch, cleared, calls};
            for (int k = 0; k < 11; k++) out[i][k] = values[k];
        }
    return 0;
}
float *llama_get_logits_ith(void *c, int i) { return out[i]; }
"""


def ik_llama(folder, **defines):
    (folder / "config.json").write_text('{"vocab_size": 16}')
    (folder / "a.c").write_text(LIBRARY)
    library = folder / f"libllama-{len(list(folder.iterdir()))}.so"
    flags = [f"-D{name}={value}" for name, value in ({"USE_MMAP": 1, "N_CTX": 512} | defines).items()]
    subprocess.run(["cc", "-shared", "-fPIC", *flags, "-o", library, folder / "a.c"], check=True)
    return IkLlama(folder, "mxfp4+q8_0", 3, 300, 2, str(library))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="structures are passed as Linux does")
def test_ik_llama_repacks_and_gets_tokens_positions_and_sequences(tmp_path):
    engine = ik_llama(tmp_path)
    engine.load(tmp_path)
    engine.reset(1)
    row = engine.step([[7]])[0]
    assert row[:11].tolist() == [7, 0, 0, 1, 0, 512, 1, 3, 3, 1, 1]
    assert engine.step([[9]])[0][:2].tolist() == [9, 1]
    engine.reset(2)  # a context of its own: 2 x 300 positions, in steps of 256
    rows = engine.step([[5], [6]])
    assert rows[:, :7].tolist() == [[5, 0, 0, 1, 0, 768, 2], [6, 0, 1, 1, 0, 768, 2]]
    assert rows[0, 9] == 2
    rows = engine.step([[1] * 300, [2] * 299 + [3]])  # 600 tokens in two calls
    assert rows[0, :3].tolist() == [1, 300, 0] and rows[1, :3].tolist() == [3, 300, 1]
    assert rows[1, 10] == rows[0, 10] + 1


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.skipif(sys.platform != "linux", reason="structures are passed as Linux does")
def test_a_library_with_other_parameters_is_refused(tmp_path):
    with pytest.raises(Skip, match="other model parameters"):
        ik_llama(tmp_path, USE_MMAP=0).load(tmp_path)
    engine = ik_llama(tmp_path, N_CTX=4096)
    engine.load(tmp_path)
    with pytest.raises(Skip, match="other context parameters"):
        engine.reset(1)
    with pytest.raises(Skip, match="--library"):
        IkLlama.versions()
