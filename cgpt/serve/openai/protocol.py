"""Models that the endpoints of OpenAI's API share."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Discriminator, Field, StrictBool, Tag, ValidationInfo, model_validator
from typing_extensions import Self, TypedDict

from cgpt.chat.grammar import Grammar
from cgpt.chat.messages import EFFORTS, ResponseFormat
from cgpt.fields import parse_json_object
from cgpt.generation.request import Request
from cgpt.generation.sampling import SamplingParams
from cgpt.serve import validation
from cgpt.serve.conversation import Conversation
from cgpt.serve.errors import ApiError
from cgpt.serve.service import require_name
from cgpt.serve.validation import (
    Bounds,
    Invalid,
    JsonSchema,
    Reads,
    RequestModel,
    Text,
    integer,
    is_integer,
    number,
    only,
    refused,
)

T = TypeVar("T")
U = TypeVar("U")
TEXT_ONLY = "the model reads text only"
MAX_CHOICES = 256  # that guided_choice offers
MAX_CALLS = 128  # of one message, and tools that a choice allows
Count = Annotated[int, Field(ge=0)]


def _read_model(value: Any, bounds: Bounds) -> str | None:
    if not isinstance(value, str):
        return None
    if value:
        require_name(value, bounds["models"])
    return value


class OpenAIRequest(RequestModel):
    """The body of a request."""

    unknown_prefix = ""

    model: Annotated[str | None, Reads(_read_model, "must be a string", {"enum": "{models}"})] = None


def _read_stop(value: Any, bounds: Bounds) -> list[str] | None:
    stops = [value] if isinstance(value, str) else value
    good = isinstance(stops, list) and len(stops) <= bounds["stops"]
    if not good or not all(isinstance(one, str) and len(one) <= bounds["stop_length"] for one in stops):
        return None
    return [one for one in stops if one]


def _read_logit_bias(value: Any, bounds: Bounds) -> dict[int, float] | None:
    if not isinstance(value, dict):
        return None
    given = {key: bias for key, bias in value.items() if bias is not None}
    if len(given) > bounds["logit_biases"]:
        raise Invalid(f"may name {bounds['logit_biases']} tokens at most")
    for key, bias in given.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) <= bounds["max_token_id"]):
            raise Invalid(f"must have token ids as keys, 0 to {bounds['max_token_id']}")
        if BIAS.read(bias, bounds) is None:
            raise Invalid(BIAS.wanted, key)
    return {int(key): float(bias) for key, bias in given.items()}


def _unsigned(seed: int) -> int:
    return seed if seed == -1 else seed % 2**64  # -1 is none, as elsewhere


def _read_schema(value: Any, bounds: Bounds) -> dict[str, Any] | None:
    """Reads a JSON schema, or its text."""
    if isinstance(value, str):
        try:
            text = value.encode("utf-8", "replace")
            value = parse_json_object(
                text, Path("schema"), ApiError, max_values=bounds["values"], max_keys=bounds["keys"]
            )
        except ApiError:
            return None
    return validation.read_json_schema(value, bounds)


def _read_choices(value: Any, _: Bounds) -> list[str] | None:
    good = isinstance(value, list) and 0 < len(value) <= MAX_CHOICES
    return value if good and all(isinstance(one, str) and one for one in value) else None


SchemaOrText = Annotated[
    dict[str, Any] | None,
    Reads(_read_schema, "must be a JSON schema, an object", {"type": ["object", "string"]}),
]
CHOICES = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MAX_CHOICES}
Choices = Annotated[
    list[str] | None, Reads(_read_choices, f"must be a list of 1 to {MAX_CHOICES} texts that are not empty", CHOICES)
]


class StructuredOutputs(RequestModel):
    """What the answer must be: one of these. grammar: in GBNF or Lark."""

    unknown_prefix = "structured_outputs."

    json_: SchemaOrText = Field(default=None, alias="json")
    json_object: StrictBool = False
    regex: Text | None = None
    choice: Choices = None
    grammar: Text | None = None

    def grammar_or_schema(self) -> Grammar | dict[str, Any] | None:
        """The schema or grammar; Invalid where there are several."""
        given: list[Grammar | dict[str, Any]] = [] if self.json_ is None else [self.json_]
        if self.json_object:
            given.append({"type": "object"})
        if self.regex is not None:
            given.append(Grammar("regex", self.regex))
        if self.choice is not None:
            given.append(Grammar("choice", json.dumps(self.choice)))
        if self.grammar is not None:
            given.append(Grammar("grammar", self.grammar))
        if len(given) > 1:
            raise ApiError("structured_outputs may say one thing only", param="structured_outputs")
        return given[0] if given else None


def _none_if_off(top_k: int) -> int | None:
    return top_k if top_k > 0 else None


def _read_ids(value: Any, bounds: Bounds) -> list[int] | None:
    good = isinstance(value, list) and len(value) <= bounds["stops"] and all(map(is_integer, value))
    return value if good and all(0 <= one <= bounds["max_token_id"] for one in value) else None


BIAS = number(-100, 100)
BIASES = {
    "type": "object",
    "propertyNames": {"pattern": "^[0-9]{1,9}$"},  # and at most max_token_id
    "additionalProperties": {"anyOf": [BIAS.schema, {"type": "null"}]},
    "maxProperties": "{logit_biases}",
}
STOP = {"type": "string", "maxLength": "{stop_length}"}
STOPS = {"anyOf": [STOP, {"type": "array", "items": STOP, "maxItems": "{stops}"}]}
STOPS_WANTED = "must be a string or {stops} at most, of {stop_length} characters"
Stops = Annotated[list[str], Reads(_read_stop, STOPS_WANTED, STOPS)]
STOP_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": "{max_token_id}"}}
STOP_IDS_WANTED = "must be a list of {stops} token ids at most, 0 to {max_token_id}"


class GenerationRequest(OpenAIRequest):
    """A body that asks for text, with all options of sampling. The fields of type Any are accepted, and change nothing.

    min_tokens: before so many the text does not end by itself, nor by stop_token_ids. return_tokens_as_token_ids: write
    the tokens of log-probabilities as "token_id:123".
    """

    temperature: Annotated[float, number(0, 2)] = 1.0
    top_p: Annotated[float, number(1e-6, 1)] = 1.0
    top_k: Annotated[int | None, integer(-1, 2**31), AfterValidator(_none_if_off)] = None
    min_p: Annotated[float | None, number(0, 1)] = None
    repetition_penalty: Annotated[float | None, number(0.01, 100)] = None
    presence_penalty: Annotated[float | None, number(-2, 2)] = None
    frequency_penalty: Annotated[float | None, number(-2, 2)] = None
    logit_bias: Annotated[dict[int, float] | None, Reads(_read_logit_bias, "must be an object", BIASES)] = None
    seed: Annotated[int | None, integer(-(2**63), 2**63 - 1), AfterValidator(_unsigned)] = None
    stop: Stops = []
    stop_token_ids: Annotated[list[int], Reads(_read_ids, STOP_IDS_WANTED, STOP_IDS | {"maxItems": "{stops}"})] = []
    min_tokens: Annotated[int, integer(0, "max_tokens")] = 0
    ignore_eos: StrictBool = False
    return_tokens_as_token_ids: StrictBool = False
    structured_outputs: StructuredOutputs = StructuredOutputs()
    guided_json: SchemaOrText = None  # older names of what structured_outputs holds
    guided_regex: Text | None = None
    guided_choice: Choices = None
    guided_grammar: Text | None = None
    stream: StrictBool = False
    use_beam_search: Annotated[Any, only(False, wanted="cannot be used: texts are sampled")] = None
    bad_words: Annotated[Any, only([], wanted="cannot be used: logit_bias forbids tokens")] = None
    documents: Annotated[Any, only([], wanted=f"cannot be used: {TEXT_ONLY}")] = None
    images: Annotated[Any, only([], wanted=f"cannot be used: {TEXT_ONLY}")] = None
    files: Annotated[Any, only([], wanted=f"cannot be used: {TEXT_ONLY}")] = None
    audio: Annotated[Any, refused(f"cannot be used: {TEXT_ONLY}")] = None
    cache_prompt: Any = None  # prompts are cached, as far as there is room
    client_metadata: Any = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None
    safety_identifier: Any = None

    def grammar(self) -> Grammar | dict[str, Any] | None:
        """The grammar or JSON schema that the text must conform to, beside response_format; None if it is free."""
        given = {"json_": self.guided_json, "regex": self.guided_regex, "choice": self.guided_choice}
        given = {key: value for key, value in (given | {"grammar": self.guided_grammar}).items() if value is not None}
        return self.structured_outputs.model_copy(update=given).grammar_or_schema()

    def set_format(self, conversation: Conversation, form: FreeFormat | SchemaFormat) -> None:
        """Sets what the answer must be: what the form says, or what takes its place in the body."""
        grammar = self.grammar()
        conversation.answer_schema = answer_schema(form) if grammar is None else grammar
        if isinstance(form, SchemaFormat):
            conversation.response_format = ResponseFormat(form.name, form.json_schema_, form.description)

    def sampling(self, **others: Any) -> SamplingParams:
        """The parameters of sampling that the body has, by their names, and others."""
        given = {"stop": [*self.stop, *self.stop_token_ids], "min_new_tokens": self.min_tokens}
        return SamplingParams.pick(vars(self) | given | others, {})


class StreamOptions(RequestModel):
    """include_usage: the last chunk has the usage; continuous_usage_stats: each has it so far."""

    unknown_prefix = "stream_options."

    include_usage: StrictBool = False
    continuous_usage_stats: StrictBool = False
    include_obfuscation: Any = None

    def usage_so_far(self, count: Callable[[], Any]) -> dict[str, Any]:
        """What each chunk but the last one holds of the usage."""
        if not self.include_usage:
            return {}
        return {"usage": count() if self.continuous_usage_stats else None}


class SamplingRequest(GenerationRequest):
    """A body that may ask for several choices, and for usage in its chunks."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"stream_options": {"type": "object"}}, "required": ["stream_options"]},
            "then": {"properties": {"stream": {"const": True}}, "required": ["stream"]},
        }
    )

    n: Annotated[int, integer(1, "n")] = 1
    stream_options: StreamOptions = StreamOptions()

    @model_validator(mode="after")
    def _options_go_with_stream(self) -> Self:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise Invalid("goes with stream: true only", "stream_options")
        return self


class Head(TypedDict):
    """The fields that an answer begins with; see Service.head."""

    id: str
    created: Count
    model: str
    system_fingerprint: str


CompletionDetail = Literal["accepted_prediction_tokens", "rejected_prediction_tokens", "reasoning_tokens"]


@dataclass
class Usage:
    prompt_tokens: Count
    completion_tokens: Count
    total_tokens: Count
    prompt_tokens_details: dict[Literal["cached_tokens"], Count]
    completion_tokens_details: dict[CompletionDetail, Count]


def usage(requests: Sequence[Request], per_prompt: int, generated: int) -> Usage:
    """Counts the tokens of an answer. requests: per_prompt of each prompt, whose tokens count once. generated: the new
    tokens of all."""
    prompts = requests[::per_prompt]
    prompt = sum(len(request.prompt_ids) for request in prompts)
    cached = sum(request.num_cached_tokens for request in prompts)
    lookups = [request.lookup for request in requests if request.lookup]
    accepted = sum(lookup.num_accepted for lookup in lookups)
    details: dict[CompletionDetail, Count] = {
        "accepted_prediction_tokens": accepted,
        "rejected_prediction_tokens": sum(lookup.num_drafted for lookup in lookups) - accepted,
    }
    return Usage(prompt, generated, prompt + generated, {"cached_tokens": cached}, details)


def _read_effort(value: Any, _: Bounds) -> str | None:
    return EFFORT_NAMES.get(value.lower()) if isinstance(value, str) else None


# What clients call the efforts of other models -> what is nearest to it among the model's own.
EFFORT_NAMES = dict(zip(EFFORTS, EFFORTS, strict=True)) | {
    "none": "low", "minimal": "low", "xhigh": "high", "max": "high",
}  # fmt: skip
EFFORT_WANTED = f"must be one of {', '.join(EFFORT_NAMES)}"
Effort = Annotated[str, Reads(_read_effort, EFFORT_WANTED, {"enum": [*EFFORT_NAMES]})]


PART = validation.OneOf("type", hint=f": {TEXT_ONLY}")


class RefusalPart(RequestModel):
    type: Literal["refusal"]
    text: Text = Field(alias="refusal")


def text_of(content: str | list[Any]) -> str:
    """Joins the parts of a Content."""
    return content if isinstance(content, str) else "".join(str(part.text) for part in content)


class Echoed(RequestModel):
    """An object that /v1/responses repeats in its answer, undeclared fields included."""

    model_config = ConfigDict(extra="allow")


def tool_name(max_length: int) -> Reads:
    """Annotates the name of a tool."""
    pattern = f"[A-Za-z0-9_.-]{{1,{max_length}}}"

    def read(value: Any, _: Bounds) -> str | None:
        return value if isinstance(value, str) and re.fullmatch(pattern, value) else None

    wanted = f"must be 1 to {max_length} letters, digits, _, . or -"
    return Reads(read, wanted, {"type": "string", "pattern": f"^{pattern}$"})


Name = Annotated[str, tool_name(64)]


class ReasoningOptions(RequestModel):
    effort: Effort | None = None


class TemplateOptions(RequestModel):
    """What the chat template of another server is told."""

    unknown_prefix = "chat_template_kwargs."

    reasoning_effort: Effort | None = None


NO_OTHERS = ": there are no other tools"
TOOL = validation.OneOf("type", "function", NO_OTHERS, has_other=True)


class OtherTool(RequestModel):
    """A tool that is no function, which is left out."""

    model_config = ConfigDict(json_schema_extra={"not": "{refused_if_strict}"})

    type: Annotated[Text, Field(json_schema_extra={"not": {"const": "function"}})]

    @model_validator(mode="after")
    def _leave_out(self, info: ValidationInfo) -> Self:
        validation.leave_out(info, Invalid(f"must be function{NO_OTHERS}", "type"), f"tools.{self.type}")
        return self


class FunctionDefinition(Echoed):
    """A function that the model may call. strict: whether its arguments are constrained to the schema `parameters`."""

    name: Name
    description: Text = ""
    parameters: JsonSchema | None = None
    strict: StrictBool = False


class AllowedTools(RequestModel, Generic[T]):
    """Tools of which the model may call any, or must call one."""

    mode: Literal["auto", "required"] = "auto"
    tools: Annotated[list[T], validation.size(MAX_CALLS)] = []


def _choice_kind(value: Any) -> str:
    if not isinstance(value, dict | Echoed):
        return "<mode>"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<allowed>" if kind == "allowed_tools" else "<named>"


CHOICE_WANTED = 'must be "auto", "none", "required" with tools, or name one'
# A mode; one tool, T; or several of them, U.
ToolChoice = Annotated[
    Annotated[str, only("auto", "none", "required", wanted=CHOICE_WANTED), Tag("<mode>")]
    | Annotated[T, Tag("<named>")]
    | Annotated[U, Tag("<allowed>")],
    Discriminator(_choice_kind),
]


class FreeFormat(Echoed):
    """schema: of a json_object, as llama.cpp has it."""

    type: Literal["text", "json_object"] = "text"
    json_schema_: JsonSchema | None = Field(default=None, alias="schema")


class SchemaFormat(Echoed):
    """The JSON schema that an answer must conform to."""

    name: Text = "answer"
    description: Text | None = None
    json_schema_: JsonSchema = Field(alias="schema")


class SchemaResponseFormat(RequestModel):
    type: Literal["json_schema"]
    json_schema: SchemaFormat


def answer_schema(form: FreeFormat | SchemaFormat) -> dict[str, Any] | None:
    """The JSON schema that a format asks for; None where the text is free."""
    if isinstance(form, FreeFormat) and form.type == "text":
        return None
    return {"type": "object"} if form.json_schema_ is None else form.json_schema_


Format = Annotated[FreeFormat | T, validation.OneOf("type", "text")]
