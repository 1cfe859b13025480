"""Names and orders of tensors as people save them: read as the published ones, or named in the refusal."""

import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

import cgpt
from cgpt.checkpoint.safetensors import Checkpoint
from cgpt.errors import CheckpointError
from cgpt.models import synth
from cgpt.models.description import describe

from support.kernel_cases import from_bf16

GPT2 = dict(model_type="gpt2", vocab_size=50, n_positions=8, n_embd=8, n_layer=2, n_head=2)
GPT_OSS = dict(
    model_type="gpt_oss", vocab_size=50, hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, num_local_experts=2, num_experts_per_tok=1, rope_scaling=None,
)  # fmt: skip
IDS = [1, 2, 3]
WRAPPERS = (
    "module.",
    "_orig_mod.",
    "_orig_mod.module.",
    "model.",
    "base_model.model.",
    "module.base_model.model.",
    "net.a.",
)


@pytest.fixture
def saved(tmp_path):
    """Writes tensors, and the config beside them, to a new directory."""

    def save(config, tensors, metadata=None):
        directory = tmp_path / f"m{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config))
        save_file(tensors, directory / "model.safetensors", metadata=metadata)
        return directory

    return save


def random(config, tmp_path):
    """The tensors of a random model by the names of a model with its head, and its logits."""
    synth.write(config, tmp_path / "source")
    stored = Checkpoint(tmp_path / "source")
    tensors = {name: stored.array(name) for name in stored.tensors if not name.endswith(".attn.bias")}
    tensors = {name: from_bf16(v) if v.dtype == np.uint16 else v for name, v in tensors.items()}
    if config["model_type"] == "gpt2":
        tensors = {f"transformer.{name.removeprefix('transformer.')}": values for name, values in tensors.items()}
    save_file(tensors, tmp_path / "source/model.safetensors")
    return tensors, logits(tmp_path / "source")


def logits(directory):
    with warnings.catch_warnings(), cgpt.load(directory, precision="exact") as model:
        warnings.simplefilter("error")
        return model.logits(IDS)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("config", [GPT2, GPT_OSS], ids=["gpt2", "gpt_oss"])
def test_prefixes(saved, tmp_path, config, wrapper):
    tensors, expected = random(config, tmp_path)
    wrapped = saved(config, {wrapper + name: values for name, values in tensors.items()})
    assert np.array_equal(logits(wrapped), expected)
    assert describe(wrapped)["parameters"] == describe(tmp_path / "source")["parameters"]


def test_wrappers_inside_a_name(saved, tmp_path):
    tensors, expected = random(GPT2, tmp_path)
    inner = {name.replace("h.1.", "h.1._orig_mod."): values for name, values in tensors.items()}
    assert np.array_equal(logits(saved(GPT2, inner)), expected)


def test_a_model_saved_without_its_head(saved, tmp_path):
    tied = GPT_OSS | {"tie_word_embeddings": True}
    tensors, expected = random(tied, tmp_path)
    bare = {name.removeprefix("model."): values for name, values in tensors.items()}
    assert np.array_equal(logits(saved(tied, bare)), expected)


def test_a_name_that_is_there_twice(saved, tmp_path):
    tensors, _ = random(GPT2, tmp_path)
    twice = tensors | {"module.transformer.wpe.weight": tensors["transformer.wpe.weight"]}
    with pytest.raises(CheckpointError, match="transformer.wpe.weight is there twice, as .*module"):
        cgpt.load(saved(GPT2, twice))


def test_one_tensor_that_is_missing_is_named_alone(saved, tmp_path):
    tensors, _ = random(GPT2, tmp_path)
    del tensors["transformer.wte.weight"]
    with pytest.raises(CheckpointError, match="config.json: transformer.wte.weight: expected [^;]* found none$"):
        cgpt.load(saved(GPT2, tensors))


# ---- ends that are tied


@pytest.mark.parametrize("metadata", [None, {"transformer.wte.weight": "lm_head.weight", "format": "pt"}])
def test_the_head_in_place_of_the_embedding(saved, tmp_path, metadata):
    """What safetensors.torch.save_model() makes of a model with tied ends."""
    tensors, expected = random(GPT2, tmp_path)
    tensors["lm_head.weight"] = tensors.pop("transformer.wte.weight")
    assert np.array_equal(logits(saved(GPT2, tensors, metadata)), expected)


def test_any_name_that_save_model_left_out(saved, tmp_path):
    untied = GPT2 | {"tie_word_embeddings": False}
    tensors, _ = random(GPT2, tmp_path)
    same = dict(tensors, **{"lm_head.weight": tensors["transformer.wte.weight"]})
    same["transformer.h.1.ln_1.bias"] = same["transformer.h.0.ln_1.bias"]
    expected = logits(saved(untied, same))
    names = {"lm_head.weight": "transformer.wte.weight", "transformer.h.1.ln_1.bias": "transformer.h.0.ln_1.bias"}
    assert np.array_equal(logits(saved(untied, {n: v for n, v in same.items() if n not in names}, names)), expected)


def test_a_tied_head_that_only_the_index_has(saved, tmp_path):
    tensors, expected = random(GPT2, tmp_path)
    for tied in (True, False):
        directory = saved(GPT2 | {"tie_word_embeddings": tied}, tensors)
        (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
        index = dict.fromkeys([*tensors, "lm_head.weight"], "model-00001-of-00001.safetensors")
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        if tied:
            assert np.array_equal(logits(directory), expected)
        else:
            with pytest.raises(CheckpointError, match="lm_head.weight: expected .* found none"):
                cgpt.load(directory)


# ---- other orders, other numbers


def test_nn_linear_order_is_said(saved, tmp_path):
    tensors, _ = random(GPT2, tmp_path)
    turned = {n: np.ascontiguousarray(v.T) if v.ndim == 2 and ".h." in n else v for n, v in tensors.items()}
    for prefix in ("", "_orig_mod."):
        with pytest.raises(
            CheckpointError, match="6 matrices, as transformer.h.0.attn.c_attn.weight, .* other way round"
        ):
            cgpt.load(saved(GPT2, {prefix + name: values for name, values in turned.items()}))
    tensors, _ = random(GPT_OSS, tmp_path / "b")
    turned = {n: np.ascontiguousarray(v.swapaxes(-1, -2)) if n.endswith("_proj") else v for n, v in tensors.items()}
    with pytest.raises(CheckpointError, match="2 matrices, as .*gate_up_proj, .* other way round"):
        cgpt.load(saved(GPT_OSS, turned))


@pytest.mark.parametrize("base", ["c_attn.base_layer.", "c_attn."])
def test_an_adapter_that_is_not_merged(saved, tmp_path, base):
    tensors, _ = random(GPT2, tmp_path)
    tensors = {f"base_model.model.{n.replace('c_attn.', base)}": values for n, values in tensors.items()}
    tensors["base_model.model.transformer.h.0.attn.c_attn.lora_A.default.weight"] = np.zeros((2, 8), np.float32)
    with pytest.raises(CheckpointError, match="an adapter that is not merged.*merge_and_unload"):
        cgpt.load(saved(GPT2, tensors))


@pytest.mark.parametrize("name", ["c_attn.qweight", "c_attn.weight.absmax", "c_attn.biases", "c_attn.weight_scale"])
def test_quantised_weights_are_named(saved, tmp_path, name):
    tensors, _ = random(GPT2, tmp_path)
    tensors[f"transformer.h.0.attn.{name}"] = np.zeros((2, 8), np.float32)
    with pytest.raises(CheckpointError, match=f"{name}, F32, is of a quantisation .*dense"):
        cgpt.load(saved(GPT2, tensors))


# ---- classifiers


@pytest.mark.parametrize(
    "config", [GPT2, GPT2 | {"tie_word_embeddings": False}, GPT_OSS], ids=["tied", "own", "gpt_oss"]
)
@pytest.mark.parametrize("head", ["score", "classifier", "qa_outputs"])
def test_a_classifier(saved, tmp_path, config, head):
    """It is said to be one, and hidden() gives what its head reads."""
    tensors, _ = random(config | {"tie_word_embeddings": True}, tmp_path)
    expected = cgpt.load(tmp_path / "source", precision="exact").hidden(IDS)
    tensors |= {f"{head}.weight": np.ones((2, 8), np.float32), f"{head}.bias": np.ones(2, np.float32)}
    with pytest.warns(UserWarning, match=f"{head}.weight is a classifier's: the text means nothing") as said:
        model = cgpt.load(saved(config, tensors), precision="exact")
    assert len(said) == 1 and np.array_equal(model.hidden(IDS), expected)


def test_a_second_head_is_not_run(saved, tmp_path):
    tensors, expected = random(GPT2, tmp_path)
    tensors["multiple_choice_head.summary.weight"] = np.ones((1, 8), np.float32)
    with pytest.warns(UserWarning, match="multiple_choice_head.summary.weight is not run"):
        model = cgpt.load(saved(GPT2, tensors), precision="exact")
    assert np.array_equal(model.logits(IDS), expected)
