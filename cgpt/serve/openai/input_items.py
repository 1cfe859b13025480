"""What the input of /v1/responses is made of: messages, reasoning, calls and their results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationInfo, model_validator
from typing_extensions import Self

from cgpt.serve.conversation import Conversation
from cgpt.serve.errors import dumps
from cgpt.serve.openai import protocol
from cgpt.serve.sealing import unsealed
from cgpt.serve.validation import Content, Invalid, OneOf, RequestModel, Text, leave_out


def qualified(namespace: str, name: str) -> str:
    """The name by which the model knows a function of a namespace."""
    return f"{namespace}__{name}"


class TextPart(RequestModel):
    type: Literal["input_text", "output_text", "text"]
    text: Text


Texts = Content[Annotated[TextPart | protocol.RefusalPart, protocol.PART]]


class ReasoningPart(RequestModel):
    type: Literal["reasoning_text", "text"]
    text: Text


class Entry(RequestModel):
    """An item of an input. id: by which it is listed, if it is a text."""

    id: Any = None


class InputMessage(Entry):
    """A message. phase: "commentary" for what the assistant said before a call."""

    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: Texts = ""
    phase: Any = None

    def add_to(self, conversation: Conversation, name: str) -> None:
        text = protocol.text_of(self.content)
        if self.role == "assistant" and self.phase == "commentary":
            conversation.add_said(text, "commentary")
        else:
            conversation.add(self.role, text)


class InputReasoning(Entry):
    """What the model thought. encrypted_content: the same as this server gives it, where a client sends only that."""

    type: Literal["reasoning"]
    content: Content[Annotated[ReasoningPart, protocol.PART]] = ""
    encrypted_content: Text = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        text = protocol.text_of(self.content) or unsealed(self.encrypted_content) or ""
        conversation.add_said(text, "analysis")


class InputCall(Entry):
    """A call that the model made before. arguments: JSON text."""

    type: Literal["function_call"]
    call_id: Text
    name: Text
    namespace: Text | None = None
    arguments: Text = "{}"

    def add_to(self, conversation: Conversation, name: str) -> None:
        called = self.name if self.namespace is None else qualified(self.namespace, self.name)
        conversation.add_call(self.call_id, called, self.arguments)


class InputResult(Entry):
    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Text
    output: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.call_id", self.call_id, protocol.text_of(self.output))


class InputCustomCall(Entry):
    """A call of a tool that takes any text."""

    type: Literal["custom_tool_call"]
    call_id: Text
    name: Text
    input: Text = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_call(self.call_id, self.name, self.input)


class InputShellCall(Entry):
    type: Literal["local_shell_call"]
    call_id: Text
    action: dict[str, Any] = {}

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_call(self.call_id, "local_shell", dumps(self.action))


class InputShellResult(Entry):
    """The result of a shell call, which it names by either field."""

    type: Literal["local_shell_call_output"]
    id: Text = ""
    call_id: Text = ""
    output: Texts = ""

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add_result(f"{name}.call_id", self.call_id or self.id, protocol.text_of(self.output))


class InputReference(RequestModel):
    """An item of an earlier answer that is remembered here."""

    type: Literal["item_reference"]
    id: Text


class OtherItem(Entry):
    """What other servers' tools leave in a conversation, which is left out."""

    model_config = ConfigDict(json_schema_extra={"not": "{refused_if_strict}"})

    type: Literal[
        "compaction",
        "compaction_summary",
        "web_search_call",
        "file_search_call",
        "code_interpreter_call",
        "computer_call",
        "computer_call_output",
        "image_generation_call",
        "tool_search_call",
        "tool_search_output",
        "mcp_list_tools",
        "mcp_call",
        "mcp_approval_request",
        "mcp_approval_response",
    ]

    @model_validator(mode="after")
    def _leave_out(self, info: ValidationInfo) -> Self:
        leave_out(info, Invalid("must be message, reasoning, function_call or function_call_output", "type"), self.type)
        return self

    def add_to(self, conversation: Conversation, name: str) -> None:
        pass


Said = (
    InputMessage
    | InputReasoning
    | InputCall
    | InputResult
    | InputCustomCall
    | InputShellCall
    | InputShellResult
    | OtherItem
)
InputItem = Annotated[Said | InputReference, OneOf("type", "message")]
SAID = TypeAdapter[Said](Annotated[Said, OneOf("type", "message")])
