"""synth.write: that what it writes loads and runs, is the same for the same seed, and never half there."""

import hashlib
import json
import shutil
import tracemalloc
import warnings

import numpy as np
import pytest

import cgpt
import cgpt.models.synth
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import CheckpointError, ConfigError, InputError
from cgpt.kernels import _kernels
from cgpt.models import routing_skew

from reference.checkpoint import read_header
from reference.mxfp4 import dequantise
from support.synth_cases import CONFIGS, GPT2, GPT_OSS, ORIGINAL, PLAIN, stored


def contents(directory):
    """File name -> bytes."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def floats(tensor):
    array, dtype = tensor
    return (array.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else np.array(array)


# --------------------------------------------------------------------------------------------- what it writes


@pytest.mark.parametrize("kind", CONFIGS)
def test_loads_and_runs(kind, tmp_path):
    cgpt.models.synth.write(CONFIGS[kind], tmp_path / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a surplus tensor is a warning
        model = cgpt.load(tmp_path / "model", precision="exact")
    logits = model.logits(np.random.default_rng(1).integers(0, 500, 90))
    assert np.isfinite(logits).all()
    assert 1 < logits.std() < 10
    assert len(set(logits.argmax(-1).tolist())) > 20  # not one answer to everything


@pytest.mark.parametrize("kind", CONFIGS)
def test_same_seed_same_bytes(kind, tmp_path):
    for name, seed in dict(first=7, second=7, other=8).items():
        cgpt.models.synth.write(CONFIGS[kind], tmp_path / name, seed=seed)
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    first, other = stored(tmp_path / "first"), stored(tmp_path / "other")
    alike = [name for name in first if np.array_equal(first[name][0], other[name][0])]
    assert all(name.endswith("attn.bias") for name in alike)  # the causal masks


def test_no_two_tensors_are_alike(tmp_path):
    cgpt.models.synth.write(GPT_OSS, tmp_path / "model")
    starts = [array.tobytes()[:32] for array, _ in stored(tmp_path / "model").values()]
    assert len(set(starts)) == len(starts)


def test_own_head_comes_with_the_prefix(tmp_path):
    """As transformers saves GPT2LMHeadModel; the published files come from GPT2Model."""
    cgpt.models.synth.write(CONFIGS["gpt2, own head"], tmp_path / "model")
    names = set(stored(tmp_path / "model"))
    assert {"lm_head.weight", "transformer.wte.weight", "transformer.h.2.mlp.c_fc.weight"} <= names


def test_config_from_a_file(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    cgpt.models.synth.write(tmp_path / "config.json", tmp_path / "from_file")
    cgpt.models.synth.write(GPT2, tmp_path / "from_dict")
    assert contents(tmp_path / "from_file") == contents(tmp_path / "from_dict")


def test_published_size_comes_with_its_json_files(tmp_path, monkeypatch):
    monkeypatch.setitem(cgpt.models.synth.SIZES, "small", None)
    configs = {"hf": GPT_OSS, "original": ORIGINAL}
    monkeypatch.setattr(cgpt.models.synth, "published_config", lambda name, layout: configs[layout])
    monkeypatch.setattr(cgpt.models.synth, "published_generation_config", lambda name: {"eos_token_id": [1, 2]})
    cgpt.models.synth.write("small", tmp_path / "hf")
    cgpt.models.synth.write("small", tmp_path / "original", layout="original")
    assert set(contents(tmp_path / "hf")) == {"config.json", "generation_config.json", "model.safetensors"}
    assert set(contents(tmp_path / "original")) == {"config.json", "model.safetensors"}
    assert cgpt.load(tmp_path / "hf").eos_token_ids == (1, 2)
    assert "embedding.weight" in stored(tmp_path / "original")


def test_shards(tmp_path, monkeypatch):
    cgpt.models.synth.write(GPT_OSS, tmp_path / "whole")
    monkeypatch.setattr(cgpt.models.synth, "HF_SHARD", 100_000)
    cgpt.models.synth.write(GPT_OSS, tmp_path / "cut")
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{n:05}-of-{len(files) - 1:05}.safetensors" for n in range(len(files))]
    assert (tmp_path / "cut" / "model.safetensors.index.json").exists()
    assert all(sum(a.nbytes for a, _ in read_header(tmp_path / "cut" / f).values()) <= 100_000 for f in files)
    whole, cut = stored(tmp_path / "whole"), stored(tmp_path / "cut")
    assert set(whole) == set(cut)
    assert all(np.array_equal(whole[name][0], cut[name][0]) for name in whole)  # the cut changes no value
    ids = [1, 2, 3]
    assert np.array_equal(cgpt.load(tmp_path / "cut").logits(ids), cgpt.load(tmp_path / "whole").logits(ids))


def test_shards_of_openais_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(cgpt.models.synth, "ORIGINAL_SINGLE", 100_000)
    monkeypatch.setattr(cgpt.models.synth, "ORIGINAL_SHARD", 100_000)
    cgpt.models.synth.write(ORIGINAL, tmp_path / "cut")
    files = sorted(path.name for path in (tmp_path / "cut").glob("*.safetensors"))
    assert files == [f"model--{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    assert not (tmp_path / "cut" / "model.safetensors.index.json").exists()
    assert np.isfinite(cgpt.load(tmp_path / "cut").logits([1, 2, 3])).all()


# ----------------------------------------------------------------------------------------------------- values


def test_values_of_gpt2(tmp_path):
    cgpt.models.synth.write(GPT2 | dict(vocab_size=2000), tmp_path / "model")
    tensors = {name: floats(tensor) for name, tensor in stored(tmp_path / "model").items()}
    for name, std in {
        "wte.weight": 3 / 64**0.5,
        "h.1.attn.c_attn.weight": 64**-0.5,
        "h.1.mlp.c_fc.weight": 64**-0.5,
        "h.1.mlp.c_proj.weight": 256**-0.5,
    }.items():
        values = tensors[name]
        assert values.std() == pytest.approx(std, rel=0.05), name
        assert abs(values.mean()) < 5 * std / values.size**0.5, name
        assert abs((values**4).mean() / std**4 - 3) < 0.3, name  # the kurtosis of a normal distribution
    assert abs(tensors["ln_f.weight"] - 1).max() < 0.6
    assert 0.05 < tensors["ln_f.bias"].std() < 0.2
    assert np.array_equal(tensors["h.2.attn.bias"][0, 0], np.tri(96))


@pytest.mark.parametrize("config", [GPT_OSS, PLAIN], ids=["mxfp4", "plain"])
def test_values_of_gpt_oss(config, tmp_path):
    cgpt.models.synth.write(config, tmp_path / "model")
    tensors = stored(tmp_path / "model")
    for name, std in {
        "lm_head.weight": 3 / 64**0.5,
        "model.embed_tokens.weight": 1,
        "model.layers.1.self_attn.o_proj.weight": 128**-0.5,
        "model.layers.1.mlp.experts.gate_up_proj": 2 / 64**0.5,
        "model.layers.1.mlp.experts.down_proj": 96**-0.5,
    }.items():
        if name + "_blocks" in tensors:
            blocks, scales = tensors[name + "_blocks"][0], tensors[name + "_scales"][0]
            assert len(np.unique(blocks)) == 256
            assert np.ptp(scales) == 3
            assert dequantise(blocks, scales).std() == pytest.approx(std, rel=0.5)  # by powers of two only
        else:
            assert tensors[name][1] == "BF16"
            assert floats(tensors[name]).std() == pytest.approx(std, rel=0.05)
    assert abs(floats(tensors["model.norm.weight"]) - 1).max() < 0.6
    assert floats(tensors["model.layers.0.self_attn.sinks"]).std() > 0.1


def test_scales_at_the_published_width():
    assert cgpt.models.synth._lowest_scale("model.layers.0.mlp.experts.gate_up_proj_scales", 2880) in (118, 119)
    assert cgpt.models.synth._lowest_scale("model.layers.0.mlp.experts.down_proj_scales", 2880) in (117, 118)


# ---------------------------------------------------------------------------------------------- skewed routers


def added(config, tmp_path, skew=1.0):
    """Tensor -> (what a skew adds, as float32; what there is without)."""
    for name, amount in dict(plain=0, skewed=skew).items():
        cgpt.models.synth.write(config, tmp_path / name, seed=3, routing_skew=amount)
    plain, skewed = ({n: floats(t) for n, t in stored(tmp_path / name).items()} for name in ("plain", "skewed"))
    return {name: (skewed[name] - plain[name], plain[name]) for name in plain}


def test_no_skew_is_the_default(tmp_path):
    cgpt.models.synth.write(GPT_OSS, tmp_path / "default")
    cgpt.models.synth.write(GPT_OSS, tmp_path / "zero", routing_skew=0)
    assert contents(tmp_path / "default") == contents(tmp_path / "zero")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in contents(tmp_path / "default").items()}
    assert digests["model.safetensors"].startswith("0e45f83186907e08")  # of the release before there were skews


@pytest.mark.parametrize("kind", ["gpt-oss", "gpt-oss, tied", "gpt-oss, original"])
def test_a_skew_changes_embedding_head_and_routers(kind, tmp_path):
    changed = {name for name, (more, _) in added(CONFIGS[kind], tmp_path).items() if more.any()}
    ends = ("embed_tokens.weight", "lm_head.weight", "router.weight", "router.bias")
    if "original" in kind:
        ends = ("embedding.weight", "gate.weight", "gate.bias")  # and unembedding.weight
    names = stored(tmp_path / "plain")
    assert changed == {name for name in names if name.endswith(ends)}


def test_popularity_and_topics(tmp_path):
    """By the law in routing_skew: how much is added; token i is of topic i % 16, and of a topic's 256 one leads on."""
    config = GPT_OSS | dict(vocab_size=3 * 16 * 256, hidden_size=256, num_local_experts=64)
    found = added(config, tmp_path, skew=2)
    biases = np.concatenate([more + plain for name, (more, plain) in found.items() if name.endswith("router.bias")])
    assert biases.std() == pytest.approx(2 * routing_skew.POPULARITY, rel=0.15)
    embedding, head = found["model.embed_tokens.weight"][0], found["lm_head.weight"][0]
    assert abs(embedding).mean() == pytest.approx(routing_skew.AMPLITUDE * 4**0.5, rel=0.01)  # four layers
    topics = np.array([(np.sign(embedding[:16]) == np.sign(row)).mean(1).argmax() for row in embedding])
    by_head = np.array([(np.sign(head[:16]) == np.sign(row)).mean(1).argmax() for row in head])
    ids = np.arange(len(topics))
    assert np.array_equal(by_head, ids % 16)
    leads_on = ids // 16 % 256 == 255
    assert np.array_equal(topics[~leads_on], ids[~leads_on] % 16)
    assert (topics[leads_on] != ids[leads_on] % 16).all()


def test_topics_do_not_depend_on_the_chunks(tmp_path, monkeypatch):
    cgpt.models.synth.write(GPT_OSS, tmp_path / "whole", routing_skew=1)
    monkeypatch.setattr(cgpt.models.synth, "CHUNK", 1000)  # ends within a row
    cgpt.models.synth.write(GPT_OSS, tmp_path / "cut", routing_skew=1)
    whole, cut = (stored(tmp_path / name) for name in ("whole", "cut"))
    for name in "model.embed_tokens.weight", "lm_head.weight", "model.layers.1.mlp.router.weight":
        assert np.array_equal(whole[name][0], cut[name][0])


# --------------------------------------------------------------------------------------------- how it behaves


def test_memory_stays_small(tmp_path):
    config = GPT2 | dict(vocab_size=400_000)  # one tensor of 102 MB
    cgpt.models.synth.write(GPT2, tmp_path / "first")  # tables that are made once
    tracemalloc.start()
    cgpt.models.synth.write(config, tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40_000_000


def test_progress(tmp_path):
    told = []
    cgpt.models.synth.write(GPT_OSS, tmp_path / "model", progress=lambda *amounts: told.append(amounts))
    size = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert [done for done, _ in told] == sorted({done for done, _ in told})
    assert told[-1] == (size, size)
    assert {total for _, total in told} == {size}


def test_never_looks_whole_before_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(cgpt.models.synth, "HF_SHARD", 100_000)

    def look(done, total):
        with pytest.raises(CheckpointError):
            Checkpoint(tmp_path / "model")

    cgpt.models.synth.write(GPT_OSS, tmp_path / "model", progress=look)
    assert not list((tmp_path / "model").glob("*.partial"))
    Checkpoint(tmp_path / "model")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("problem", [KeyboardInterrupt, OSError(28, "No space left on device"), RuntimeError])
def test_nothing_is_left_of_a_failure(problem, exists, tmp_path):
    directory = tmp_path / "model"
    if exists:
        directory.mkdir()

    def fail(done, total):
        if done > total / 2:
            raise problem

    expected = InputError if isinstance(problem, OSError) else problem
    with pytest.raises(expected):
        cgpt.models.synth.write(GPT_OSS, directory, progress=fail)
    assert directory.exists() == exists
    assert not exists or not list(directory.iterdir())


# ------------------------------------------------------------------------------------------------ tails of weights


def test_tails_change_dense_matrices_alone(tmp_path):
    for kind, matrices in (("gpt-oss", ".weight"), ("gpt2", ".weight"), ("gpt-oss, original", ".weight")):
        for name, share in (("plain", None), ("tails", 0.1)):
            cgpt.models.synth.write(CONFIGS[kind], tmp_path / kind / name, seed=3, awkward_rows=share)
        plain, tails = (stored(tmp_path / kind / name) for name in ("plain", "tails"))
        changed = {name for name in plain if (plain[name][0] != tails[name][0]).any()}
        assert changed == {name for name, (a, _) in plain.items() if a.ndim == 2 and name.endswith(matrices)}


@pytest.mark.parametrize("kind", ["gpt-oss", "gpt2"])
def test_tails_by_the_law(kind, tmp_path):
    """Rows of outputs of different size, heavy tails in each, and a share of them too wide to be packed."""
    name, wide = ("lm_head.weight", "hidden_size") if kind == "gpt-oss" else ("h.0.mlp.c_fc.weight", "n_embd")
    more = dict(vocab_size=2000) if kind == "gpt-oss" else dict(n_inner=2000)
    config = CONFIGS[kind] | {wide: 512, "num_attention_heads": 4} | more
    for label, share in (("none", 0), ("some", 0.1), ("all", 1)):
        cgpt.models.synth.write(config, tmp_path / label, seed=3, awkward_rows=share)
    none, some, every = (floats(stored(tmp_path / label)[name]) for label in ("none", "some", "all"))
    if kind == "gpt2":
        none, some, every = none.T, some.T, every.T
    sizes = none.std(1)
    assert np.log2(sizes).std() == pytest.approx(0.3, rel=0.15)
    assert ((none / sizes[:, None]) ** 4).mean() == pytest.approx(5.4, rel=0.1)
    assert np.median(sizes) == pytest.approx(3 / 512**0.5 if kind == "gpt-oss" else 512**-0.5, rel=0.05)
    packed = [_kernels.pack_bf16(np.ascontiguousarray(w), "F32", 1)[0] for w in (none, some, every)]
    shares = [(_kernels.stored_rows(data) >= 0).mean() for data in packed]
    assert shares[0] < 0.005 and shares[1] == pytest.approx(0.1, abs=0.02) and shares[2] == 1


def refused(error, match, *args, **kwargs):
    with pytest.raises(error, match=match):
        cgpt.models.synth.write(*args, **kwargs)


def test_refuses_a_directory_in_use(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    refused(InputError, "not empty", GPT2, tmp_path)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    refused(InputError, "notes.txt", GPT2, tmp_path / "notes.txt")
    refused(InputError, "notes.txt", GPT2, tmp_path / "notes.txt" / "model")
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_refuses_a_full_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=13_000_000_000))
    refused(InputError, r"takes 13.8 GB, but only 13.0 GB are free", "gpt-oss-20b", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_refuses_bad_arguments(tmp_path):
    directory = tmp_path / "model"
    refused(InputError, "gpt-oss-20b", "gpt-oss-2b", directory)
    refused(InputError, "layout", "gpt2", directory, layout="original")
    refused(InputError, "layout", "gpt-oss-20b", directory, layout="gguf")
    refused(InputError, "layout", GPT_OSS, directory, layout="hf")
    refused(InputError, "seed", GPT2, directory, seed=-1)
    refused(InputError, "seed", GPT2, directory, seed=1.5)
    refused(InputError, "no experts", GPT2, directory, routing_skew=1)
    for skew in (-0.1, float("nan"), 11, "1"):
        refused(InputError, "routing_skew", GPT_OSS, directory, routing_skew=skew)
    for share in (-0.1, float("nan"), 1.1, "1"):
        refused(InputError, "awkward_rows", GPT_OSS, directory, awkward_rows=share)
    refused(ConfigError, "n_head", GPT2 | dict(n_head=5), directory)
    refused(ConfigError, "model_type", {"model_type": "llama"}, directory)
    assert not directory.exists()
