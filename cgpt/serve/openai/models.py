"""The small endpoints: /v1/models, /tokenize, /detokenize, /health."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from cgpt.serve.errors import ApiError, Json
from cgpt.serve.openai.body import read_body

if TYPE_CHECKING:
    from cgpt.serve.app import Service


def _card(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "cgpt",
        "max_model_len": service.model.context_length,
        "chats": service.no_chat is None,
    }


async def models(request: Request) -> Json:
    return Json({"object": "list", "data": [_card(request.app.state.service)]})


async def model(request: Request) -> Json:
    service = request.app.state.service
    service.require_name(request.path_params["name"])
    return Json(_card(service))


async def health(request: Request) -> Json:
    return Json({"status": "ok"})


async def tokenize(request: Request) -> Json:
    """{"prompt" or "content": text, "special": false} -> {"tokens", "count", "max_model_len"}. special: whether the
    names of special tokens in the text stand for them."""
    service = request.app.state.service
    body = await read_body(request, service.limits)
    body.refuse_unknown({"model", "prompt", "content", "special"}, "what /tokenize takes")
    service.require_model(body)
    text = body.text("prompt", aliases=["content"])
    special = "all" if body.boolean("special", False) else ()
    ids = await run_in_threadpool(service.tokenizer.encode, text, allowed_special=special)
    return Json({"tokens": ids, "count": len(ids), "max_model_len": service.model.context_length})


async def detokenize(request: Request) -> Json:
    """{"tokens": ids} -> {"prompt": text}; bytes that are not UTF-8 become U+FFFD."""
    service = request.app.state.service
    body = await read_body(request, service.limits)
    body.refuse_unknown({"model", "tokens"}, "what /detokenize takes")
    service.require_model(body)
    ids = body.array("tokens")
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ApiError("tokens must be a list of token ids", param="tokens")
    return Json({"prompt": service.tokenizer.decode(ids)})
