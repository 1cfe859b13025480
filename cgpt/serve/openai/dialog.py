"""What /v1/chat/completions and /v1/responses have in common: a conversation, read, and the requests it makes."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cgpt.chat.grammar import Beginning, Guide
from cgpt.chat.messages import CONSTRAIN, EFFORTS, Developer, Message, ResponseFormat, SpecialTokens, System, Tool
from cgpt.chat.render import render_conversation
from cgpt.fields import shown
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.errors import ApiError
from cgpt.serve.limits import Limits
from cgpt.serve.openai.body import Body, is_deeper
from cgpt.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from cgpt.serve.app import Service

NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
CALLS = 128  # the most of one message, and of the tools that a choice allows


@dataclass
class Dialog:
    """A conversation, and what is asked of the next turn. options: of SamplingParams, but the stops.

    forced: the functions of which one must be called. strict: the schemas that arguments are kept to, by function.
    answer_schema: what the final text is kept to. calls: the functions of earlier calls by their ids
    """

    tools: list[Tool] = field(default_factory=list)
    strict: dict[str, dict[str, Any]] = field(default_factory=dict)
    forced: list[str] = field(default_factory=list)
    answer_schema: dict[str, Any] | None = None
    effort: str = "medium"
    response_format: ResponseFormat | None = None
    stops: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    instructions: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    calls: dict[str, str] = field(default_factory=dict)
    seed: list[int] = field(default_factory=list)  # the ids at the prompt's end that `forced` begins the turn with

    def add(self, role: str, text: str) -> None:
        """role: user, assistant, system or developer; the latter two stand at the beginning or change it later."""
        if role in ("system", "developer"):
            if self.messages:
                self.messages.append(Message("developer", Developer(text)))
            else:
                self.instructions.append(text)
        else:
            self.messages.append(Message(role, text, "final" if role == "assistant" else None))

    def add_reasoning(self, text: str) -> None:
        self.messages.append(Message("assistant", text, "analysis"))

    def add_preamble(self, text: str) -> None:
        """What the assistant said before a call."""
        self.messages.append(Message("assistant", text, "commentary"))

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        self.calls[call_id] = name
        for i in reversed(range(len(self.messages))):  # no answer ends a turn that goes on with a call
            if self.messages[i].role in ("user", "developer"):
                break
            if self.messages[i].channel == "final":
                self.messages[i] = replace(self.messages[i], channel="commentary")
        self.messages.append(Message("assistant", arguments, "commentary", f"functions.{name}", f"{CONSTRAIN}json"))

    def add_result(self, where: str, call_id: str, text: str) -> None:
        """where: the parameter that names the call, for the error if there was none such."""
        if call_id not in self.calls:
            raise ApiError(f"{where} {shown(call_id)} is no earlier call's", param=where)
        name = f"functions.{self.calls[call_id]}"
        self.messages.append(Message("tool", text, "commentary", "assistant", name=name))

    def requests(self, service: Service, n: int, seed: int | None) -> list[Request]:
        """n of them, of seeds one after another. ChatError where the model has no chat format."""
        special = SpecialTokens(service.tokenizer)
        head = [Message("system", System(reasoning=self.effort))]
        developer = Developer("\n\n".join(self.instructions) or None, tuple(self.tools), (), self.response_format)
        if developer != Developer():
            head.append(Message("developer", developer))
        ids = render_conversation(service.tokenizer, [*head, *self.messages])
        start = Beginning([_call_header(service.tokenizer, special, name) for name in self.forced])
        self.seed = start.seed
        answer, calls = None, {}
        if self.answer_schema is not None or self.strict:
            answer = None if self.answer_schema is None else service.grammars.compile(self.answer_schema)
            calls = {name: service.grammars.compile(schema) for name, schema in self.strict.items()}
        made = []
        for i in range(n):
            constraint: Guide | Beginning | None = None
            if answer or calls:
                constraint = Guide(service.grammars, answer, calls, self.seed)
            if len(self.forced) > 1:
                constraint = Beginning(start.beginnings, constraint)
            params = SamplingParams(
                seed=None if seed is None else seed + i, stop=special.stops, detokenize=False, **self.options
            )
            made.append(Request(service.model, ids + self.seed, params, constraint=constraint))
        return made

    def add_tool(self, body: Body, limits: Limits) -> None:
        """body: a function's name, description, parameters, strict."""
        tool = _read_function(body, limits)
        self.tools.append(tool)
        if body.boolean("strict", False):
            self.strict[tool.name] = tool.parameters or {"type": "object", "additionalProperties": False}

    def set_format(self, form: Body, schema: Body | None, limits: Limits) -> None:
        """form: {"type": "text", "json_object" or "json_schema"}; schema: what holds the latter's "schema"."""
        kind = form.text("type", "text")
        if kind == "json_object":
            self.answer_schema = {"type": "object"}
        elif kind == "json_schema" and schema is not None:
            require_shallow(schema, "schema", limits)
            if (section := schema.section("schema")) is None:
                raise schema.refuse("schema", "is missing")
            self.answer_schema = schema.values["schema"]
            name, about = schema.text("name", "answer"), schema.text("description", None)
            self.response_format = ResponseFormat(name, section.values, about)
        elif kind != "text":
            raise form.refuse("type", "must be text, json_object or json_schema with a schema")


def _call_header(tokenizer: Tokenizer, special: SpecialTokens, name: str) -> list[int]:
    """What the assistant's message begins with where it calls a function, after its role."""
    recipient = tokenizer.encode(f"commentary to=functions.{name} ")
    return [special.channel, *recipient, special.constrain, *tokenizer.encode("json"), special.message]


def read_effort(body: Body, key: str) -> str:
    effort = body.text(key, "medium")
    if effort not in EFFORTS:
        raise body.refuse(key, f"must be one of {', '.join(EFFORTS)}")
    return effort


def read_text(body: Body, key: str, kinds: set[str]) -> str:
    """A text, or a list of parts of these kinds that hold one each."""
    value = body.values.get(key, "")
    if isinstance(value, str):
        return value
    texts = []
    for part in body.objects(key, 1024):
        kind = part.text("type")
        if kind not in kinds:
            raise part.refuse("type", f"must be {' or '.join(sorted(kinds))}: the model reads text only")
        texts.append(part.text("refusal" if kind == "refusal" else "text"))
    return "".join(texts)


def _read_function(body: Body, limits: Limits) -> Tool:
    """A function's name, description and parameters."""
    name, schema = body.text("name"), body.values.get("parameters")
    if not NAME.fullmatch(name):
        raise body.refuse("name", "must be 1 to 64 letters, digits, _, . or -")
    if schema is not None and not isinstance(schema, dict):
        raise body.refuse("parameters", "must be a JSON schema, an object")
    require_shallow(body, "parameters", limits)
    return Tool(name, body.text("description", ""), schema)


def require_shallow(body: Body, key: str, limits: Limits) -> None:
    """Raises where what `key` holds is nested deeper than schemas may be."""
    if is_deeper(body.values.get(key), limits.schema_depth):
        raise ApiError(f"{body.name(key)} is nested deeper than {limits.schema_depth} levels", param=key)


def choose_tools(body: Body, dialog: Dialog, named: Any) -> None:
    """tool_choice: "auto", "none", "required", an object in which `named` finds the function's name, or "allowed_tools"
    with such objects, of which "auto" or "required" holds."""
    choice = body.values.get("tool_choice", "auto")
    names = [tool.name for tool in dialog.tools]
    if len(set(names)) < len(names):
        raise body.refuse("tools", "must have names of their own")
    if isinstance(choice, dict):
        chosen = Body(choice, body.name("tool_choice") + ".")
        several = chosen.text("type", "function") == "allowed_tools"
        if several:
            chosen = chosen.section("allowed_tools") or chosen  # /v1/chat/completions has them in there
        allowed = [named(one) for one in chosen.objects("tools", CALLS, [])] if several else [named(chosen)]
        if not allowed or not set(allowed) <= set(names):
            raise body.refuse("tool_choice", "must name one of the tools")
        if not several or _is_required(chosen):
            dialog.forced = allowed
        if several:
            dialog.tools = [tool for tool in dialog.tools if tool.name in allowed]
    elif choice == "required" and names:
        dialog.forced = names
    elif choice == "none":
        dialog.tools = []
    elif choice != "auto":
        raise body.refuse("tool_choice", 'must be "auto", "none", "required" with tools, or name one')


def _is_required(allowed: Body) -> bool:
    mode = allowed.text("mode", "auto")
    if mode not in ("auto", "required"):
        raise allowed.refuse("mode", "must be auto or required")
    return mode == "required"
