"""The steps from GPT-2 to gpt-oss, in the order of their numbers, and what is said of each."""

from cgpt.errors import InputError
from cgpt.evolution import steps_attention as attention
from cgpt.evolution import steps_block as block
from cgpt.evolution import steps_mlp as mlp
from cgpt.evolution.step import Step

STEPS = (
    Step(1, "Dropout removed", block.dropout, block.dropout_facts,
         "masks cost memory and time in training, and prevent nothing where each text is seen once",
         "Inference never drops anything: there the step is free by definition. Whether dropout helps to learn is not "
         "measured here. There is no kernel for it: both sides are NumPy, one thread; the share is of a forward pass."),
    Step(2, "Learned positions to RoPE and YaRN", block.positions, block.positions_facts,
         "relative and extendable, from 1,024 positions to 131,072, without parameters; rotating costs next to nothing",
         "Rotating is more work than adding one row, done in every layer: the first lines say how much more, the "
         "shares what that matters."),
    Step(3, "GELU to SwiGLU", mlp.activations, mlp.activation_facts,
         "tanh makes GELU costly, Swish is cheaper; a gate selects, at equal parameters and equal cost",
         "The gate's kernel runs only inside the experts' and always clamps: clamping has no time of its own. Whether "
         "a gate learns better is not measured here."),
    Step(4, "One feed-forward to a mixture of experts", mlp.experts, mlp.expert_facts,
         "more than 90 % of the parameters in 32 or 128 experts, 4 run for a token: much capacity at little cost",
         "Each token chooses for itself: eight together touch most of 32 experts, so a batch reads what one does not."),
    Step(5, "Multi-head to grouped-query attention", attention.grouped, attention.grouped_facts,
         "8 key/value heads for 64 query heads: an eighth of the cache and of its bandwidth, fewer parameters",
         "The operations stay the same: only what is read shrinks."),
    Step(6, "Dense to alternating windows of 128 tokens", attention.windows, attention.window_facts,
         "every other layer sees 128 tokens: half the cache and compute at length; Gemma's five of six: a sixth"),
    Step(7, "LayerNorm to RMSNorm", block.norms, block.norms_facts,
         "one reduction instead of two, no mean, no bias: cheaper"),
    Step(8, "Attention sinks", attention.sinks, attention.sink_facts,
         "a learned term in the softmax's denominator lets a head attend to nothing, at no cost"),
    Step(9, "Pre-LN kept, biases kept, the head untied", block.biases, block.biases_facts,
         "biases cost next to nothing; a head of its own costs memory, not time",
         "Pre-LN is the order of the same calls in both models: nothing to time."),
    Step(10, "f32 and bf16 to MXFP4", mlp.mxfp4, mlp.mxfp4_facts,
         "4.25 bits a weight: gpt-oss-20b in 12.8 GiB, 120b in 60.8 GiB, and as much less to read for a token",
         "A token's product is bound by what it reads, a prompt's by arithmetic: there MXFP4 need only not be slower."),
)  # fmt: skip


def chosen(numbers: list[int] | None) -> list[Step]:
    """The steps of these numbers, all for None. InputError for a number that no step has."""
    known = {step.number: step for step in STEPS}
    wrong = [number for number in numbers or () if number not in known]
    if wrong:
        raise InputError(f"step {wrong[0]}: there are steps 1 to {len(STEPS)}")
    return [known[number] for number in sorted(set(numbers or known))]
