"""The body of /v1/messages: a conversation in Anthropic's blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, ValidationInfo, model_validator
from typing_extensions import Self

from cgpt.chat.messages import ResponseFormat
from cgpt.generation.sampling import SamplingParams
from cgpt.serve.conversation import Conversation
from cgpt.serve.errors import ApiError
from cgpt.serve.openai.protocol import PART, Effort, GenerationRequest, Stops, tool_name
from cgpt.serve.sealing import unsealed
from cgpt.serve.service import Service
from cgpt.serve.validation import (
    Bounds,
    Content,
    Invalid,
    JsonSchema,
    OneOf,
    Reads,
    RequestModel,
    Text,
    integer,
    leave_out,
    size,
    token_limit,
)

BILLING = "x-anthropic-billing-header:"  # Claude Code's first block: no instruction, and another one in each session
INVALID_JSON = "INVALID_JSON"  # the key under which arguments travel that are no JSON object, as Anthropic advises
# Budgets of thinking, in tokens, from which on they mean this effort; below them, low. As LiteLLM's proxy has it.
MEDIUM_BUDGET, HIGH_BUDGET = 5_000, 10_000


class InputText(RequestModel):
    type: Literal["text"]
    text: Text


class InputThinking(RequestModel):
    """What the model thought. signature: holds the same, for clients that were not shown it; see sealing."""

    type: Literal["thinking"]
    thinking: Text = ""
    signature: Text = ""


class RedactedThinking(RequestModel):
    """What another model thought, in secret; this one has nothing of it."""

    type: Literal["redacted_thinking"]


class InputToolUse(RequestModel):
    type: Literal["tool_use"]
    id: Text
    name: Text
    input: dict[str, Any] = {}

    def arguments(self, written: str | None) -> str:
        """The text that the model wrote. written: what is remembered of it, which counts if the client did not change
        the input; other text of the same JSON would have to be read anew."""
        if written and json.loads(written) == self.input:
            return written
        only = self.input.get(INVALID_JSON) if len(self.input) == 1 else None
        return only if isinstance(only, str) else json.dumps(self.input, ensure_ascii=False, separators=(",", ":"))


class OtherBlock(RequestModel):
    """What other servers' tools leave in a conversation, which is left out."""

    model_config = ConfigDict(json_schema_extra={"not": "{refused_if_strict}"})

    type: Literal[
        "server_tool_use",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "tool_reference",
        "mcp_tool_use",
        "mcp_tool_result",
        "container_upload",
    ]

    @model_validator(mode="after")
    def _leave_out(self, info: ValidationInfo) -> Self:
        leave_out(info, Invalid("must be text, thinking, tool_use or tool_result", "type"), self.type)
        return self


class InputToolResult(RequestModel):
    type: Literal["tool_result"]
    tool_use_id: Text
    content: Content[Annotated[InputText | OtherBlock, PART]] = ""
    is_error: StrictBool = False

    @property
    def text(self) -> str:
        return ("error: " if self.is_error else "") + text_of(self.content)


def text_of(content: str | Sequence[RequestModel]) -> str:
    """Joins the texts of a content, as paragraphs."""
    return content if isinstance(content, str) else "\n\n".join(c.text for c in content if isinstance(c, InputText))


class UserMessage(RequestModel):
    """What the user says, and the results of calls."""

    role: Literal["user"]
    content: Content[Annotated[InputText | InputToolResult | OtherBlock, PART]]

    def add_to(self, conversation: Conversation, name: str) -> None:
        said: list[InputText] = []
        for i, block in enumerate([] if isinstance(self.content, str) else self.content):
            if isinstance(block, InputText):
                said.append(block)
            elif isinstance(block, InputToolResult):
                if said:
                    conversation.add("user", text_of(said))
                said = []
                conversation.add_result(f"{name}.content[{i}].tool_use_id", block.tool_use_id, block.text)
        if said or isinstance(self.content, str):
            conversation.add("user", text_of(said or self.content))


class AssistantMessage(RequestModel):
    """What the model wrote before."""

    role: Literal["assistant"]
    content: Content[Annotated[InputText | InputThinking | RedactedThinking | InputToolUse | OtherBlock, PART]]

    def add_to(self, conversation: Conversation, name: str) -> None:
        if isinstance(self.content, str):
            conversation.add_said(self.content, "final")
            return
        for block in self.content:
            if isinstance(block, InputText):
                conversation.add_said(block.text, "final")
            elif isinstance(block, InputThinking):
                conversation.add_said(block.thinking or unsealed(block.signature) or "", "analysis")
            elif isinstance(block, InputToolUse):
                arguments = block.arguments(conversation.arguments_of(block.id))
                conversation.add_call(block.id, block.name, arguments)


class SystemMessage(RequestModel):
    """Instructions for all that follows."""

    role: Literal["system"]
    content: Content[Annotated[InputText, PART]]

    def add_to(self, conversation: Conversation, name: str) -> None:
        conversation.add("system", text_of(self.content))


InputMessage = Annotated[UserMessage | AssistantMessage | SystemMessage, OneOf("role")]


class CustomTool(RequestModel):
    """A function that the model may call. eager_input_streaming: whether its input is sent as it comes, be it JSON or
    not; else once it is known to be."""

    type: Literal["custom"] = "custom"
    name: Annotated[str, tool_name(128)]
    description: Text = ""
    parameters: JsonSchema | None = Field(default=None, alias="input_schema")
    strict: StrictBool = False
    eager_input_streaming: StrictBool = False


NO_OTHERS = ": there are no other tools"


class OtherTool(RequestModel):
    """A tool of Anthropic's servers, or one that only its models know, which is left out."""

    model_config = ConfigDict(json_schema_extra={"not": "{refused_if_strict}"})

    type: Annotated[Text, Field(json_schema_extra={"not": {"const": "custom"}})]

    @model_validator(mode="after")
    def _leave_out(self, info: ValidationInfo) -> Self:
        leave_out(info, Invalid(f"must be custom{NO_OTHERS}", "type"), f"tools.{self.type}")
        return self


class ToolMode(RequestModel):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: Any = None  # a turn has one call in any case


class NamedTool(RequestModel):
    type: Literal["tool"]
    name: Text
    disable_parallel_tool_use: Any = None


class ThinkingOptions(RequestModel):
    """display: "omitted" for signatures without the text."""

    unknown_prefix = "thinking."

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: Annotated[int | None, integer(0, 2**63 - 1)] = None
    display: Any = None

    @property
    def effort(self) -> str:
        """The effort of the model that is nearest to it. The model always thinks."""
        if self.type == "disabled":
            return "low"
        if self.budget_tokens is None:
            return "medium"
        return "low" if self.budget_tokens < MEDIUM_BUDGET else "medium" if self.budget_tokens < HIGH_BUDGET else "high"


class JsonFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema_: JsonSchema = Field(alias="schema")


class OutputConfig(RequestModel):
    unknown_prefix = "output_config."

    effort: Effort | None = None
    format: JsonFormat | None = None


def _read_thread(value: Any, _: Bounds) -> Any:
    # By this code Anthropic's client knows that it has to send whole conversations.
    why = "thread cannot be used: no conversation is kept here; send all of its messages"
    raise ApiError(why, code="thread_unsupported_request", param="thread")


MESSAGES = "a list of one message at least"


class MessagesRequest(GenerationRequest):
    """The body of a request. output_format: an older place of output_config.format."""

    messages: Annotated[list[InputMessage], size("messages", 1, MESSAGES)] = Field(description=MESSAGES)
    max_tokens: Annotated[int | None, token_limit(1)] = None
    system: Content[Annotated[InputText, PART]] = ""
    stop_sequences: Stops = []
    tools: Annotated[
        list[Annotated[CustomTool | OtherTool, OneOf("type", "custom", NO_OTHERS, has_other=True)]], size("tools")
    ] = []
    tool_choice: Annotated[ToolMode | NamedTool, OneOf("type")] = ToolMode(type="auto")
    thinking: ThinkingOptions = ThinkingOptions(type="disabled")
    output_config: OutputConfig = OutputConfig()
    output_format: JsonFormat | None = None
    thread: Annotated[Any, Reads(_read_thread, "", {"not": {}})] = None
    cache_control: Any = None  # prompts are cached, as far as there is room

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.messages[-1], AssistantMessage):
            why = "must not end with one of the assistant: the model begins its message anew"
            raise Invalid(why, "messages", shows_value=False)
        return self

    @property
    def functions(self) -> list[CustomTool]:
        return [tool for tool in self.tools if isinstance(tool, CustomTool)]

    def to_conversation(self, service: Service) -> Conversation:
        """Makes the conversation; ApiError where the fields contradict each other."""
        default = self.thinking.effort if "thinking" in self.model_fields_set else "medium"
        stops = [*self.stop, *self.stop_sequences]
        made = Conversation(
            effort=self.output_config.effort or default,
            stops=stops,
            thought_of=service.thought_of,
            arguments_of=service.arguments_of,
        )
        made.answer_schema = self.grammar()
        if form := self.output_config.format or self.output_format:
            made.response_format = ResponseFormat("answer", form.json_schema_)
            made.answer_schema = made.answer_schema or form.json_schema_
        choice = self.tool_choice
        if isinstance(choice, NamedTool):
            made.set_tools(self.functions, "named", [choice.name])
        else:
            made.set_tools(self.functions, "required" if choice.type == "any" else choice.type)
        for block in [InputText(type="text", text=self.system)] if isinstance(self.system, str) else self.system:
            if block.text and not block.text.startswith(BILLING):
                made.add("system", block.text)
        for i, message in enumerate(self.messages):
            message.add_to(made, f"messages[{i}]")
        return made

    def params(self, max_tokens: int) -> SamplingParams:
        """Makes the parameters of sampling, without the stops. max_tokens: where the body sets no limit."""
        return self.sampling(max_new_tokens=self.max_tokens or max_tokens)
