"""load(dense=...): what is rounded or quantised, what is left alone, and that the model computes with exactly that."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import cgpt
from cgpt.analysis import quality
from cgpt.checkpoint import loader
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import OutOfMemoryError
from cgpt.kernels import _kernels
from cgpt.kernels._kernels import PRECISIONS
from cgpt.loading import DENSE
from cgpt.models import synth

from support.kernel_cases import assert_same_bits, from_bf16, round_bf16
from support.synth_cases import CONFIGS, PLAIN

MODELS = ("demo-gpt2", "demo-gpt-oss")
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")  # stored [K, N]
QUANTISED = (*TRANSPOSED, "q_proj.weight", "k_proj.weight", "v_proj.weight", "o_proj.weight", "lm_head.weight")


def quantised(w):
    """[N, K] as INT8 and back; float32. tests/test_int8.py checks the quantiser."""
    q, scales = _kernels.quantize_int8(np.ascontiguousarray(w), "F32", 1)
    values = q.reshape(len(q), -1, 64) * from_bf16(scales)[..., None]
    return values.reshape(len(q), -1)[:, : w.shape[1]].astype(np.float32)


def rewritten(name, directory, change, tied_head=False):
    """The model `name` with change(weight [N, K]) of each quantised matrix, in f32; GPT-2's head stored apart."""
    source = cgpt.locate(name)
    checkpoint, tensors = Checkpoint(source), {}
    for tensor, stored in checkpoint.tensors.items():
        values = checkpoint.array(tensor)
        if stored.dtype == "BF16":
            values = from_bf16(values)
        if tensor.endswith("wte.weight") and not tied_head:
            tensors["lm_head.weight"] = np.ascontiguousarray(change(values))
        if tensor.endswith(QUANTISED):
            values = change(values.T).T if tensor.endswith(TRANSPOSED) else change(values)
        tensors[tensor] = np.ascontiguousarray(values)
    config = json.loads((source / "config.json").read_text()) | {"tie_word_embeddings": tied_head}
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    return directory


@pytest.mark.parametrize("name", MODELS)
def test_int8_is_the_model_of_quantised_weights(level, name, tmp_path):
    """The same logits, but for the order of sums, as exact f32 of a checkpoint that holds the quantised values."""
    expected = cgpt.load(rewritten(name, tmp_path, quantised), precision="exact")
    model, ids = cgpt.load(name, precision="exact", dense="int8"), np.arange(7, 207) % 250
    found, want = model.logits(ids), expected.logits(ids)
    assert np.abs(found - want).max() < 2e-4 * want.std()
    unquantised = cgpt.load(name, precision="exact").logits(ids)
    assert np.abs(found - unquantised).max() > 2e-3 * want.std()


@pytest.mark.parametrize("dense", ["int8", "int4"])
@pytest.mark.parametrize("name", MODELS)
def test_quantised_is_what_products_read_whole(name, dense):
    model = cgpt.load(name, dense=dense)
    plain = cgpt.load(name)
    embedding = "wte" if name == "demo-gpt2" else "embedding"
    assert getattr(model.transformer, embedding).dtype == getattr(plain.transformer, embedding).dtype != dense.upper()
    for (part, found), (_, stored) in zip(model.transformer.matrices(), plain.transformer.matrices(), strict=True):
        kept = part in ("router", "gate_up", "down")
        assert found.dtype == (stored.dtype if kept else dense.upper()) and found.shape == stored.shape, part


def as_int8(matrix, *args):
    """What quantize_int4 gives, as INT8."""
    codes, scales = _kernels.quantize_int4(matrix, *args)
    integers, K = _kernels.int4_decode(codes), matrix.shape[-2 if args[-1] else -1]
    integers[:, K:] = 0
    return integers, scales


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["demo-gpt2", "gpt2, inner width", "gpt-oss, plain experts", "gpt-oss, tied"])
def test_int4_has_the_bits_of_its_values_as_int8(level, name, precision, random_models, monkeypatch):
    """Prompts, single tokens and few together; experts and tied heads, too."""
    path, ids = name if name in MODELS else random_models / name, np.arange(7, 87) % 250
    model = cgpt.load(path, 2, precision, "int4")
    monkeypatch.setitem(loader.QUANTIZERS, "int8", as_int8)
    eight = cgpt.load(path, 1, precision, "int8")
    assert_same_bits(model.logits(ids), eight.logits(ids), "a prompt")
    one, other = (m.transformer.new_cache(len(ids)) for m in (model, eight))
    for part in np.split(ids, [1, 2, 5, 14, 30]):
        found, expected = model.transformer.step([(one, part)]), eight.transformer.step([(other, part)])
        assert_same_bits(found, expected, f"{len(part)} at once")


@pytest.mark.parametrize("name, most", [("demo-gpt2", 0.0385), ("demo-gpt-oss", 0.186)])
def test_int4_is_as_near_as_was_measured(name, most):
    """KL divergence from exact on the package's text. Q4_0, which takes 4.5 bits, has 0.042 and 0.177, MXFP4 0.088 and
    0.40 (bench/quality_formats.py)."""
    exact = cgpt.load(name, precision="exact")
    ids = exact.encode_prompt(quality.TEXT.read_text(encoding="utf-8"))
    assert quality.compare(exact, cgpt.load(name, precision="exact", dense="int4"), ids).kl_mean < most


@pytest.fixture(scope="module")
def random_models(tmp_path_factory):
    directory = tmp_path_factory.mktemp("random")
    for kind, config in CONFIGS.items():
        synth.write(config, directory / kind)
    return directory


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", [*MODELS, *CONFIGS])
def test_packed_has_the_bits_of_bf16(level, name, precision, random_models):
    """Prompts, single tokens and few together, on any number of threads; tied heads, whose rows are embeddings, too."""
    path = name if name in MODELS else random_models / name
    plain = cgpt.load(path, precision=precision, dense="bf16")
    ids = np.arange(7, 87) % 250
    for threads in (1, 2):
        model = cgpt.load(path, threads, precision, "bf16-packed")
        assert_same_bits(model.logits(ids), plain.logits(ids), f"{threads} threads")
        one, other = (m.transformer.new_cache(len(ids)) for m in (model, plain))
        for part in np.split(ids, [1, 2, 5, 14, 30]):
            found, expected = model.transformer.step([(one, part)]), plain.transformer.step([(other, part)])
            assert_same_bits(found, expected, f"{len(part)} at once")


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_is_what_products_read_whole(name, random_models):
    """In 12 bits but for routers; experts in MXFP4 stay, and so do the rows of an embedding in bf16 that is no head."""
    model = cgpt.load(random_models / name, dense="bf16-packed").transformer
    for part, found in model.matrices():
        mxfp4 = part in ("gate_up", "down") and name != "gpt-oss, plain experts"
        assert found.dtype == ("BF16" if part == "router" else "MXFP4" if mxfp4 else "BF16_PACKED"), part
    if name.startswith("gpt2"):
        assert model.wte.dtype == model.wpe.dtype == "BF16_PACKED"  # stored as f32, so they are rounded
        assert (model.head is model.wte) == ("own head" not in name)
    else:
        assert model.embedding.dtype == "BF16"


def test_packed_rounds_what_it_does_not_pack(tmp_path):
    """Routers stored as f32 become bf16, as by dense="bf16", and so do the rows of an embedding."""
    directory = rewritten("demo-gpt-oss", tmp_path, lambda w: w * np.float32(1.001))
    plain, packed = (cgpt.load(directory, precision="exact", dense=dense) for dense in ("bf16", "bf16-packed"))
    assert {m.dtype for part, m in packed.transformer.matrices() if part == "router"} == {"BF16"}
    assert packed.transformer.embedding.dtype == "BF16_PACKED"
    assert_same_bits(packed.logits(np.arange(50)), plain.logits(np.arange(50)), "stored as f32")


@pytest.mark.parametrize("dense", [None, *DENSE])
def test_one_expert(tmp_path, dense):
    """Its matrices are [1, N, K], not [N, K]."""
    synth.write(PLAIN | dict(num_local_experts=1, num_experts_per_tok=1, experts_per_token=1), tmp_path / "model")
    exact = cgpt.load(tmp_path / "model", precision="exact").logits(np.arange(40))
    model = cgpt.load(tmp_path / "model", precision="exact", dense=dense)
    assert {m.shape[0] for name, m in model.transformer.matrices() if name in ("gate_up", "down")} == {1}
    assert np.abs(model.logits(np.arange(40)) - exact).max() <= {"int8": 0.2, "int4": 3}.get(dense, 0) * exact.std()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dense", [None, *DENSE])
def test_memory_short(monkeypatch, name, dense):
    """What could not be had is named, whatever wanted it, and the next load finds all as it was."""

    def refuse(self, name):
        raise MemoryError(f"no {name} here")

    with monkeypatch.context() as patch:
        patch.setattr(loader.Loader, "floats", refuse)
        with pytest.raises(OutOfMemoryError, match="no memory to load .*: no .* here"):
            cgpt.load(name, dense=dense)
    assert cgpt.load(name, dense=dense).generate([1], max_new_tokens=1).ids


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", MODELS)
def test_int8_steps_in_any_cut_give_the_same_bits(level, name, precision):
    """In exact; in auto too, where no kernel rounds to bf16: integer sums do not know how many tokens there are."""
    tiles = cgpt.kernel_variants()["linear_int8_tile" if precision == "auto" else "linear_int8_a8"] != "-"
    if precision != "exact" and (tiles or name == "demo-gpt-oss"):  # whose experts are not int8
        pytest.skip("steps of different length round differently here")
    model, ids = cgpt.load(name, precision=precision, dense="int8"), np.arange(7, 157) % 250
    whole, sequence = model.logits(ids), model.transformer.new_cache(200)
    parts = np.split(ids, [1, 2, 9, 40, 41])
    cut = np.concatenate([model.transformer.step([(sequence, part)], rows="all") for part in parts])
    assert_same_bits(cut, whole, "cut into steps")


@pytest.mark.parametrize("name", MODELS)
def test_precision_int8_rounds_prompts_alone(level, name):
    """Not steps of one token, and nothing where the CPU has no kernels for it."""
    auto, ids = cgpt.load(name, dense="int8"), np.arange(7, 47)
    model = auto.at_precision("int8")
    kernels = ("linear_int8_a8", "linear_int8_tile"), ("linear_mxfp4_a8", "linear_mxfp4_tile")
    used = kernels if name == "demo-gpt-oss" else kernels[:1]
    differs = any(cgpt.kernel_variants()[a8] != cgpt.kernel_variants()[tile] for a8, tile in used)
    expected, found = auto.logits(ids), model.logits(ids)
    off = (found - expected).std() / expected.std()
    assert 0 < off < 0.1 if differs else off == 0
    one, other = auto.transformer.new_cache(3), model.transformer.new_cache(3)
    for i in (7, 8, 9):
        assert_same_bits(
            model.transformer.step([(other, [i])]), auto.transformer.step([(one, [i])]), f"token {i} alone"
        )


def test_bf16_rounds_every_matrix(tmp_path):
    expected = cgpt.load(rewritten("demo-gpt2", tmp_path, round_bf16), precision="exact")
    model, ids = cgpt.load("demo-gpt2", precision="exact", dense="bf16"), np.arange(150)
    assert {matrix.dtype for _, matrix in model.transformer.matrices()} == {"BF16"}
    assert np.abs(model.logits(ids) - expected.logits(ids)).max() < 1e-2 * expected.logits(ids).std()  # and embeddings


@pytest.mark.parametrize("dense", [None, *DENSE])
def test_misaligned_checkpoints(tmp_path, dense):
    """Old safetensors files, GPT-2's published one among them, do not align their tensors: the same bits from them."""
    directory = rewritten("demo-gpt2", tmp_path, lambda w: w, tied_head=True)
    ids = np.arange(100)
    before = cgpt.load(directory, dense=dense).logits(ids)
    file = directory / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].rstrip()
    header += b" " * (-len(header) % 4 + 3)  # so that tensors begin at 4 n + 3
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    checkpoint = Checkpoint(directory)
    assert all(t.offset % 4 == 3 for t in checkpoint.tensors.values())
    assert_same_bits(cgpt.load(directory, dense=dense).logits(ids), before, "misaligned")


@pytest.mark.parametrize("dense", [None, *DENSE])
@pytest.mark.parametrize("name", MODELS)
def test_progress_comes_to_its_end_once(name, dense):
    """Also where a tied head makes a second use of the embedding."""
    calls = []
    cgpt.load(name, dense=dense, progress=lambda *at: calls.append(at))
    done, totals = zip(*calls, strict=True)
    assert list(done) == sorted(done) and set(totals) == {done[-1]}


def test_without_prefetching(tmp_path, monkeypatch):
    """Systems that do not know the advice load the same."""
    directory = rewritten("demo-gpt2", tmp_path, lambda w: w, tied_head=True)
    before = cgpt.load(directory, dense="int8").logits(np.arange(50))
    monkeypatch.setattr("cgpt.checkpoint.safetensors.MADV_POPULATE_READ", 1 << 20)
    assert_same_bits(cgpt.load(directory, dense="int8").logits(np.arange(50)), before, "without prefetching")
