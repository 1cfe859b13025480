"""What a setting costs: KL divergence, top-1 agreement and perplexity of a model against a reference, on a text.

    exact = cgpt.load(directory, precision="exact")
    fast = cgpt.load(directory, dense="bf16")
    cgpt.analysis.quality.compare(exact, fast, exact.tokenizer.encode(text))

As llama.cpp's llama-perplexity --kl-divergence: Kullback-Leibler divergence of the next token's distribution, token by
token, in nats; perplexity is e to the mean of -log p of the tokens that came.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cgpt.api import Model
from cgpt.arguments import require_integer
from cgpt.errors import ContextLengthError, InputError
from cgpt.models.logprobs import log_probabilities

TEXT = Path(__file__).with_name("quality.txt")  # prose, a dialogue, instructions, code, a table, letters: 4.5 kB
CONTEXT = 1024  # tokens of a window unless told
LOGITS_BYTES = 128e6  # of a model's logits at a time
ROWS = 8  # whose float64 copies are made at a time


@dataclass(frozen=True)
class Quality:
    """What compare() found. A standard error (_se) takes the tokens for independent, which those of a text are not
    quite.

    tokens: how many next tokens were predicted
    windows, context: the windows that the text was cut into, and the tokens of the longest
    kl_*: KL(reference || model) of the next token's distributions over the tokens, in nats
    top1_agreement: the share of tokens where both find the same one likeliest
    perplexity_reference, perplexity: of either
    perplexity_change: perplexity / perplexity_reference - 1; its standard error is that of the mean difference of
        -log p, token by token, so what is hard for both cancels
    """

    tokens: int
    windows: int
    context: int
    kl_mean: float
    kl_mean_se: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity_reference: float
    perplexity: float
    perplexity_change: float
    perplexity_change_se: float


def compare(
    reference: Model,
    model: Model,
    ids: Any,
    *,
    context: int | None = None,
    decode: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Quality:
    """How far `model` is from `reference` on a text of 3 ids at least.

    A text longer than `context` (default: 1024, or the positions the models have) is cut into windows that are read
    each on its own, so the first tokens of a window are predicted from few. decode: the model reads tokens as it does
    when it generates them, instead of as a prompt; where the kernels for the two round differently, that tells. Memory:
    128 MB of logits of each model at a time. progress(done, total) is told the tokens.

    Raises InputError, TokenIdError or ContextLengthError before anything is computed.
    """
    if reference.vocab_size != model.vocab_size:
        raise InputError(
            f"the models have vocabularies of {reference.vocab_size} and {model.vocab_size} tokens, so their "
            f"predictions cannot be compared; give two settings of one model"
        )
    ids = np.asarray(reference.encode_prompt(ids), np.int64)
    total, context = len(ids) - 1, window(context, min(reference.context_length, model.context_length))
    if total < 2:
        raise InputError(f"the text has {len(ids)} tokens; give 3 at least, so that 2 are predicted")
    one, other = reference.transformer, model.transformer
    chunk = int(max(1, min(other.PREFILL_CHUNK, LOGITS_BYTES // (4 * model.vocab_size))))
    piece = other.uniform_tokens(chunk) if decode else chunk
    parts = []
    for start in range(0, total, context):
        end = min(start + context, total)
        expected, found = one.new_cache(end - start), other.new_cache(end - start)
        for at in range(start, end, chunk):
            now = ids[at : min(at + chunk, end)]
            logits = one.step([(expected, now)], rows="all")
            pieces = [other.step([(found, now[i : i + piece])], rows="all") for i in range(0, len(now), piece)]
            others = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
            parts.append(measure(logits, others, ids[at + 1 : at + 1 + len(now)]))
            if progress:
                progress(at + len(now), total)
    return summary(np.concatenate(parts, axis=1), windows=-(-total // context), context=min(context, total))


def window(context: int | None, longest: int) -> int:
    """The tokens of a window, checked."""
    if context is None:
        return min(CONTEXT, longest)
    if require_integer("context", context, low=1) > longest:
        raise ContextLengthError(f"context is {context}, the model has {longest} positions")
    return context


def measure(reference: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """float64 [4, T] of float32 logits [T, V] and the ids [T] that came: KL(reference || logits), 1 where the likeliest
    tokens agree, and -log p of the targets by the reference and by the other."""
    out = np.empty((4, len(targets)))
    out[1] = reference.argmax(-1) == logits.argmax(-1)
    for i in range(0, len(targets), ROWS):
        part, rows = slice(i, i + ROWS), np.arange(len(targets[i : i + ROWS]))
        p, q = log_probabilities(reference[part]), log_probabilities(logits[part])
        out[0, part] = (np.exp(p) * (p - q)).sum(-1)
        out[2, part], out[3, part] = -p[rows, targets[part]], -q[rows, targets[part]]
    np.maximum(out[0], 0, out=out[0])  # of equal distributions it may come out as -1e-17
    return out


def summary(measured: np.ndarray, windows: int, context: int) -> Quality:
    """The Quality of all tokens, from what measure() gave for them, float64 [4, T]."""
    kl, agree, expected, found = measured
    change = np.exp(np.mean(found - expected))
    return Quality(
        tokens=len(kl),
        windows=windows,
        context=context,
        kl_mean=float(kl.mean()),
        kl_mean_se=standard_error(kl),
        kl_median=float(np.median(kl)),
        kl_p99=float(np.quantile(kl, 0.99)),
        kl_max=float(kl.max()),
        top1_agreement=float(agree.mean()),
        perplexity_reference=float(np.exp(expected.mean())),
        perplexity=float(np.exp(found.mean())),
        perplexity_change=float(change - 1),
        perplexity_change_se=float(change * standard_error(found - expected)),  # d(e^x) = e^x dx
    )


def standard_error(values: np.ndarray) -> float:
    """Standard error of the mean; needs at least two values."""
    return float(values.std(ddof=1) / np.sqrt(len(values)))
