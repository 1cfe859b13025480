"""What one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """max_tokens: new tokens of each choice. requests: prompts times best_of. depth: of a body's JSON. The rest says
    its name."""

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
