"""What a conversation in OpenAI's harmony format is made of: messages, tools, and the special tokens between them.

gpt-oss was trained on this format and answers in no other. cgpt.chat.render turns messages into token ids,
cgpt.chat.parse what the model writes into messages again. https://cookbook.openai.com/articles/openai-harmony
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cgpt.chat import IDENTITY, KNOWLEDGE_CUTOFF
from cgpt.errors import ChatError, InputError
from cgpt.fields import shown
from cgpt.tokenizer.tokenizer import Tokenizer

CHANNELS = ("analysis", "commentary", "final")
EFFORTS = ("low", "medium", "high")
ROLES = ("system", "developer", "user", "assistant", "tool")
CONSTRAIN = "<|constrain|>"  # begins a content_type that the model keeps to a grammar, as in "<|constrain|>json"


def _require(what: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise InputError(f"{what} is {wanted}, not {shown(value)}")


def _require_texts(owner: str, content: Any, *names: str) -> None:
    """Raises InputError where one of these fields is neither a text nor None."""
    for name in names:
        _require(f"the {name} of a {owner}", getattr(content, name), (str, type(None)), "a text or None")


@dataclass(frozen=True)
class Tool:
    """A function that the model may call. parameters: the JSON schema of its arguments, an object; None where it takes
    none. function: what cgpt.chat.functions runs for it, if anything."""

    name: str
    description: str = ""
    parameters: dict[str, Any] | None = None
    function: Callable[..., Any] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _require("a tool's name", self.name, str, "made of letters, digits, _ and -")
        _require(f"the description of the tool {self.name}", self.description, str, "a text")
        _require(f"parameters of the tool {self.name}", self.parameters, (dict, type(None)), "a JSON schema, a dict")


@dataclass(frozen=True)
class Namespace:
    """Tools under a common name; the recipient of a call is NAME.TOOL. Without tools the description says how to talk
    to it, and the recipient is the name alone."""

    name: str
    description: str | None = None
    tools: tuple[Tool, ...] = ()

    def __post_init__(self) -> None:
        _require("the name of a namespace", self.name, str, "a text")
        _require_texts("namespace", self, "description")
        for tool in self.tools:
            _require("each of the tools of a namespace", tool, Tool, "a Tool")

    @property
    def recipients(self) -> list[str]:
        """Whom a call may name."""
        return [f"{self.name}.{tool.name}" for tool in self.tools] or [self.name]


@dataclass(frozen=True)
class System:
    """The content of the system message. None leaves a line out.

    identity: its first line. date: today's, as in "2025-08-05". reasoning: "low", "medium" or "high".
    channels: those that the model may use; channel_required: each message must name one.
    """

    identity: str | None = IDENTITY
    knowledge_cutoff: str | None = KNOWLEDGE_CUTOFF
    date: str | None = None
    reasoning: str | None = "medium"
    channels: tuple[str, ...] = CHANNELS
    channel_required: bool = True
    namespaces: tuple[Namespace, ...] = ()

    def __post_init__(self) -> None:
        if self.reasoning is not None and not (isinstance(self.reasoning, str) and self.reasoning in EFFORTS):
            raise InputError(f"reasoning is one of {', '.join(EFFORTS)}, not {shown(self.reasoning)}")
        _require_texts("system message", self, "identity", "knowledge_cutoff", "date")


@dataclass(frozen=True)
class ResponseFormat:
    """The JSON schema that the final answer shall have: a request to the model. cgpt.chat.grammar can enforce it."""

    name: str
    schema: dict[str, Any]
    description: str | None = None

    def __post_init__(self) -> None:
        _require("the schema of a response format", self.schema, dict, "a JSON schema, a dict")
        _require_texts("response format", self, "name", "description")


@dataclass(frozen=True)
class Developer:
    """The content of the developer message: what elsewhere is called the system prompt, and the tools.

    tools: functions, which make the namespace "functions". namespaces: any others.
    """

    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    response_format: ResponseFormat | None = None

    def __post_init__(self) -> None:
        _require_texts("developer message", self, "instructions")
        _require("response_format", self.response_format, (ResponseFormat, type(None)), "a ResponseFormat or None")

    @property
    def all_namespaces(self) -> tuple[Namespace, ...]:
        """The namespaces, that of the functions too."""
        return (*self.namespaces, Namespace("functions", tools=self.tools)) if self.tools else self.namespaces


@dataclass(frozen=True)
class Message:
    """One message.

    role: "system", "developer", "user", "assistant" or "tool"; the latter has the tool's name, "functions.NAME".
    content: a text; of a system or developer message a System or Developer too.
    channel: "analysis" for reasoning, "final" for the answer, "commentary" for calls and what is said around them.
    recipient: whom it is for: the tool of a call, "assistant" for a tool's result; None, everybody.
    content_type: as in "json" or "<|constrain|>json". name: of the author, if it has one.
    """

    role: str
    content: str | System | Developer
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.role, str) or self.role not in ROLES:
            raise InputError(f"the role of a message is one of {', '.join(ROLES)}, not {shown(self.role)}")
        if self.role == "tool" and not self.name:
            raise InputError('a message of role "tool" needs the name of the tool, as in name="functions.get_weather"')
        _require("the content of a message", self.content, (str, System, Developer), "a text, System or Developer")
        _require_texts("message", self, "channel", "recipient", "content_type", "name")


def tool_result(tool: str, result: str, channel: str = "commentary") -> Message:
    """The message that gives a call's result back; tool: the recipient of the call. channel: "analysis" for the tools
    of cgpt.chat.builtin_tools, which the model calls there."""
    return Message("tool", result, channel, "assistant", name=tool)


class SpecialTokens:
    """The ids of the format's special tokens in one vocabulary; ChatError if it lacks one."""

    NAMES = ("start", "end", "message", "channel", "constrain", "return", "call")

    def __init__(self, tokenizer: Tokenizer) -> None:
        known = tokenizer.special_tokens
        missing = [f"<|{name}|>" for name in self.NAMES if f"<|{name}|>" not in known]
        if missing:
            raise ChatError(
                f"the vocabulary {tokenizer.name} has no {missing[0]}: this model does not speak the harmony format "
                f"and cannot chat; continue a text with generate() instead"
            )
        ids = [known[f"<|{name}|>"] for name in self.NAMES]
        self.start, self.end, self.message, self.channel, self.constrain, self.return_, self.call = ids
        self.stops = (self.return_, self.call)  # where the model waits for a user or a tool
        self.ends = (self.end, self.return_, self.call)  # the ends of a message
