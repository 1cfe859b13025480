"""Turns exceptions into HTTP answers, in the shape of the API that the path belongs to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal

from starlette.responses import Response

from cgpt.errors import (
    CgptError,
    CheckpointError,
    ContextLengthError,
    EngineClosed,
    InputError,
    ModelClosed,
    NumericsError,
    OutOfMemoryError,
    QueueFull,
    TokenizerError,
)

SLICE = 32  # entries of a list, each with twenty more, that take a millisecond


class ApiError(InputError):
    """A request cannot be answered.

    status: of HTTP. kind, code: OpenAI's `type` and `code` of the error. param: the field that is wrong.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param, self.headers = status, kind, code, param, headers


class Json(Response):
    """A JSON answer, of a value or, as a str, of its text. It is ASCII, so that any str can be sent, one with a lone
    surrogate too."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return (content if isinstance(content, str) else dumps(content)).encode("ascii")


def dumps(content: Any) -> str:
    """Writes plain values and dataclasses as JSON."""
    return json.dumps(content, allow_nan=False, separators=(",", ":"), default=vars)


def json_parts(content: Any) -> Iterator[str]:
    """The text of dumps(content) in parts, each made within a millisecond or so; between them others may run."""
    if is_dataclass(content):
        content = vars(content)
    if isinstance(content, dict):
        for i, (key, value) in enumerate(content.items()):
            yield f"{',' if i else '{'}{dumps(key)}:"
            yield from json_parts(value)
        yield "}" if content else "{}"
    elif isinstance(content, list) and content:
        whole = not is_dataclass(content[0])
        for i in range(0, len(content), SLICE if whole else 1):
            yield "," if i else "["
            yield from [dumps(content[i : i + SLICE])[1:-1]] if whole else json_parts(content[i])
        yield "]"
    else:
        yield dumps(content)


def sliced_dumps(content: Any) -> str:
    """The same text as dumps(content), for a thread beside others."""
    return "".join(json_parts(content))


def api_error(problem: CgptError, retry_after: int = 1) -> ApiError:
    """The error that a client gets for an exception of the package. retry_after: in seconds, where waiting helps."""
    text, wait = str(problem), {"Retry-After": str(retry_after)}
    gone = "the model's checkpoint changed on disk, so this server has closed it and ends"
    match problem:
        case ApiError():
            return problem
        case CheckpointError() | ModelClosed():  # whose texts name files of this machine
            return ApiError(gone, 503, "server_error", "checkpoint_changed", headers=wait)
        case ContextLengthError():
            return ApiError(text, code="context_length_exceeded")
        case InputError() | TokenizerError():
            return ApiError(text)
        case QueueFull():
            return ApiError(text, 429, "rate_limit_error", "rate_limit_exceeded", headers=wait)
        case EngineClosed() | OutOfMemoryError():
            return ApiError(text, 503, "server_error", "unavailable", headers=wait)
        case NumericsError():
            return ApiError(f"NumericsError: {text}", 500, "server_error", "model_failed")
    return defect(problem)


def defect(problem: Exception) -> ApiError:
    """The error that a client gets for a failure nobody expected: without its text, which is for the log."""
    message = f"a defect of the server: {type(problem).__name__}; its log says more"
    return ApiError(message, 500, "server_error", "internal_error")


@dataclass
class ErrorObject:
    message: str
    type: str
    param: str | None
    code: str | None


@dataclass
class ErrorAnswer:
    """The body of an answer to a request that is refused or fails."""

    error: ErrorObject

    @classmethod
    def of(cls, problem: ApiError) -> ErrorAnswer:
        return cls(ErrorObject(str(problem), problem.kind, problem.param, problem.code))


# Anthropic's names of what a status means; others below 500 are an invalid_request_error, above it an api_error.
ANTHROPIC_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass
class AnthropicErrorObject:
    type: str
    message: str
    details: dict[Literal["error_code"], str] | None


@dataclass
class AnthropicErrorAnswer:
    """The same in Anthropic's shape."""

    error: AnthropicErrorObject
    type: Literal["error"] = "error"

    @classmethod
    def of(cls, problem: ApiError) -> AnthropicErrorAnswer:
        other = "invalid_request_error" if problem.status < 500 else "api_error"
        # By these words clients tell that they should shorten the conversation.
        too_long = "prompt is too long: " if problem.code == "context_length_exceeded" else ""
        details: dict[Literal["error_code"], str] | None = {"error_code": problem.code} if problem.code else None
        kind = ANTHROPIC_KINDS.get(problem.status, other)
        return cls(AnthropicErrorObject(kind, f"{too_long}{problem}", details))


def error_type(path: str) -> type[ErrorAnswer] | type[AnthropicErrorAnswer]:
    """What an error is told as by the endpoint of a path, be there one or not."""
    return AnthropicErrorAnswer if f"{path}/".startswith("/v1/messages/") else ErrorAnswer


def error_response(problem: ApiError, path: str = "") -> Json:
    return Json(error_type(path).of(problem), problem.status, headers=problem.headers)
