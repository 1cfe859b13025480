"""Two layers at the full width of gpt-oss-20b, against the NumPy reference.

Small checkpoints cannot show a mistake that needs 2880 columns (90 groups of 32), 8 query heads per kv head,
32 experts, a vocabulary of 201,088, a window of 128, or positions beyond the original context of 4096.
Takes 3.2 GB of disk and less than 4 GB of memory.
"""

import shutil

import numpy as np
import pytest

import cgpt
import cgpt.models.synth

import reference
from golden import deviation

CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "num_hidden_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"],
    "vocab_size": 201088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "head_dim": 64,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "num_experts_per_tok": 4,
    "experts_per_token": 4,
    "sliding_window": 128,
    "initial_context_length": 4096,
    "max_position_embeddings": 131072,
    "rope_theta": 150000,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 32.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 4096,
        "truncate": False,
    },
    "rms_norm_eps": 1e-05,
    "swiglu_limit": 7.0,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    "eos_token_id": 200002,
    "pad_token_id": 199999,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}
LENGTH = 4160
NEAR, FAR = range(128, 152), range(4096, LENGTH, 4)  # beyond the window, beyond the original context
EXACT, AUTO = 1e-4, 0.03  # largest and rms deviation, in standard deviations
CLEAR = 0.05  # between the last expert chosen and the next: rounding to bf16 must not decide

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("full_width") / "model"
    cgpt.models.synth.write(CONFIG, directory, seed=5)
    yield directory
    shutil.rmtree(directory)  # 3.2 GB


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(6).integers(0, CONFIG["vocab_size"], LENGTH).tolist()


@pytest.fixture(scope="module")
def expected(checkpoint, ids):
    """-> {position: the head's input} where the choice of experts is clear; one pass serves all tests."""
    positions, trace = np.array([*NEAR, *FAR]), {}
    hidden = reference.load(checkpoint, np.float32).hidden(ids, trace, positions)
    first, last = (np.sort(router_logits, -1) for router_logits in trace["router_logits"])
    lead = np.minimum((first[:, -4] - first[:, -5])[positions], last[:, -4] - last[:, -5])
    return {int(p): row for p, row, margin in zip(positions, hidden, lead, strict=True) if margin > CLEAR}


def rows(expected, wanted):
    """The positions among `wanted` that can be compared, and what is expected there."""
    positions = [p for p in wanted if p in expected]
    assert len(positions) >= 4
    return positions, np.stack([expected[p] for p in positions])


def test_exact_beyond_the_window(checkpoint, ids, expected, level):
    positions, hidden = rows(expected, NEAR)
    actual = cgpt.load(checkpoint, precision="exact").hidden(ids[: NEAR[-1] + 1])
    assert deviation(actual[positions], hidden)[0] <= EXACT


def test_exact_beyond_the_original_context(checkpoint, ids, expected):
    positions, hidden = rows(expected, FAR)
    actual = cgpt.load(checkpoint, precision="exact").hidden(ids)
    assert deviation(actual[positions], hidden)[0] <= EXACT


@pytest.mark.parametrize("wanted", [NEAR, FAR], ids=["beyond the window", "beyond the original context"])
def test_auto(checkpoint, ids, expected, wanted):
    positions, hidden = rows(expected, wanted)
    actual = cgpt.load(checkpoint).hidden(ids[: wanted[-1] + 1])
    assert deviation(actual[positions], hidden)[1] <= AUTO


def test_logits(checkpoint, ids, expected):
    positions, hidden = rows(expected, NEAR)
    logits = reference.load(checkpoint, np.float32).unembed(hidden)
    actual = cgpt.load(checkpoint, precision="exact").logits(ids[: NEAR[-1] + 1])
    assert deviation(actual[positions], logits)[0] <= EXACT
    assert np.array_equal(actual[positions].argmax(-1), logits.argmax(-1))
