"""What does choosing a token cost? By settings.

    python bench/sampling.py [--vocab 201088] [--levels avx2 ref | all]

Medians in ms a token, of logits with normal noise: of standard deviation 3, whose 0.95 nucleus is 9 % of the
vocabulary, and of 1, flatter than a model's, where it is 74 %.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from cgpt.generation.sampling import Sampler, SamplingParams
from cgpt.kernels import _kernels, isa
from cgpt.models.logprobs import gather_logprobs

PARAMS = {
    "greedy": SamplingParams(),
    "temperature 1": SamplingParams(temperature=1.0),
    "temperature 0.7": SamplingParams(temperature=0.7),
    "top_p 0.95": SamplingParams(temperature=1.0, top_p=0.95),
    "top_k 50": SamplingParams(temperature=1.0, top_k=50),
    "min_p 0.05": SamplingParams(temperature=1.0, min_p=0.05),
    "penalties, top_p": SamplingParams(temperature=1.0, top_p=0.95, repetition_penalty=1.1, presence_penalty=0.5),
}


def median_ms(call: Callable[[], object], seconds: float) -> float:
    times, end = [], time.perf_counter() + seconds
    call()
    while len(times) < 9 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=201_088)
    parser.add_argument("--levels", nargs="+", default=[isa.level()], help="or all")
    parser.add_argument("--seconds", type=float, default=0.3)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    for level in isa.available() if a.levels == ["all"] else a.levels:
        _kernels.use_level(level)
        for deviation in (3, 1):
            logits = rng.standard_normal(a.vocab, np.float32) * np.float32(deviation)
            head = f"{level:7s} deviation {deviation}  "
            for name, params in PARAMS.items():
                sampler = Sampler(params, a.vocab, prompt_ids=range(1000))
                alone = median_ms(lambda s=sampler, x=logits: s.choose(x), a.seconds)
                print(f"{head}{name:17s} {alone:.3f}", flush=True)
            for k in (0, 5):
                alone = median_ms(lambda k=k, x=logits[None]: gather_logprobs(x, [7], k), a.seconds)
                print(f"{head}logprobs={k or True!s:8s} {alone:.3f}", flush=True)


if __name__ == "__main__":
    main()
