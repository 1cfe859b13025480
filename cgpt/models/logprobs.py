"""Log-probabilities: the logarithms of the softmax of logits, float64. Of equally likely tokens those with lower ids
come first."""

import numpy as np
import numpy.typing as npt

from cgpt.kernels import _kernels
from cgpt.kernels.scratch import thread_context

Logits = npt.NDArray[np.float32]
LogProbs = npt.NDArray[np.float64]


def log_probabilities(logits: Logits, threads: int = 1) -> LogProbs:
    """The log-probabilities, float64 [T, V], of all tokens, by logits [T, V]; NaN if a row's largest is not finite."""
    largest, log_sum, _, _ = _logprobs(logits, 0, threads)
    return logits.astype(np.float64) - largest[:, None] - log_sum[:, None]


def gather_logprobs(
    logits: Logits, token_ids: npt.ArrayLike, num_logprobs: int = 0, threads: int = 1
) -> tuple[LogProbs, list[dict[int, float]]]:
    """The log-probability, float64 [T], of one token for each row of logits [T, V], and of the `num_logprobs` likeliest
    tokens {id: log-probability}, these first; a larger number than V takes all V."""
    largest, log_sum, ids, values = _logprobs(logits, num_logprobs, threads)
    chosen = logits[np.arange(len(logits)), np.asarray(token_ids, np.int64)].astype(np.float64)
    return chosen - largest - log_sum, [_likeliest_first(*row) for row in zip(ids, values, strict=True)]


def top_logprobs(logits: Logits, num_logprobs: int, threads: int = 1) -> list[dict[int, float]]:
    """The second result of gather_logprobs."""
    _, _, ids, values = _logprobs(logits, num_logprobs, threads)
    return [_likeliest_first(*row) for row in zip(ids, values, strict=True)]


def _likeliest_first(ids: npt.NDArray[np.int32], values: LogProbs) -> dict[int, float]:
    order = np.argsort(-values, kind="stable")  # the ids ascend
    return dict(zip(ids[order].tolist(), values[order].tolist(), strict=True))


def _logprobs(
    logits: Logits, num_logprobs: int, threads: int
) -> tuple[LogProbs, LogProbs, npt.NDArray[np.int32], LogProbs]:
    """As kernels.logprobs gives them, for any number of rows."""
    rows, vocab_size = logits.shape
    k = min(num_logprobs, vocab_size)
    if not rows:
        return np.empty(0), np.empty(0), np.empty((0, k), np.int32), np.empty((0, k))
    return _kernels.logprobs(thread_context(threads), _kernels.Tensor(np.ascontiguousarray(logits, np.float32)), k)
