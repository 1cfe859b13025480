"""The endpoint /v1/responses. What is answered is remembered for a while, unless the client forbids it, so that another
request may go on from there."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, with_config
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from typing_extensions import TypedDict

from cgpt.chat.turn import Turn
from cgpt.errors import CgptError
from cgpt.fields import shown
from cgpt.generation.engine import Job
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.conversation import Conversation
from cgpt.serve.errors import ApiError, api_error, dumps, sliced_dumps
from cgpt.serve.openai import protocol
from cgpt.serve.openai.input_items import SAID, InputItem, InputReference, qualified
from cgpt.serve.openai.item_list import ItemList, ItemsQuery, list_items, with_ids
from cgpt.serve.openai.items import CallItem, Item, Items, ReasoningItem, Status
from cgpt.serve.openai.logprobs import token_logprobs
from cgpt.serve.service import Service
from cgpt.serve.store import StoredItem, StoredResponse
from cgpt.serve.stream import Generated
from cgpt.serve.validation import RequestModel, Text, TextOr, integer, only, refused, size, token_limit

NO_STORE = "cannot be used: nothing of the kind is kept here; send the whole conversation as input"
GONE = "is not kept here, or no longer; send the whole conversation as input"
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"


class ResponseTool(protocol.FunctionDefinition):
    type: Literal["function"] = "function"


class NamespaceTool(RequestModel):
    """Functions under a common name, as Codex sends those of an MCP server."""

    type: Literal["namespace"]
    name: protocol.Name
    tools: Annotated[list[Annotated[ResponseTool | protocol.OtherTool, protocol.TOOL]], size("tools")] = []


class NamedTool(protocol.Echoed):
    type: Literal["function"] = "function"
    name: Text


class NamedTools(protocol.AllowedTools[NamedTool], protocol.Echoed):
    type: Literal["allowed_tools"]


class SchemaTextFormat(protocol.SchemaFormat):
    type: Literal["json_schema"]


class TextOptions(RequestModel):
    format: protocol.Format[SchemaTextFormat] = protocol.FreeFormat()


INPUT = "a text, or a list of one item at least"


class ResponseRequest(protocol.GenerationRequest):
    input: TextOr[Annotated[list[InputItem], size("messages", 1, INPUT)]] = Field(description=INPUT)
    instructions: Text = ""
    max_output_tokens: Annotated[int | None, token_limit(1)] = None
    top_logprobs: Annotated[int, integer(0, "logprobs")] = 0
    include: list[Any] = []
    tools: Annotated[
        list[Annotated[ResponseTool | NamespaceTool | protocol.OtherTool, protocol.TOOL]], size("tools")
    ] = []
    tool_choice: protocol.ToolChoice[NamedTool, NamedTools] = "auto"
    reasoning: protocol.ReasoningOptions = protocol.ReasoningOptions()
    text: TextOptions = TextOptions()
    truncation: Annotated[Any, only("auto", "disabled", wanted="must be auto or disabled")] = None
    background: Annotated[Any, only(False, wanted=NO_STORE)] = None
    previous_response_id: Text | None = None
    conversation: Annotated[Any, refused(NO_STORE)] = None
    prompt: Annotated[Any, refused(NO_STORE)] = None
    stream_options: Any = None
    parallel_tool_calls: Any = None
    max_tool_calls: Any = None

    @property
    def functions(self) -> list[ResponseTool]:
        """The functions that are offered, those of a namespace by their qualified names."""
        spaced = {qualified(*names): tool for names, tool in self._spaced()}
        renamed = [tool.model_copy(update={"name": name}) for name, tool in spaced.items()]
        return [*(tool for tool in self.tools if isinstance(tool, ResponseTool)), *renamed]

    @property
    def spaces(self) -> dict[str, tuple[str, str]]:
        """{qualified name: (namespace, name)}"""
        return {qualified(*names): names for names, _ in self._spaced()}

    def _spaced(self) -> Iterator[tuple[tuple[str, str], ResponseTool]]:
        for space in self.tools:
            if isinstance(space, NamespaceTool):
                yield from (((space.name, one.name), one) for one in space.tools if isinstance(one, ResponseTool))

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def to_conversation(self, service: Service) -> Conversation:
        """Makes the conversation; ApiError where the fields contradict each other, or name what is not remembered."""
        made = Conversation(effort=self.reasoning.effort or "medium", stops=self.stop, thought_of=service.thought_of)
        made.truncates = self.truncation == "auto"
        self.set_format(made, self.text.format)
        if len(self.functions) > (most := service.limits.tools):
            raise ApiError(f"tools holds more than {most} functions, with those of namespaces", param="tools")
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            made.set_tools(self.functions, "named", [choice.name])
        elif isinstance(choice, NamedTools):
            made.set_tools(self.functions, choice.mode, [tool.name for tool in choice.tools])
        else:
            made.set_tools(self.functions, choice)
        if self.instructions:
            made.add("system", self.instructions)
        earlier = [SAID.validate_python(item) for item in _items_until(service, self.previous_response_id)]
        for one in earlier:
            one.add_to(made, "previous_response_id")
        if isinstance(self.input, str):
            made.add("user", self.input)
            return made
        if len(earlier) + len(self.input) > (most := service.limits.messages):
            raise ApiError(f"input holds more than {most} entries, with those before", param="input")
        referred: set[str] = set()  # an item twice would be much text of few bytes
        for i, item in enumerate(self.input):
            if isinstance(item, InputReference):
                if item.id in referred:
                    raise ApiError(f"input[{i}].id {shown(item.id)} is there twice", param=f"input[{i}].id")
                referred.add(item.id)
                if (stored := service.store.get(item.id, StoredItem)) is None:
                    raise ApiError(f"input[{i}].id {shown(item.id)} {GONE}", param=f"input[{i}].id")
                self.input[i] = said = SAID.validate_json(stored.json)
            else:
                said = item
            said.add_to(made, f"input[{i}]")
        return made

    def given(self) -> str:
        """The items of the input as JSON, those that references name too, once to_conversation() has found them."""
        if isinstance(self.input, str):
            return dumps(with_ids([{"role": "user", "content": self.input}]))
        return dumps(with_ids(self.model_dump(include={"input"}, by_alias=True, exclude_unset=True)["input"]))

    def params(self, max_tokens: int) -> SamplingParams:
        """Makes the parameters of sampling, without the stops. max_tokens: where the body sets no limit."""
        logprobs = self.top_logprobs if self.top_logprobs or LOGPROBS in self.include else None
        return self.sampling(max_new_tokens=self.max_output_tokens or max_tokens, logprobs=logprobs)

    def echoed(self) -> dict[str, Any]:
        """Returns the fields that the answer repeats."""
        fields = {"max_output_tokens", "temperature", "top_p", "top_logprobs", "tool_choice"}
        return self.model_dump(include=fields, by_alias=True) | {
            "tools": [tool.model_dump(by_alias=True) for tool in self.functions],
            "instructions": self.instructions or None,
            "metadata": self.metadata if isinstance(self.metadata, dict) else {},
            "reasoning": {"effort": self.reasoning.effort or "medium", "summary": None},
            "text": self.text.model_dump(by_alias=True, exclude_none=True),
            "parallel_tool_calls": False,
            "truncation": self.truncation or "disabled",
            "previous_response_id": self.previous_response_id,
            "store": self.is_stored,
        }


def _items_until(service: Service, name: str | None) -> list[dict[str, Any]]:
    """The items of a response, its output included, and of those before it, the first one first. None: of none."""
    found: list[dict[str, Any]] = []
    while name is not None:
        if (stored := service.store.get(name, StoredResponse)) is None:
            message = f"previous_response_id {shown(name)} {GONE}"
            raise ApiError(message, code="previous_response_not_found", param="previous_response_id")
        found = [*json.loads(stored.given), *json.loads(stored.json)["output"], *found]
        if len(found) > service.limits.messages:
            message = f"holds more than {service.limits.messages} entries with those before"
            raise ApiError(f"previous_response_id {message}", param="previous_response_id")
        name = stored.previous
    return found


@dataclass
class ResponseUsage:
    input_tokens: protocol.Count
    input_tokens_details: dict[Literal["cached_tokens", "cache_write_tokens"], protocol.Count]
    output_tokens: protocol.Count
    output_tokens_details: dict[Literal["reasoning_tokens"], protocol.Count]
    total_tokens: protocol.Count


@with_config(ConfigDict(extra="allow"))
class ResponseObject(TypedDict):
    """The answer. It also repeats fields of the request; see ResponseRequest.echoed."""

    id: str
    object: Literal["response"]
    created_at: protocol.Count
    completed_at: protocol.Count | None
    model: str
    status: Literal["completed", "incomplete"]
    output: list[Item]
    usage: ResponseUsage
    error: None
    incomplete_details: dict[Literal["reason"], Literal["max_output_tokens"]] | None


class Answer:
    """The response object while it grows, and its events."""

    def __init__(self, body: ResponseRequest, turn: Turn, service: Service) -> None:
        self._turn, self._tokenizer, self._metrics = turn, service.tokenizer, service.metrics
        self._items = Items(ENCRYPTED in body.include, body.spaces, service.new_number)
        self._service, self._body = service, body
        self._number = 0  # of the next event
        self._head = {
            "id": f"resp_{service.new_number()}",
            "object": "response",
            "created_at": int(time.time()),
            "model": service.name,
            "error": None,
            "background": False,
            **body.echoed(),
        }

    def response(self, status: str) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = None if status == "in_progress" else self._usage()
        done = int(time.time()) if status == "completed" else None
        more = {"incomplete_details": cut, "output": self._items.output(), "usage": usage, "completed_at": done}
        return self._head | {"status": status} | more

    def _usage(self) -> ResponseUsage:
        request, tokens = self._turn.request, self._turn.tokens
        return ResponseUsage(
            input_tokens=len(request.prompt_ids),
            input_tokens_details={"cached_tokens": request.num_cached_tokens, "cache_write_tokens": 0},
            output_tokens=tokens,
            output_tokens_details={"reasoning_tokens": self._turn.reasoning_tokens},
            total_tokens=len(request.prompt_ids) + tokens,
        )

    async def events(self, job: Job) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields the events of the job; the last one holds the whole response."""
        async for event in job:
            deltas = self._turn.advance(event)
            if self._number == 0:
                for kind in ("response.created", "response.in_progress"):
                    yield self._event(kind, {"response": self.response("in_progress")})
            for delta in deltas:
                as_ids = self._body.return_tokens_as_token_ids
                entries = token_logprobs(self._tokenizer, self._turn.request, delta.indices, as_ids)
                for kind, data in self._items.add(delta, entries):
                    yield self._event(kind, data)
            if self._turn.finish_reason:
                self._metrics.repairs.update(self._turn.parser.repairs)
                job.cancel()
        status: Status = "incomplete" if self._turn.finish_reason == "length" else "completed"
        for kind, data in self._items.close(status):
            yield self._event(kind, data)
        response = self.response(status)
        if self._body.is_stored:
            await self._remember(response)
        yield self._event(f"response.{status}", {"response": response})

    async def _remember(self, response: dict[str, Any]) -> None:
        """Keeps the response, its items, and what was thought before its call."""
        store, items, body = self._service.store, self._items.output(), self._body
        given, whole, parts = await run_in_threadpool(
            lambda: (body.given(), sliced_dumps(response), [StoredItem(sliced_dumps(item)) for item in items])
        )
        calls = [item.call_id for item in items if isinstance(item, CallItem)]
        thought = "\n".join(item.content[0].text for item in items if isinstance(item, ReasoningItem))
        for call_id in calls:
            self._service.remember_thought(call_id, thought)
        for item, part in zip(items, parts, strict=True):
            store.put(item.id, part, len(part.json))
        ids = (*calls, *(item.id for item in items))
        found = StoredResponse(whole, given, body.previous_response_id, ids)
        store.put(response["id"], found, len(whole) + len(given))

    async def stream(self, job: Job) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Yields events(). A failure after the first of them becomes an event, as the status has been sent."""
        try:
            async for event in self.events(job):
                yield event
        except CgptError as problem:
            if self._number == 0:
                raise
            for kind, data in self._items.close("incomplete"):
                yield self._event(kind, data)
            failed = self.response("failed") | {"error": {"code": "server_error", "message": str(api_error(problem))}}
            yield self._event("response.failed", {"response": failed})

    async def whole(self, job: Job) -> Any:
        *_, (_, last) = [event async for event in self.events(job)]
        return last["response"]

    def _event(self, kind: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        self._number += 1
        return kind, {"type": kind, "sequence_number": self._number - 1, **data}


async def responses(service: Service, body: ResponseRequest) -> Generated:
    params = body.params(service.limits.max_tokens)
    (turn,) = await run_in_threadpool(lambda: body.to_conversation(service).turns(service, 1, params))
    answer = Answer(body, turn, service)
    job = service.submit([turn.request], body)
    return Generated(job, answer.stream(job) if body.stream else answer.whole(job), done=False)


@dataclass
class Deleted:
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


NUMBER = {"response_id": "$response.body#/id"}
TO_RESPONSE = {
    "response": {"operationId": "stored_response", "parameters": NUMBER},
    "items": {"operationId": "input_items", "parameters": NUMBER},
}
TO_DELETE = {"delete": {"operationId": "delete_response", "parameters": NUMBER}}


def _stored(service: Service, response_id: str) -> StoredResponse:
    if (found := service.store.get(response_id, StoredResponse)) is None:
        raise ApiError(f"the response {shown(response_id)} is not kept here, or no longer", 404, param="response_id")
    return found


async def stored_response(service: Service, response_id: str) -> Response:
    return Response(_stored(service, response_id).json, media_type="application/json")


async def input_items(service: Service, response_id: str, query: ItemsQuery) -> ItemList:
    def found() -> ItemList:
        stored = _stored(service, response_id)
        return list_items([*_items_until(service, stored.previous), *json.loads(stored.given)], query)

    return await run_in_threadpool(found)


async def delete_response(service: Service, response_id: str) -> Deleted:
    for one in (response_id, *_stored(service, response_id).ids):
        service.store.drop(one)
    return Deleted(response_id)
