"""The published checkpoints: that what cgpt expects of them is what they hold, and what they answer.

Without the weights: names, dtypes, shapes and files, written down here as they were published, against
cgpt's own tables. With them (CGPT_MODELS names a folder that holds gpt2, gpt2-xl, gpt-oss-20b, ...): the
outputs that other projects' tests record.
"""

import hashlib
import json
import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import cgpt
from cgpt.checkpoint.config import read_config
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.checkpoint.sizes import SIZES, published_config, published_generation_config
from cgpt.models import description
from cgpt.models.synth import checkpoint_files, checkpoint_index, file_header

GPT2 = {"gpt2": (12, 768), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280), "gpt2-xl": (48, 1600)}
GPT_OSS = {"gpt-oss-20b": (24, 32), "gpt-oss-120b": (36, 128)}


def gpt2_tensors(layers, width):
    """Name -> dtype and shape in openai-community's model.safetensors, mask buffers included."""
    shapes = {"wte.weight": [50257, width], "wpe.weight": [1024, width]}
    for n in range(layers):
        shapes |= {
            f"h.{n}.ln_1.weight": [width],
            f"h.{n}.ln_1.bias": [width],
            f"h.{n}.attn.bias": [1, 1, 1024, 1024],
            f"h.{n}.attn.c_attn.weight": [width, 3 * width],
            f"h.{n}.attn.c_attn.bias": [3 * width],
            f"h.{n}.attn.c_proj.weight": [width, width],
            f"h.{n}.attn.c_proj.bias": [width],
            f"h.{n}.ln_2.weight": [width],
            f"h.{n}.ln_2.bias": [width],
            f"h.{n}.mlp.c_fc.weight": [width, 4 * width],
            f"h.{n}.mlp.c_fc.bias": [4 * width],
            f"h.{n}.mlp.c_proj.weight": [4 * width, width],
            f"h.{n}.mlp.c_proj.bias": [width],
        }
    shapes |= {"ln_f.weight": [width], "ln_f.bias": [width]}
    return {name: ("F32", shape) for name, shape in shapes.items()}


def gpt_oss_tensors(layers, experts):
    """Name -> dtype and shape in openai's model-*.safetensors."""
    tensors = {
        "model.embed_tokens.weight": ("BF16", [201088, 2880]),
        "model.norm.weight": ("BF16", [2880]),
        "lm_head.weight": ("BF16", [201088, 2880]),
    }
    for n in range(layers):
        layer = {
            "input_layernorm.weight": ("BF16", [2880]),
            "self_attn.q_proj.weight": ("BF16", [4096, 2880]),
            "self_attn.q_proj.bias": ("BF16", [4096]),
            "self_attn.k_proj.weight": ("BF16", [512, 2880]),
            "self_attn.k_proj.bias": ("BF16", [512]),
            "self_attn.v_proj.weight": ("BF16", [512, 2880]),
            "self_attn.v_proj.bias": ("BF16", [512]),
            "self_attn.o_proj.weight": ("BF16", [2880, 4096]),
            "self_attn.o_proj.bias": ("BF16", [2880]),
            "self_attn.sinks": ("BF16", [64]),
            "post_attention_layernorm.weight": ("BF16", [2880]),
            "mlp.router.weight": ("BF16", [experts, 2880]),
            "mlp.router.bias": ("BF16", [experts]),
            "mlp.experts.gate_up_proj_blocks": ("U8", [experts, 5760, 90, 16]),
            "mlp.experts.gate_up_proj_scales": ("U8", [experts, 5760, 90]),
            "mlp.experts.gate_up_proj_bias": ("BF16", [experts, 5760]),
            "mlp.experts.down_proj_blocks": ("U8", [experts, 2880, 90, 16]),
            "mlp.experts.down_proj_scales": ("U8", [experts, 2880, 90]),
            "mlp.experts.down_proj_bias": ("BF16", [experts, 2880]),
        }
        tensors |= {f"model.layers.{n}.{name}": entry for name, entry in layer.items()}
    return tensors


def original_tensors(layers, experts):
    """Name -> dtype and shape in openai's original/*.safetensors."""
    tensors = {
        "embedding.weight": ("BF16", [201088, 2880]),
        "norm.scale": ("BF16", [2880]),
        "unembedding.weight": ("BF16", [201088, 2880]),
    }
    for n in range(layers):
        block = {
            "attn.norm.scale": ("BF16", [2880]),
            "attn.qkv.weight": ("BF16", [5120, 2880]),
            "attn.qkv.bias": ("BF16", [5120]),
            "attn.sinks": ("BF16", [64]),
            "attn.out.weight": ("BF16", [2880, 4096]),
            "attn.out.bias": ("BF16", [2880]),
            "mlp.norm.scale": ("BF16", [2880]),
            "mlp.gate.weight": ("BF16", [experts, 2880]),
            "mlp.gate.bias": ("BF16", [experts]),
            "mlp.mlp1_weight.blocks": ("U8", [experts, 5760, 90, 16]),
            "mlp.mlp1_weight.scales": ("U8", [experts, 5760, 90]),
            "mlp.mlp1_bias": ("BF16", [experts, 5760]),
            "mlp.mlp2_weight.blocks": ("U8", [experts, 2880, 90, 16]),
            "mlp.mlp2_weight.scales": ("U8", [experts, 2880, 90]),
            "mlp.mlp2_bias": ("BF16", [experts, 2880]),
        }
        tensors |= {f"block.{n}.{name}": entry for name, entry in block.items()}
    return tensors


def published_tensors(name):
    return gpt2_tensors(*GPT2[name]) if name in GPT2 else gpt_oss_tensors(*GPT_OSS[name])


# -------------------------------------------------------------------------------------------- without weights


def config_of(name, tmp_path, layout="hf"):
    (tmp_path / "config.json").write_text(json.dumps(published_config(name, layout)))
    if layout == "hf":
        (tmp_path / "generation_config.json").write_text(json.dumps(published_generation_config(name)))
    return read_config(tmp_path)


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "name, end, digest",
    [
        ("gpt2", "", "0daed7749b4f02b8f76240d5444551d7b08712dab4d0adb8239c56ba823bb7b4"),
        ("gpt-oss-20b", "\n", "3a2a26ded679375b7928ddeca59764df7cea83220c1961035f6d6e232659e9ce"),
        ("gpt-oss-120b", "\n", "933aeb666a3fd851133ddd7686414f369bc564c4185fb5704416550879f10566"),
    ],
)
def test_configs_are_the_published_files(name, end, digest):
    assert sha256(json.dumps(published_config(name), indent=2) + end) == digest


@pytest.mark.parametrize(
    "name, digest",
    [
        ("gpt2", "ed0b32ac72c0f5f44a719abb2d7786ea5146c871f83717b7f2018065954de02b"),
        ("gpt-oss-20b", "f9970ada892d2d1f72e3ed0a6535ccebadd11897318794ca671d8c7014c957da"),
        ("gpt-oss-120b", "f9970ada892d2d1f72e3ed0a6535ccebadd11897318794ca671d8c7014c957da"),
    ],
)
def test_generation_configs_are_the_published_files(name, digest):
    assert sha256(json.dumps(published_generation_config(name), indent=2) + "\n") == digest


@pytest.mark.parametrize("name", SIZES)
def test_configs_parse_to_the_sizes(name, tmp_path):
    assert config_of(name, tmp_path) == SIZES[name]


@pytest.mark.parametrize("name", GPT_OSS)
def test_openais_configs_parse_to_the_sizes(name, tmp_path):
    assert config_of(name, tmp_path, "original") == replace(SIZES[name], layout="original")


@pytest.mark.parametrize("name", GPT2)
def test_gpt2_heads(name):
    """No shape tells how many there are: all published sizes have heads of 64."""
    assert SIZES[name].n_embd == 64 * SIZES[name].n_head


@pytest.mark.parametrize("name", SIZES)
def test_names_dtypes_shapes(name):
    tensors = [tensor for held in checkpoint_files(SIZES[name]).values() for tensor in held]
    assert {t.name: (t.dtype, list(t.shape)) for t in tensors} == published_tensors(name)
    assert len(tensors) == len(published_tensors(name))


@pytest.mark.parametrize("name, files", [("gpt-oss-20b", 1), ("gpt-oss-120b", 7)])
def test_names_dtypes_shapes_in_openais_layout(name, files, tmp_path):
    published = checkpoint_files(config_of(name, tmp_path, "original"))
    tensors = {t.name: (t.dtype, list(t.shape)) for held in published.values() for t in held}
    assert tensors == original_tensors(*GPT_OSS[name])
    assert len(published) == files
    first = "model.safetensors" if files == 1 else "model--00001-of-00007.safetensors"
    assert next(iter(published)) == first


def test_20b_index_is_the_published_file():
    """To the byte: every name, in which of the three files it is, and the sum of all sizes."""
    text = checkpoint_index(checkpoint_files(SIZES["gpt-oss-20b"]))
    assert json.loads(text)["metadata"]["total_size"] == 13_761_264_768
    assert sha256(text) == "0e085b977c4c9942f85938828e8c989ed7d5cdabf852e4da6a67c116cd502cd1"


def test_20b_files_have_the_published_sizes():
    files = checkpoint_files(SIZES["gpt-oss-20b"])
    sizes = [len(file_header(held)) + sum(t.nbytes for t in held) for held in files.values()]
    assert sizes == [4_792_272_488, 4_798_702_184, 4_170_342_232]


def test_120b_files():
    files = checkpoint_files(SIZES["gpt-oss-120b"])
    assert list(files) == [f"model-{n:05}-of-00014.safetensors" for n in range(15)]
    assert sum(t.nbytes for held in files.values() for t in held) == 65_248_815_744


@pytest.mark.parametrize("name, size", [("gpt2", 548_090_880), ("gpt2-medium", 1_519_955_968)])
def test_gpt2_files(name, size):
    """One file each, whose data begins at no multiple of four: the published headers are not padded."""
    ((file, held),) = checkpoint_files(SIZES[name]).items()
    assert file == "model.safetensors"
    assert sum(t.nbytes for t in held) == size
    assert len(file_header(held)) % 4 != 0


def write_hollow(directory, name, layout="hf"):
    """A checkpoint of a published size whose files have headers, and holes where the weights would be."""
    directory.mkdir()
    files = checkpoint_files(config_of(name, directory, layout))
    for file, held in files.items():
        with open(directory / file, "wb") as out:
            out.write(file_header(held))
            out.truncate(out.tell() + sum(t.nbytes for t in held))
    if len(files) > 1 and layout == "hf":
        (directory / "model.safetensors.index.json").write_text(checkpoint_index(files))


@pytest.mark.parametrize("name, layout", [*((n, "hf") for n in SIZES), *((n, "original") for n in GPT_OSS)])
def test_loader_accepts_the_published_files(name, layout, tmp_path):
    try:
        write_hollow(tmp_path / name, name, layout)
    except OSError as problem:
        pytest.skip(f"no sparse files of this size here: {problem}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a surplus tensor is a warning
        found = description.describe(tmp_path / name)
    expected = description.describe(name)
    assert found["parameters"] == expected["parameters"]
    assert found["bytes"]["weights"] == expected["bytes"]["weights"]


# ----------------------------------------------------------------------------------------------- with weights

DECLARATION = """We hold these truths to be self-evident, that all men are created equal, that they are \
endowed by their Creator with certain unalienable Rights, that among these are Life, Liberty and the pursuit \
of Happiness."""


@pytest.fixture(params=SIZES)
def published(request):
    """The name and the directory of a published checkpoint."""
    return request.param, published_directory(request.param)


def published_directory(name):
    directory = Path(os.environ.get("CGPT_MODELS", ""), name)
    if "CGPT_MODELS" not in os.environ or not (directory / "config.json").exists():
        pytest.skip(f"no published weights: CGPT_MODELS names no folder that holds {name}")
    return directory


def test_published_files_are_what_cgpt_expects(published):
    name, directory = published
    stored = Checkpoint(directory).tensors
    assert {t.name: (t.dtype, list(t.shape)) for t in stored.values()} == published_tensors(name)
    assert read_config(directory) == SIZES[name]


def test_published_model_knows_english(published):
    _, directory = published
    logprobs = cgpt.load(directory).score(DECLARATION)
    assert logprobs.mean() > -4  # a model that knows nothing is at -10.8 or below


def test_gpt2_greedy_ids():
    """transformers, tests/models/gpt2/test_modeling_gpt2.py."""
    model = cgpt.load(published_directory("gpt2"), precision="exact")
    new = [373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
    assert list(model.generate([464, 3290], max_new_tokens=18).ids) == new


@pytest.mark.parametrize(
    "prompt, text",
    [
        ("Hello, my dog is a little", " bit of a mess. I'm not sure if he's going"),
        ("Today, I", "'m going to be doing a lot of research on this. I"),
    ],
)
def test_gpt2_greedy_text(prompt, text):
    """transformers, tests/models/gpt2/test_modeling_gpt2.py."""
    model = cgpt.load(published_directory("gpt2"), precision="exact")
    n = len(model.tokenizer.encode(text))
    assert model.generate(prompt, max_new_tokens=n).text == text


@pytest.mark.parametrize(
    "name, text", [("gpt-oss-20b", " are blue, I love you"), ("gpt-oss-120b", " are blue, I am a language model")]
)
@pytest.mark.parametrize("precision", ["exact", "auto"])
def test_gpt_oss_greedy_text(name, text, precision):
    """transformers, tests/fixtures/gpt_oss/integration_tests.json; later tokens depend on the rounding."""
    model = cgpt.load(published_directory(name), precision=precision)
    n = len(model.tokenizer.encode(text))
    assert model.generate("Roses are red, violets", max_new_tokens=n).text == text


def test_gpt_oss_layouts_agree():
    """openai publishes the 20b twice, in transformers' layout and in the folder original/ in its own."""
    directory = published_directory("gpt-oss-20b")
    if not (directory / "original" / "config.json").exists():
        pytest.skip("no published weights: no folder original/")
    ids = cgpt.load(directory).encode_prompt(DECLARATION)[:16]
    hf, original = (cgpt.load(d, precision="exact").logits(ids) for d in (directory, directory / "original"))
    assert np.array_equal(hf, original)
