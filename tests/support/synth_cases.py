"""Configs of small checkpoints, one of each kind that synth writes, and what stands in their files."""

import json

from cgpt.checkpoint.sizes import published_config

from reference.checkpoint import read_header

GPT2 = published_config("gpt2") | dict(n_embd=64, n_layer=3, n_head=4, n_positions=96, n_ctx=96)
GPT2["vocab_size"] = 500
SMALL = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=4, vocab_size=500)
SMALL |= dict(num_attention_heads=4, num_key_value_heads=2, head_dim=32, sliding_window=16)
GPT_OSS = published_config("gpt-oss-20b") | SMALL | dict(num_local_experts=8)
GPT_OSS["layer_types"] = ["sliding_attention", "full_attention"] * 2
PLAIN = {key: value for key, value in GPT_OSS.items() if key != "quantization_config"}
ORIGINAL = published_config("gpt-oss-20b", "original") | SMALL | dict(num_experts=8)

CONFIGS = {
    "gpt2": GPT2,
    "gpt2, own head": GPT2 | dict(tie_word_embeddings=False),
    "gpt2, inner width": GPT2 | dict(n_inner=100),
    "gpt-oss": GPT_OSS,
    "gpt-oss, plain experts": PLAIN,
    "gpt-oss, no attention bias": GPT_OSS | dict(attention_bias=False),
    "gpt-oss, tied": GPT_OSS | dict(tie_word_embeddings=True),
    "gpt-oss, original": ORIGINAL,
}

# Small enough for their figures to be worked out by hand.
TINY_GPT2 = dict(model_type="gpt2", vocab_size=10, n_positions=8, n_embd=4, n_layer=2, n_head=2)
TINY_GPT_OSS = dict(
    model_type="gpt_oss",
    vocab_size=10,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=2,
    head_dim=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    num_local_experts=4,
    num_experts_per_tok=2,
    sliding_window=3,
    max_position_embeddings=64,
)


def config_file(directory, config):
    """The path of a config.json that holds `config`."""
    directory.mkdir(exist_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps(config))
    return path


def stored(directory):
    """Tensor -> (array, dtype), of all files."""
    return {n: t for file in directory.glob("*.safetensors") for n, t in read_header(file).items()}
