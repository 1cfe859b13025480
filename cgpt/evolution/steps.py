"""The steps from GPT-2 to gpt-oss, in the order of their numbers, and what is said of each."""

from __future__ import annotations

from cgpt.errors import InputError
from cgpt.evolution import steps_attention as attention
from cgpt.evolution import steps_block as block
from cgpt.evolution import steps_mlp as mlp
from cgpt.evolution.step import Step

STEPS = (
    Step(
        1, "Dropout removed",
        "masks cost memory and time in training, and prevent nothing where each text is seen once",
        block.dropout, block.dropout_facts,
        "Inference never drops anything: there the step is free by definition. Whether dropout helps to learn is not "
        "measured here. There is no kernel for it: both sides are NumPy, one thread; the share is of a forward pass.",
    ),
    Step(
        2, "Learned positions to RoPE and YaRN",
        "relative and extendable, from 1,024 positions to 131,072, without parameters; rotating costs next to nothing",
        block.positions, block.positions_facts,
        "Rotating is more work than adding one row, done in every layer: the first lines say how much more, the shares "
        "what that matters.",
    ),
    Step(
        3, "GELU to SwiGLU",
        "tanh makes GELU costly, Swish is cheaper; a gate selects, at equal parameters and equal cost",
        mlp.activations, mlp.activation_facts,
        "The gate's kernel runs only inside the experts' and always clamps: clamping has no time of its own. Whether a "
        "gate learns better is not measured here.",
    ),
    Step(
        4, "One feed-forward to a mixture of experts",
        "more than 90 % of the parameters in 32 or 128 experts, 4 run for a token: much capacity at little cost",
        mlp.experts, mlp.expert_facts,
        "Each token chooses for itself: eight together touch most of 32 experts, so a batch reads what one does not.",
    ),
    Step(
        5, "Multi-head to grouped-query attention",
        "8 key/value heads for 64 query heads: an eighth of the cache and of its bandwidth, fewer parameters",
        attention.grouped, attention.grouped_facts,
        "The operations stay the same: only what is read shrinks.",
    ),
    Step(
        6, "Dense to alternating windows of 128 tokens",
        "every other layer sees 128 tokens: half the cache and compute at length; Gemma's five of six: a sixth",
        attention.windows, attention.window_facts,
    ),
    Step(
        7, "LayerNorm to RMSNorm",
        "one reduction instead of two, no mean, no bias: cheaper",
        block.norms, block.norms_facts,
    ),
    Step(
        8, "Attention sinks",
        "a learned term in the softmax's denominator lets a head attend to nothing, at no cost",
        attention.sinks, attention.sink_facts,
    ),
    Step(
        9, "Pre-LN kept, biases kept, the head untied",
        "biases cost next to nothing; a head of its own costs memory, not time",
        block.biases, block.biases_facts,
        "Pre-LN is the order of the same calls in both models: nothing to time.",
    ),
    Step(
        10, "f32 and bf16 to MXFP4",
        "4.25 bits a weight: gpt-oss-20b in 12.8 GiB, 120b in 60.8 GiB, and as much less to read for a token",
        mlp.mxfp4, mlp.mxfp4_facts,
        "A token's product is bound by what it reads, a prompt's by arithmetic: there MXFP4 need only not be slower.",
    ),
)  # fmt: skip


def chosen(numbers: list[int] | None) -> list[Step]:
    """The steps of these numbers, all for None. InputError for a number that no step has."""
    known = {step.number: step for step in STEPS}
    wrong = [number for number in numbers or () if number not in known]
    if wrong:
        raise InputError(f"step {wrong[0]}: there are steps 1 to {len(STEPS)}")
    return [known[number] for number in sorted(set(numbers or known))]
