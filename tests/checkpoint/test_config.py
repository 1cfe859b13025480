"""config.json in all its dialects: defaults, aliases, refusals, damaged files."""

import dataclasses
import json

import pytest

from cgpt.checkpoint.config import ACTIVATIONS, FULL, SLIDING, GPT2Config, GptOssConfig, read_config
from cgpt.checkpoint.rope import RopeConfig
from cgpt.errors import ConfigError
from cgpt.kernels._kernels import MAX_HEAD_DIM

YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}
# openai/gpt-oss-20b's config.json, as published
GPT_OSS_20B = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0,
    "eos_token_id": 200002, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880,
    "initial_context_length": 4096, "initializer_range": 0.02, "intermediate_size": 2880,
    "layer_types": [SLIDING, FULL] * 12, "max_position_embeddings": 131072, "model_type": "gpt_oss",
    "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
    "num_local_experts": 32, "output_router_logits": False, "pad_token_id": 199999,
    "quantization_config": {"modules_to_not_convert": ["lm_head"], "quant_method": "mxfp4"},
    "rms_norm_eps": 1e-05, "rope_scaling": YARN, "rope_theta": 150000, "router_aux_loss_coef": 0.9,
    "sliding_window": 128, "swiglu_limit": 7.0, "tie_word_embeddings": False, "use_cache": True,
    "transformers_version": "4.55.0.dev0", "vocab_size": 201088,
}  # fmt: skip
# its original/config.json
ORIGINAL_20B = {
    "num_hidden_layers": 24, "num_experts": 32, "experts_per_token": 4, "vocab_size": 201088,
    "hidden_size": 2880, "intermediate_size": 2880, "swiglu_limit": 7.0, "head_dim": 64,
    "num_attention_heads": 64, "num_key_value_heads": 8, "sliding_window": 128,
    "initial_context_length": 4096, "rope_theta": 150000, "rope_scaling_factor": 32.0, "rope_ntk_alpha": 1,
    "rope_ntk_beta": 32,
}  # fmt: skip


@pytest.fixture
def read(tmp_path):
    """read(config, generation) -> the config read from files with that content (dicts, or text as it is)."""

    def run(config, generation=None):
        for name, content in (("config.json", config), ("generation_config.json", generation)):
            if content is not None:
                text = content if isinstance(content, str) else json.dumps(content)
                (tmp_path / name).write_text(text)
        return read_config(tmp_path)

    return run


def gpt2(**changes):
    return {"model_type": "gpt2", **changes}


def gpt_oss(**changes):
    """A small config whose RoPE is transformers' default unless changed."""
    small = dict(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=8,
        vocab_size=100,
    )
    return {"model_type": "gpt_oss", **small, **changes}


def original(**changes):
    return {**ORIGINAL_20B, **changes}


# -------------------------------------------------------------------------------------------- whole configs


def test_gpt2_defaults_are_those_of_transformers(read):
    assert read(gpt2()) == GPT2Config(
        vocab_size=50257,
        n_positions=1024,
        n_embd=768,
        n_layer=12,
        n_head=12,
        n_inner=3072,
        activation="gelu_tanh",
        layer_norm_epsilon=1e-5,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        tie_word_embeddings=True,
        eos_token_ids=(50256,),
    )


def test_gpt_oss_defaults_are_those_of_transformers(read):
    assert read({"model_type": "gpt_oss"}) == GptOssConfig(
        vocab_size=201088, hidden_size=2880, intermediate_size=2880, num_hidden_layers=36,
        num_attention_heads=64, num_key_value_heads=8, head_dim=64, num_experts=128, experts_per_token=4,
        layer_types=(SLIDING, FULL) * 18, sliding_window=128, rms_norm_eps=1e-5, swiglu_limit=7.0,
        swiglu_alpha=1.702, attention_bias=True, tie_word_embeddings=False, max_position_embeddings=131072,
        rope=RopeConfig("yarn", 150000.0, 32.0, 4096, 32.0, 1.0, False), eos_token_ids=(), layout="hf",
    )  # fmt: skip


def test_a_config_made_in_python_has_the_same_defaults(read):
    assert read(gpt2()) == GPT2Config()
    assert read({"model_type": "gpt_oss"}) == GptOssConfig(eos_token_ids=())


def test_published_gpt_oss_20b(read):
    config = read(GPT_OSS_20B, {"eos_token_id": [200002, 199999, 200012]})
    assert (config.num_hidden_layers, config.num_experts, config.experts_per_token) == (24, 32, 4)
    assert config.layer_types == (SLIDING, FULL) * 12
    assert config.rope == RopeConfig("yarn", 150000.0, 32.0, 4096, 32.0, 1.0, truncate=False)
    assert config.eos_token_ids == (200002, 199999, 200012)


def test_openai_original_is_the_same_model(read):
    published = read(GPT_OSS_20B, {"eos_token_id": [200002, 199999, 200012]})
    assert read(ORIGINAL_20B) == dataclasses.replace(published, layout="original")


def test_original_defaults_are_those_of_openai(read):
    config = read({"num_experts": 128})
    assert config == GptOssConfig(layout="original")  # the 120b


def test_every_gpt2_key_is_read(read):
    changed = dict(
        vocab_size=11,
        n_positions=13,
        n_embd=12,
        n_layer=5,
        n_head=3,
        n_inner=7,
        layer_norm_epsilon=1e-6,
        scale_attn_weights=False,
        scale_attn_by_inverse_layer_idx=True,
        tie_word_embeddings=False,
    )
    config = read(gpt2(**changed, activation_function="relu", reorder_and_upcast_attn=True, eos_token_id=[3]))
    assert config == GPT2Config(**changed, activation="relu", eos_token_ids=(3,))


def test_every_gpt_oss_key_is_read(read):
    changed = dict(vocab_size=11, hidden_size=96, intermediate_size=40, num_hidden_layers=2,
                   num_attention_heads=6, num_key_value_heads=3, head_dim=10, sliding_window=5,
                   rms_norm_eps=1e-6, swiglu_limit=3.0, swiglu_alpha=1.5, attention_bias=False,
                   tie_word_embeddings=True, max_position_embeddings=77)  # fmt: skip
    config = read(
        gpt_oss(
            **changed,
            num_local_experts=9,
            num_experts_per_tok=2,
            layer_types=[FULL, SLIDING],
            eos_token_id=3,
            rope_scaling={"rope_type": "default"},
        )
    )
    assert config == GptOssConfig(
        **changed,
        num_experts=9,
        experts_per_token=2,
        layer_types=(FULL, SLIDING),
        rope=RopeConfig(),
        eos_token_ids=(3,),
    )


def test_all_experts_may_be_chosen(read):
    assert read(gpt_oss(num_local_experts=4)).experts_per_token == 4


def test_every_original_key_is_read(read):
    changed = dict(vocab_size=11, hidden_size=96, intermediate_size=32, num_hidden_layers=2,
                   num_attention_heads=6, num_key_value_heads=3, head_dim=10, sliding_window=5, num_experts=9,
                   experts_per_token=2, swiglu_limit=3.0)  # fmt: skip
    config = read(
        original(
            **changed,
            initial_context_length=64,
            rope_theta=1000,
            rope_scaling_factor=4.0,
            rope_ntk_alpha=2,
            rope_ntk_beta=8,
        )
    )
    assert config == GptOssConfig(
        **changed,
        layer_types=(SLIDING, FULL),
        max_position_embeddings=256,
        layout="original",
        eos_token_ids=(),
        rope=RopeConfig("yarn", 1000.0, 4.0, 64, 8.0, 2.0, truncate=False),
    )


def test_original_without_scaling_is_plain_rope(read):
    config = read(original(rope_scaling_factor=1.0))
    assert (config.rope, config.max_position_embeddings) == (RopeConfig("default"), 4096)


@pytest.mark.parametrize(
    "config, kind",
    [
        ({"n_embd": 768, "n_head": 12, "n_layer": 12}, GPT2Config),  # the first published gpt2 had no model_type
        ({"model_type": None, "n_embd": 768, "n_head": 12}, GPT2Config),
        ({"num_local_experts": 8}, GptOssConfig),
        (ORIGINAL_20B, GptOssConfig),
    ],
)
def test_dialect_without_model_type(read, config, kind):
    assert type(read(config)) is kind


# ---------------------------------------------------------------------------------------- aliases and nulls


def test_gpt2_aliases(read):
    aliased = gpt2(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, max_position_embeddings=9)
    config = read(aliased)
    assert (config.n_embd, config.n_layer, config.n_head, config.n_positions) == (24, 2, 3, 9)
    assert config.n_inner == 96


@pytest.mark.parametrize(
    "config, key",
    [
        (gpt2(n_embd=24, hidden_size=48), "hidden_size"),
        (gpt2(n_layer=2, num_hidden_layers=3), "num_hidden_layers"),
        (gpt_oss(num_experts=4), "num_experts"),
        (gpt_oss(num_experts_per_tok=2, experts_per_token=3), "experts_per_token"),
        (gpt_oss(experts_per_token=3), "experts_per_token"),  # transformers takes its default, 4
        (gpt_oss(rope_theta=1000, rope_parameters={**YARN, "rope_theta": 1001}), "rope_theta"),
        (gpt_oss(rope_scaling=YARN, rope_parameters={**YARN, "truncate": True}), "rope_parameters"),
        (gpt_oss(rope_scaling=YARN, rope_parameters={**YARN, "rope_theta": 7}), "rope_parameters"),
        (gpt_oss(rope_scaling={**YARN, "type": "linear"}), "rope_scaling.type"),
        (gpt_oss(rope_scaling=YARN, original_max_position_embeddings=64), "original_max_position_embeddings"),
    ],
)
def test_contradictions_are_refused(read, config, key):
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        read(config)


def test_keys_without_influence_do_not_contradict(read):
    assert read(gpt2(n_positions=64, n_ctx=1024)).n_positions == 64
    assert read(gpt_oss(initial_context_length=64)).rope.original_max_position_embeddings == 4096


def test_same_rope_twice_is_accepted(read):
    config = gpt_oss(rope_theta=1000, rope_scaling=YARN, rope_parameters={**YARN, "rope_theta": 1000.0})
    assert read(config).rope.theta == 1000


def test_null_means_what_transformers_makes_of_it(read):
    assert read(gpt2(n_embd=24, n_inner=None)).n_inner == 96
    config = read(gpt_oss(num_key_value_heads=None, head_dim=None, layer_types=None, rope_scaling=None))
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)
    assert config.layer_types == (SLIDING, FULL, SLIDING)
    assert config.rope.type == "yarn"
    assert read(gpt_oss(sliding_window=None, layer_types=[FULL] * 3)).sliding_window is None


@pytest.mark.parametrize("key", ["n_embd", "n_head", "layer_norm_epsilon", "scale_attn_weights"])
def test_null_is_refused_elsewhere(read, key):
    with pytest.raises(ConfigError, match=f"{key} must be .* found None"):
        read(gpt2(**{key: None}))


# -------------------------------------------------------------------------------------------------- eos ids


@pytest.mark.parametrize(
    "config, generation, ids",
    [
        (gpt2(vocab_size=60000), None, (50256,)),
        (gpt2(vocab_size=9), None, ()),
        (gpt2(eos_token_id=None), None, ()),
        (gpt2(eos_token_id=0), {}, (0,)),
        (gpt2(eos_token_id=5), {"eos_token_id": None}, (5,)),
        (gpt2(eos_token_id=5), {"eos_token_id": 6}, (6,)),
        (gpt2(eos_token_id=5), {"eos_token_id": [6, 7, 6]}, (6, 7)),
        (gpt_oss(), None, ()),
        (gpt_oss(), {"eos_token_id": [99, 100]}, (99,)),
        (ORIGINAL_20B, None, (200002, 199999, 200012)),
        (ORIGINAL_20B, {"eos_token_id": 1}, (1,)),
    ],
)
def test_eos_token_ids(read, config, generation, ids):
    assert read(config, generation).eos_token_ids == ids


@pytest.mark.parametrize("eos", [-1, "5", 5.0, True, [5, None], {}])
def test_bad_eos_token_id(read, eos):
    with pytest.raises(ConfigError, match="config.json: eos_token_id must be"):
        read(gpt2(eos_token_id=eos))
    with pytest.raises(ConfigError, match="generation_config.json: eos_token_id must be"):
        read(gpt2(), {"eos_token_id": eos})


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name, kernel", ACTIVATIONS.items())
def test_activation_spellings(read, name, kernel):
    assert read(gpt2(activation_function=name)).activation == kernel
    assert kernel in ("gelu_tanh", "gelu_erf", "quick_gelu", "relu", "silu", "tanh")


REFUSED = [
    (gpt2(activation_function="gelu_10"), "activation_function"),
    (gpt2(activation_function="mish"), "activation_function"),
    (gpt2(add_cross_attention=True), "add_cross_attention"),
    (gpt2(is_causal=False), "is_causal"),
    (gpt2(per_layer_config={"0": {"n_inner": 5}}), "per_layer_config"),
    (gpt2(quantization_config={"quant_method": "gptq"}), "quantization_config"),
    (gpt2(n_head=7), "n_head 7 does not divide n_embd 768"),
    ({"model_type": "gptj", "n_embd": 768, "n_head": 12}, "model_type must be"),
    ({"hidden_size": 5}, "model_type is missing"),
    (gpt_oss(hidden_act="gelu"), "hidden_act"),
    (gpt_oss(quantization_config={"quant_method": "fp8"}), "quantization_config.quant_method"),
    (gpt_oss(quantization_config={}), "quantization_config.quant_method is missing"),
    (gpt_oss(quantization_config={"quant_method": "mxfp4"}, hidden_size=72), "hidden_size"),
    (gpt_oss(quantization_config={"quant_method": "mxfp4"}, intermediate_size=40), "intermediate_size"),
    (original(hidden_size=72), "hidden_size"),
    (original(hidden_act="silu"), "hidden_act: no such key"),
    (original(initial_context_length=1 << 24), "initial_context_length"),
    (gpt_oss(num_key_value_heads=3), "num_key_value_heads 3 does not divide num_attention_heads 4"),
    (gpt_oss(head_dim=9), "head_dim must be even"),
    (gpt_oss(num_local_experts=3), "experts per token"),
    (gpt_oss(num_local_experts=1025), "num_local_experts"),
    (gpt_oss(num_experts_per_tok=65), "num_experts_per_tok"),
    (gpt_oss(num_attention_heads=4096, head_dim=512), "num_attention_heads"),
    (gpt_oss(head_dim=MAX_HEAD_DIM + 2), "head_dim must be at most"),
    (gpt_oss(head_dim=None, hidden_size=4 * MAX_HEAD_DIM + 8), "head_dim must be at most"),
    (original(head_dim=MAX_HEAD_DIM + 2), "head_dim must be at most"),
    (gpt2(n_embd=2 * MAX_HEAD_DIM + 2, n_head=2), "n_head 2 makes heads of more than"),
    (gpt_oss(layer_types=[SLIDING]), "layer_types has 1 entries for 3 layers"),
    (gpt_oss(layer_types=[SLIDING, FULL, "chunked_attention"]), r"layer_types\[2\]"),
    (gpt_oss(layer_types=[SLIDING, FULL, {}]), r"layer_types\[2\]"),
    (gpt_oss(layer_types="full_attention"), "layer_types must be a list"),
    (gpt_oss(sliding_window=None), "sliding_window"),
    (gpt_oss(sliding_window=0), "sliding_window"),
    (gpt_oss(swiglu_limit=0), "swiglu_limit"),
    (gpt_oss(swiglu_limit=None), "swiglu_limit"),
    (gpt_oss(per_layer_config={"0": {}}), "per_layer_config"),
    (gpt_oss(partial_rotary_factor=0.5), "partial_rotary_factor"),
    (gpt_oss(rope_scaling={**YARN, "partial_rotary_factor": 0.5}), "rope_scaling.partial_rotary_factor"),
    (gpt_oss(rope_scaling={**YARN, "rope_type": "llama3"}), "rope_scaling.rope_type must .*'llama3'"),
    (gpt_oss(rope_scaling={**YARN, "rope_type": None}), "rope_scaling.rope_type"),
    (gpt_oss(rope_parameters={"full_attention": YARN}), "rope_parameters.full_attention"),
    (gpt_oss(rope_scaling={**YARN, "truncat": False}), "rope_scaling.truncat: no such key"),
    (gpt_oss(rope_scaling={"rope_type": "yarn"}), "rope_scaling.factor is missing"),
    (gpt_oss(rope_scaling={"rope_type": "linear"}), "rope_scaling.factor is missing"),
    (gpt_oss(rope_scaling={**YARN, "factor": 0}), "rope_scaling.factor"),
    (gpt_oss(rope_scaling={**YARN, "truncate": "no"}), "rope_scaling.truncate"),
    (gpt_oss(rope_scaling={**YARN, "beta_fast": -1}), "rope_scaling.beta_fast"),
    (gpt_oss(rope_scaling={**YARN, "beta_slow": 1e-300}), "beta_slow"),
    (gpt_oss(rope_scaling={**YARN, "original_max_position_embeddings": 0}), "original_max_position_embedd"),
    (gpt_oss(rope_scaling=[]), "rope_scaling must be an object"),
    (gpt_oss(rope_theta=1.0), "rope_theta"),
    (gpt_oss(rope_theta=None), "rope_theta"),
]


@pytest.mark.parametrize("config, message", REFUSED, ids=[message for _, message in REFUSED])
def test_refused_by_name(read, config, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        read(config)
    assert "config.json" in str(refusal.value)


SIZES = {
    "gpt2": ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner"),
    "gpt_oss": ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "num_local_experts", "num_experts_per_tok",
                "sliding_window", "max_position_embeddings"),
}  # fmt: skip


@pytest.mark.parametrize("value", [0, -4, True, 4.0, "4", [], 1 << 25, 1 << 63, 10**30])
@pytest.mark.parametrize("kind, key", [(kind, key) for kind in SIZES for key in SIZES[kind]])
def test_absurd_sizes(read, kind, key, value):
    with pytest.raises(ConfigError, match=f"{key} must be an integer from 1 to "):
        read({"model_type": kind, key: value})


@pytest.mark.parametrize("key, most", [("vocab_size", 1 << 24), ("n_positions", 1 << 24), ("n_layer", 4096)])
def test_smallest_and_largest_size(read, key, most):
    for value in (1, most):
        assert getattr(read(gpt2(**{key: value})), key) == value
    with pytest.raises(ConfigError, match=f"{key} must be an integer from 1 to {most}, found {most + 1}"):
        read(gpt2(**{key: most + 1}))


@pytest.mark.parametrize("value", [0, -1e-5, True, "1e-5", [], 2.0, 1e-60, 10**400])
@pytest.mark.parametrize("config, key", [(gpt2, "layer_norm_epsilon"), (gpt_oss, "rms_norm_eps")])
def test_absurd_epsilon(read, config, key, value):
    with pytest.raises(ConfigError, match=f"{key} must be a number"):
        read(config(**{key: value}))


@pytest.mark.parametrize("value", [1, 0, "true", []])
def test_flags_are_booleans(read, value):
    with pytest.raises(ConfigError, match="tie_word_embeddings must be true or false"):
        read(gpt2(tie_word_embeddings=value))


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "not valid JSON"),
        ("[]", "expected a JSON object"),
        ('{"model_type": "gpt2"', "not valid JSON"),
        ('{"model_type": "gpt2", "n_head": 4, "n_head": 8}', "'n_head' appears twice"),
        ('{"model_type": "gpt2", "layer_norm_epsilon": NaN}', "NaN is not a JSON number"),
        ('{"model_type": "gpt2", "layer_norm_epsilon": 1e999}', "layer_norm_epsilon"),
        ('{"n_head": ' + "9" * 5000 + "}", "not valid JSON|model_type"),
        ('{"a": ' * 100000, "nested too deeply"),
        ('{"model_type": "\ud800"}', "not valid JSON"),
        ('{"model_type": "\\ud800"}', "model_type"),
    ],
    ids=["empty", "list", "cut", "twice", "nan", "inf", "digits", "deep", "utf8", "surrogate"],
)
def test_damaged_json(tmp_path, text, message):
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no config.json"):
        read_config(tmp_path)
    (tmp_path / "original").mkdir()
    (tmp_path / "original/config.json").write_text("{}")
    with pytest.raises(ConfigError, match="its folder original/ has one"):
        read_config(tmp_path)


def test_config_that_is_no_file(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ConfigError, match="is a directory"):
        read_config(tmp_path)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name[0]).mkdir()
        (tmp_path / name[0] / "config.json").write_text('{"model_type": "gpt2"}')
        (tmp_path / name[0] / name).unlink(missing_ok=True)
        (tmp_path / name[0] / name).symlink_to(name)
        with pytest.raises(ConfigError, match=f"/{name}: .*symbolic links"):
            read_config(tmp_path / name[0])
    with pytest.raises(ConfigError, match="null"):
        read_config(str(tmp_path) + "\0")


def test_config_of_many_megabytes(tmp_path):
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="too many"):
        read_config(tmp_path)
