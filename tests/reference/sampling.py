"""Sampling and log-probabilities as NumPy has them, float64 over the whole vocabulary: what version 0.1 drew with.

Sums run in id order, or in descending order for top_p; csrc/kernels/sample.c adds up blocks, so a draw that falls
within rounding of a boundary between two tokens may go to the other one: `slack` tells how near it is.
"""

import numpy as np


class Reference:
    """Chooses the tokens of one sequence, as cgpt.generation.sampling.Sampler does."""

    def __init__(
        self,
        vocab_size,
        *,
        temperature=0.0,
        top_k=None,
        top_p=None,
        min_p=None,
        repetition_penalty=None,
        presence_penalty=None,
        frequency_penalty=None,
        logit_bias=None,
        prompt_ids=(),
    ):
        self.temperature, self.top_k, self.top_p, self.min_p = temperature, top_k, top_p, min_p
        self.repetition, self.presence, self.frequency = repetition_penalty, presence_penalty, frequency_penalty
        self.seen = np.zeros(vocab_size, bool)
        self.seen[np.asarray(prompt_ids, np.int64)] = True
        self.counts = np.zeros(vocab_size, np.float32)
        bias = logit_bias or {}
        self.biased = np.array(list(bias), np.int64), np.array(list(bias.values()), np.float32)

    def changed(self, logits):
        """The logits [V] after penalties and biases."""
        if self.repetition not in (None, 1):
            logits, values = logits.copy(), logits[self.seen]
            penalty = np.float32(self.repetition)
            logits[self.seen] = np.where(values < 0, values * penalty, values / penalty)
        if self.presence or self.frequency:
            frequency = np.float32(self.frequency or 0) * self.counts
            logits = logits.astype(np.float64) - (self.presence or 0) * (self.counts > 0) - frequency
        if len(self.biased[0]):
            logits = logits.copy()
            logits[self.biased[0]] += self.biased[1]
        return logits

    def choose(self, logits, draw):
        """(id, slack): the slack is the distance of the draw to the nearest boundary that decides."""
        logits = self.changed(logits)
        token, slack = int(logits.argmax()), 1.0  # the first of equal ones
        if self.temperature > 0:
            ids, weights, slack = self.candidates(logits)
            cumulative = weights.cumsum()
            target = draw * cumulative[-1]
            token = int(ids[cumulative.searchsorted(target, side="right")])
            slack = min(slack, np.abs(cumulative / cumulative[-1] - draw).min())
        self.seen[token] = True
        self.counts[token] += 1
        return token, slack

    def candidates(self, logits):
        """The ids that top_k, top_p and min_p leave, ascending, their weights, 1 for the likeliest, and how near, as a
        part of all, top_p or min_p is to leaving another number."""
        ids, peak, slack = np.arange(len(logits)), float(logits.max()), 1.0
        if self.top_k is not None and self.top_k < len(logits):
            ids = np.sort(np.argsort(-logits, kind="stable")[: self.top_k])
        with np.errstate(over="ignore"):  # a tiny temperature makes all others -infinity, which is right
            weights = np.exp((logits[ids].astype(np.float64) - peak) / float(self.temperature))
        if self.top_p is not None and self.top_p < 1:
            order = np.argsort(-weights, kind="stable")
            mass = weights[order].cumsum() / weights.sum()
            count = min(int(mass.searchsorted(self.top_p)) + 1, len(mass))
            slack = np.abs(mass - self.top_p).min()
            kept = np.sort(order[:count])
            ids, weights = ids[kept], weights[kept]
        if self.min_p:
            slack = min(slack, np.abs(weights - self.min_p).min() or 1.0)
            ids, weights = ids[weights >= self.min_p], weights[weights >= self.min_p]
        return ids, weights, slack


def log_probabilities(logits):
    """float64 [.., V]: the logarithms of the softmax of the logits [.., V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def top_logprobs(logits, k):
    """{id: log-probability} of the k likeliest, these first, of equal ones those with lower ids."""
    logprobs = log_probabilities(logits)
    return {int(i): float(logprobs[i]) for i in np.argsort(-logprobs, kind="stable")[:k]}
