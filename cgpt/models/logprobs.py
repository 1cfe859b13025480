"""Log-probabilities of logits, and the likeliest tokens: what scores, inspection and sampling share."""

import numpy as np
import numpy.typing as npt


def log_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """float64 [.., V]: the logarithms, in nats, of the softmax of the logits [.., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def likeliest(logprobs: npt.NDArray[np.float64], k: int) -> dict[int, float]:
    """{id: log-probability} of the k largest of `logprobs` [V], the largest first, of equal ones the lower id."""
    ids = largest(logprobs, min(k, len(logprobs)))
    return {int(i): float(logprobs[i]) for i in ids[np.argsort(-logprobs[ids], kind="stable")]}


def largest(values: npt.NDArray[np.floating], k: int) -> npt.NDArray[np.int64]:
    """The indices of the k largest of `values` [V], ascending; of equal values the first."""
    return down_to(values, np.partition(values, len(values) - k)[len(values) - k], k)


def down_to(values: npt.NDArray[np.floating], bound: float, count: int) -> npt.NDArray[np.int64]:
    """The indices, ascending, of the `count` largest values, the least of which is `bound`: of values that equal it the
    first."""
    kept = np.flatnonzero(values >= bound)
    if len(kept) > count:
        ties = np.flatnonzero(values[kept] == bound)
        kept = np.delete(kept, ties[count - len(kept) :])
    return kept
