"""Bounds of what one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    max_tokens: new tokens of each choice. body_bytes, body_seconds: of the body, and for it to come; head_seconds: for
    the head to come. depth: levels of lists and objects in the body, schema_depth: in a JSON schema. requests: prompts
    times best_of. logprobs: alternatives of a token. stops: stop strings, of stop_length characters at most.
    logit_biases: tokens in logit_bias. The others count what they are named after.
    """

    max_tokens: int = 16_384
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    depth: int = 100
    head_seconds: float = 10.0
    n: int = 16
    requests: int = 256
    logprobs: int = 20
    stops: int = 16
    stop_length: int = 256
    logit_biases: int = 1024
    messages: int = 4096
    tools: int = 128
    schema_depth: int = 32
