"""Operations of a token, against counts by hand and against what the kernels are called with; a config.json alone."""

import pytest

import cgpt
from cgpt.bench.costs import matrix_bytes
from cgpt.bench.trace import Trace
from cgpt.errors import ConfigError, InputError
from cgpt.loading import DENSE
from cgpt.models import synth
from cgpt.models.accounting import flops, loaded_bytes, look_up, parameters, part_of

from support.synth_cases import CONFIGS, PLAIN, TINY_GPT2, TINY_GPT_OSS, config_file


def flops_of(path, context):
    found = look_up(path)
    return flops(found.config, found.tensors, context)


def test_flops_of_gpt2(tmp_path):
    """A block has 3 + 1 + 4 + 4 squares of 4 x 4, the head 10 x 4. Heads of 2 x 2 see 5 keys in each of 2 layers."""
    path = config_file(tmp_path, TINY_GPT2)
    products = 2 * (2 * 12 * 16 + 40)
    assert flops_of(path, 5) == {"products": products, "attention": 4 * 4 * 2 * 5}
    untied = config_file(tmp_path, TINY_GPT2 | dict(tie_word_embeddings=False))
    assert flops_of(untied, 5)["products"] == products  # the embedding is looked up, not multiplied


def test_flops_of_gpt_oss(tmp_path):
    """Queries 16, keys 8, values 8 of 32; back from 16; a router of 4; two of the experts of 64 x 32 and 32 x 32. The
    first of two layers sees 3 positions."""
    layer = 32 * 32 + 16 * 32 + 4 * 32 + 2 * (64 * 32 + 32 * 32)
    expected = {"products": 2 * (2 * layer + 10 * 32), "attention": 4 * 16 * (3 + 5)}
    for quantised in ({}, {"quantization_config": {"quant_method": "mxfp4"}}):
        assert flops_of(config_file(tmp_path, TINY_GPT_OSS | quantised), 5) == expected


@pytest.mark.parametrize("name", cgpt.demo_models())
def test_flops_are_those_of_the_kernels_that_a_step_calls(name):
    model, found = cgpt.load(name, threads=1), look_up(name)
    sequence = model.transformer.new_cache(200)
    model.transformer.step([(sequence, [1] * 150)])  # beyond the window
    with Trace(model.transformer) as trace:
        model.transformer.step([(sequence, [2])])
    assert trace.total.flops == sum(flops(found.config, found.tensors, 151).values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_alone_says_what_the_files_would(kind, tmp_path):
    synth.write(CONFIGS[kind], tmp_path / "model")
    alone, files = look_up(tmp_path / "model" / "config.json"), look_up(tmp_path / "model")
    assert (alone.source, files.source) == ("config.json", "files")
    assert alone.settings == files.settings == CONFIGS[kind]
    assert (alone.config, alone.disk) == (files.config, files.disk)
    assert parameters(alone.config, alone.tensors) == parameters(files.config, files.tensors)
    assert sum(t.nbytes for t in alone.tensors) == sum(t.nbytes for t in files.tensors)


def test_refuses_files_that_are_no_config(tmp_path):
    for text, wrong in (("{", "not valid JSON"), ("[]", "JSON object"), ('{"model_type": "bert"}', "model_type")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=wrong):
            look_up(tmp_path / "config.json")
    config_file(tmp_path, PLAIN | dict(num_key_value_heads=3))
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        look_up(tmp_path / "config.json")
    with pytest.raises(InputError, match="gpt-oss-20b"):
        look_up(tmp_path / "nothing.json")


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dense", [None, *DENSE])
def test_matrices_take_the_bytes_that_are_said(kind, dense, tmp_path):
    """What products read, without biases, once load() has heard of `dense`."""
    synth.write(CONFIGS[kind], tmp_path / "model")
    found = look_up(tmp_path / "model")
    matrices = [t for t in found.tensors if len(t.shape) > 1 and not t.name.endswith("bias")]
    if not found.config.tie_word_embeddings:
        matrices = [t for t in matrices if part_of(t.name) != "embedding"]
    said = sum(loaded_bytes(found.config, t, dense) for t in matrices if not t.name.endswith("wpe.weight"))
    held = [m for _, m in cgpt.load(tmp_path / "model", dense=dense).transformer.matrices()]
    biases = [m.arrays[-1].nbytes for m in held if len(m.arrays) > 1 and m.arrays[-1].ndim < len(m.shape)]
    assert said == sum(map(matrix_bytes, held)) - sum(biases)
