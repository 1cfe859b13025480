"""Routers of synthetic gpt-oss checkpoints whose choices are skewed, and alike within a text, as those of trained ones.

Random weights choose experts evenly and anew for each token: a cache that holds a part of them hits as often as it is
large. With a skew of S, the router's logit of expert e in layer n, for a token of topic c, is about

    N(0, 1), of the token  +  S * (0.75 p[n, e] + 0.4 t[n, e, c]),        all p and t drawn from N(0, 1)

* p is popularity, and stands in the router's bias: some experts are chosen more often than others, in any text.
* t is what a topic prefers. Each of 16 topics is a direction u[c] of random signs in the residual stream, to which the
  router's weights have t * u added. Token i is of topic i % 16. Its embedding has u[c] added, and so has its row of the
  head: what is generated stays with the topic of the last token. But one of 256 tokens embeds another topic.

So the experts of a generated text change little by little, and every some hundred tokens by more. Ids that are drawn at
random, as `cgpt bench` does, change their topic with each token, and have only p in common.

Measured by bench/expert_hits.py at S = 1, the least recently used expert of all layers dropped, in generated text (in
brackets: random ids). 36 layers of 128 experts, 30 % of them cached: 86 % hits (72); 25 %: 81 % (64); 50 %: 95 % (90).
24 layers of 32: 70, 59 and 91 % (53, 43, 77), and at S = 1.6: 85, 78 and 97 %. From text to text this varies by 2 or
3 %. Of a token's choices 22 % are among those of the token before, with 32 experts 40 %.

A topic fades as blocks add to the residual stream. This is made up for by an estimate of what they add at the published
widths; at smaller ones the topics are louder, or drowned.
"""

import re
from math import sqrt

import numpy as np
from numpy.random import SFC64, Generator, SeedSequence

from cgpt.checkpoint.config import GptOssConfig
from cgpt.models.gpt_oss import HF_NAMES, ORIGINAL_NAMES

POPULARITY, PREFERENCE = 0.75, 0.4  # standard deviations of a router's logits at a skew of 1
TOPICS, LENGTH = 16, 256  # how many, and the tokens of each for one that leads elsewhere
AMPLITUDE = 0.42  # of a topic in an embedding, for one layer; with the square root of their number
ADVANTAGE = 16.0  # of a topic's own tokens in the logits of the head
GROWTH = 18.0  # of the residual stream's mean square, a layer, at the published widths


class RoutingSkew:
    """What a skew above 0 adds to the tensors of a checkpoint of this config."""

    def __init__(self, config: GptOssConfig, skew: float, seed: int) -> None:
        names = ORIGINAL_NAMES if config.layout == "original" else HF_NAMES
        self._skew, self._seed, self._config = skew, seed, config
        self._embedding, self._head = names["embed"], names["head"]
        self._router = re.compile(re.escape(names["router"]).replace(r"\{\}", r"(\d+)") + r"\.(weight|bias)")
        self._amplitude = AMPLITUDE * sqrt(config.num_hidden_layers)
        self._directions = self._stream("topics").choice([-1.0, 1.0], (TOPICS, config.hidden_size))

    def popularity(self, name: str) -> float:
        """The standard deviation of the popularity in a tensor; 0 in what is no router's bias."""
        router = self._router.fullmatch(name)
        return self._skew * POPULARITY if router and router[2] == "bias" else 0.0

    def topics(self, name: str, begin: int, count: int) -> np.ndarray | None:
        """float32 [count], to be added to the elements of a tensor from `begin` on; None where that is nothing."""
        width = self._config.hidden_size
        first, last = begin // width, -(-(begin + count) // width)
        scale, shares = self._shares(name, np.arange(first, last))
        if not scale:
            return None
        added: np.ndarray = (scale * (shares @ self._directions)).ravel()[begin - first * width :][:count]
        return added.astype(np.float32, copy=False)

    def _shares(self, name: str, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """How much of each direction is in these rows of a tensor: a scale, and [len(rows), TOPICS] of few bits, so
        that their sums are the same in any order, on any machine."""
        one_hot = np.eye(TOPICS)
        layers, router = self._config.num_hidden_layers, self._router.fullmatch(name)
        if name == self._embedding:
            nth = rows // TOPICS  # of the tokens of a topic
            leads_on = nth % LENGTH == LENGTH - 1
            return self._amplitude, one_hot[np.where(leads_on, rows + 1 + nth // LENGTH, rows) % TOPICS]
        if name == self._head:
            return ADVANTAGE * self._gain(layers), one_hot[rows % TOPICS]
        if router and router[2] == "weight":
            preferences = self._stream(name).standard_normal((self._config.num_experts, TOPICS))
            scale = self._skew * PREFERENCE * self._gain(int(router[1]) + 0.5)
            return scale, ((preferences * 256).round() / 256)[rows]
        return 0.0, one_hot

    def _gain(self, layers: float) -> float:
        """What makes the product of a direction and a normed hidden state of its topic 1, after so many layers."""
        return sqrt(1 + self._amplitude**2 + GROWTH * layers) / (self._amplitude * self._config.hidden_size)

    def _stream(self, name: str) -> Generator:
        return Generator(SFC64(SeedSequence([self._seed, *f"{name} skew".encode()])))
