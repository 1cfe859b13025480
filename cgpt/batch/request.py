"""A line of a batch and its answer, in OpenAI's format (https://platform.openai.com/docs/api-reference/batch).

    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "ROMEO:", "max_tokens": 20}}
    {"id": "batch_req_..", "custom_id": "a", "error": null,
     "response": {"status_code": 200, "request_id": "..", "body": {..}}}

An `error` is about the line; what is wrong in the body is in the response, as the server has it. The id of an answer is
made of hashes of the line and of what answers: by it a batch that goes on knows what was answered.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypedDict

from cgpt.errors import InputError
from cgpt.fields import json_levels, parse_json_object, shown
from cgpt.serve.limits import Limits

URLS = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
MAX_LINE = Limits.body_bytes + (64 << 10)  # bytes
MAX_DEPTH = Limits.depth + 1  # levels; the body is one below
ID_PREFIX, HASH_BYTES = "batch_req_", 8


class BatchResponse(TypedDict):
    """An answer as the server gives it. body: its JSON."""

    status_code: int
    request_id: str
    body: Any


class BatchError(TypedDict):
    """What is wrong with a line, by its number from 1. param: the field of the line."""

    code: str
    message: str
    param: str | None
    line: int


class BatchRecord(TypedDict):
    """A line of the output: a response, or the error of the line. custom_id: None where the line has none."""

    id: str
    custom_id: str | None
    response: BatchResponse | None
    error: BatchError | None


class LineError(InputError):
    """A line of a batch cannot be used."""

    def __init__(self, message: str, code: str = "invalid_json_line", param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.param = code, param


@dataclass
class BatchRequest:
    """A line of the input.

    number: of the line, from 1. nbytes: of it. id: of the record. refusal: what is wrong with the line; then url and
    body may be empty.
    """

    number: int
    nbytes: int
    id: str
    custom_id: str | None = None
    url: str = ""
    body: dict[str, Any] = field(default_factory=dict)
    refusal: BatchError | None = None

    def record(self, response: BatchResponse | None) -> BatchRecord:
        """The line of the output."""
        return {"id": self.id, "custom_id": self.custom_id, "response": response, "error": self.refusal}

    def refuse(self, problem: LineError) -> None:
        """Makes what is wrong with the line its refusal."""
        at = f"line {self.number}: "
        self.refusal = {
            "code": problem.code,
            "message": at + str(problem).removeprefix(at),
            "param": problem.param,
            "line": self.number,
        }


def parse_line(line: bytes, number: int, fingerprint: bytes = b"") -> BatchRequest:
    """Reads a line; what is wrong with it becomes its refusal. fingerprint: of what answers, see Runner."""
    made = BatchRequest(number, len(line), f"{ID_PREFIX}{content_hash(line).hex()}{fingerprint.hex()}")
    try:
        if len(line) > MAX_LINE:
            raise LineError(f"it has more than {MAX_LINE} bytes; a request of a batch has less")
        values = parse_json_object(
            line.strip(), f"line {number}", LineError, max_values=Limits.values, max_keys=Limits.keys
        )
        if next(islice(json_levels(values), MAX_DEPTH, None), None) is not None:
            raise LineError(f"it is nested deeper than {MAX_DEPTH} levels")
        _read(made, values)
    except LineError as problem:
        made.refuse(problem)
    return made


def _read(made: BatchRequest, values: dict[str, Any]) -> None:
    custom_id, method, url, body = (values.get(name) for name in ("custom_id", "method", "url", "body"))
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError(f"custom_id must be a string, found {shown(custom_id)}", "invalid_custom_id", "custom_id")
    made.custom_id = custom_id
    if method != "POST":
        raise LineError(f'method must be "POST", found {shown(method)}', "invalid_method", "method")
    if url not in URLS:
        raise LineError(f"url must be {', '.join(URLS[:-1])} or {URLS[-1]}, found {shown(url)}", "invalid_url", "url")
    if not isinstance(body, dict):
        raise LineError(f"body must be an object, found {shown(body)}", "invalid_body", "body")
    if body.get("stream") is True:
        raise LineError("body.stream cannot be used: a batch has whole answers", "invalid_body", "body.stream")
    made.url, made.body = url, body


def content_hash(line: bytes) -> bytes:
    """A hash of what a line holds, without white space around it."""
    return hashlib.blake2b(line.strip(), digest_size=HASH_BYTES).digest()


def custom_id_hash(custom_id: str | None, number: int) -> bytes:
    """16 bytes by which a line is found: of its custom_id, or of its number where it has none."""
    what = f"line {number}" if custom_id is None else f"id {custom_id}"
    return hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=16).digest()
