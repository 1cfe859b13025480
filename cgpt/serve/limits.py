"""Bounds of what one request may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of one request.

    max_tokens: new tokens of each choice. body_bytes, body_seconds: of the body, and for it to come; head_seconds: for
    the head to come. write_seconds: for a client to read some 48 KB of what waits for it. values, keys, depth: values
    in the body, keys in it, and levels of lists and objects; schema_depth: in a JSON schema. ids: tokens that /tokenize
    gives and /detokenize takes. requests: prompts times best_of. logprobs: alternatives of a token. stops: stop
    strings, of stop_length characters at most. logit_biases: tokens in logit_bias. markdown: characters that /markdown
    renders. stored_bytes, stored_entries, stored_seconds: of what is remembered of answers. The others count what they
    are named after.
    """

    max_tokens: int = 16_384
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    values: int = 1 << 18
    keys: int = 1 << 16
    depth: int = 100
    head_seconds: float = 10.0
    write_seconds: float = 60.0
    ids: int = 1 << 18
    n: int = 16
    requests: int = 256
    logprobs: int = 20
    stops: int = 16
    stop_length: int = 256
    logit_biases: int = 1024
    messages: int = 4096
    tools: int = 128
    schema_depth: int = 32
    markdown: int = 1 << 16
    stored_bytes: int = 64 << 20
    stored_entries: int = 16_384
    stored_seconds: float = 3600.0
