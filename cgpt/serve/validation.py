"""Request bodies as pydantic models, from which both validation and /openapi.json come.

pydantic walks the structure; the annotations here say what a value may be, in one place for the check, the message and
the schema. Limits that differ from server to server are named in braces, "{max_tokens}", and come from the `Bounds`
that a body is validated with. A client is never shown pydantic's own words.

What a client sends that has no meaning here is left out, and its name added to bounds["ignored"]; it is refused where
bounds["strict"] holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, cast, get_args

import pydantic
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, ErrorDetails, core_schema

from cgpt.fields import shown
from cgpt.serve.body import is_deeper
from cgpt.serve.errors import ApiError

Bounds = Mapping[str, Any]
Schema = dict[str, Any]
M = TypeVar("M", bound="RequestModel")
P = TypeVar("P")

# By pydantic's name of an error, or the class that it asks for.
_TYPES = {"bool": "true or false", "list": "a list", "model": "an object", "dict": "an object", "str": "a string"}


class Invalid(ValueError):
    """A value is wrong. why: the rest of the message, after the name of the value, or of the field `key` in it.
    shows_value: whether the message ends with the value."""

    def __init__(self, why: str, key: str | None = None, shows_value: bool = True) -> None:
        super().__init__(why)
        self.why, self.key, self.shows_value = why, key, shows_value


class RequestModel(pydantic.BaseModel):
    """An object in the body of a request. A field that is null counts as absent.

    unknown_prefix: with what before them unknown fields are left out by name; None, where nobody is told of them.
    """

    model_config = pydantic.ConfigDict(extra="ignore")
    unknown_prefix: ClassVar[str | None] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _prepare(cls, values: Any, info: ValidationInfo) -> Any:
        if not isinstance(values, dict):
            return values
        present = {key: value for key, value in values.items() if value is not None}
        if cls.unknown_prefix is not None and (unknown := sorted(present.keys() - cls._keys())):
            more = "".join(f", nor {shown(key)}" for key in unknown[1:5])
            why = f": no such key{more}; /openapi.json has those there are"
            refusal = Invalid(why, unknown[0], shows_value=False)
            leave_out(info, refusal, *(f"{cls.unknown_prefix}{key}" for key in unknown))
        return present

    @classmethod
    def _keys(cls) -> set[str]:
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        schema = handler(core)
        found = handler.resolve_ref_schema(schema)
        properties = found.get("properties", {})
        for name in properties.keys() - set(found.get("required", ())):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
        if cls.unknown_prefix is not None:
            found["additionalProperties"] = "{unknown_fields}"
        return schema

    def require_equal(self, name: str, alias: str) -> None:
        """Raises Invalid where two names of one thing hold different values."""
        value, other = getattr(self, name), getattr(self, alias)
        if value is not None and other is not None and value != other:
            raise Invalid(f"must equal {name} {shown(value)}, its other name", alias)


def leave_out(info: ValidationInfo, refusal: Invalid, *names: str) -> None:
    """Notes what of the body is left out, by these names; raises `refusal` where the server is strict."""
    bounds: Bounds = info.context or {}
    if bounds.get("strict"):
        raise refusal
    bounds.get("ignored", set()).update(names)


@dataclass(frozen=True, eq=False)
class Reads:
    """An annotation of a field whose value a function reads.

    read: takes the JSON value and the bounds and returns the field's value; None where the JSON value is wrong.
    wanted: what it must be, for the message. schema: the same as a JSON schema. then: whether pydantic goes on to
    validate the result by the field's type.
    """

    read: Callable[[Any, Bounds], Any]
    wanted: str
    schema: Schema
    then: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if self.then:
            inner: Any = handler(source)
            if inner["type"] == "list":
                inner["fail_fast"] = True  # one wrong entry is enough; a body may have a million of them
            return core_schema.with_info_before_validator_function(self._validate, inner)
        return core_schema.with_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> Schema:
        return (handler(core) if self.then else {}) | copy.deepcopy(self.schema)

    def _validate(self, value: Any, info: ValidationInfo) -> Any:
        bounds: Bounds = info.context or {}
        if (found := self.read(value, bounds)) is None:
            raise Invalid(self.wanted.format(**bounds))
        return found


def _marked(bound: int | str) -> int | str:
    """A bound as messages and schemas hold it before its value is known: "{max_tokens}"."""
    return f"{{{bound}}}" if isinstance(bound, str) else bound


def _resolved(bound: int | str, bounds: Bounds) -> int:
    return bounds[bound] if isinstance(bound, str) else bound


def is_integer(value: Any) -> bool:
    """Whether a JSON value is an integer; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def integer(low: int, high: int | str) -> Reads:
    """Annotates an integer from low to high, a number or the name of a bound."""

    def read(value: Any, bounds: Bounds) -> int | None:
        return value if is_integer(value) and low <= value <= _resolved(high, bounds) else None

    schema = {"type": "integer", "minimum": low, "maximum": _marked(high)}
    return Reads(read, f"must be an integer from {low} to {_marked(high)}", schema)


def token_limit(low: int) -> Reads:
    """Annotates how many tokens may be made, from low on. What is above the server's limit counts as this limit, and so
    does -1, unless the server is strict."""
    exact = integer(low, "max_tokens")
    accepted = integer(low, "max_token_limit")

    def read(value: Any, bounds: Bounds) -> int | None:
        if is_integer(value) and value == bounds["unlimited"]:
            return int(bounds["max_tokens"])
        found = accepted.read(value, bounds)
        return None if found is None else min(found, bounds["max_tokens"])

    return Reads(read, exact.wanted, {"anyOf": [accepted.schema, {"const": "{unlimited}"}]})


def refused(wanted: str) -> Reads:
    """Annotates a field that is refused by name, whatever it holds."""
    return Reads(lambda value, bounds: None, wanted, {"not": {}})


def number(low: float, high: float) -> Reads:
    """Annotates a number from low to high, which becomes a float."""

    def read(value: Any, _: Bounds) -> float | None:
        return float(value) if (is_integer(value) or isinstance(value, float)) and low <= value <= high else None

    schema = {"type": "number", "minimum": low, "maximum": high}
    return Reads(read, f"must be a number from {low:g} to {high:g}", schema)


def only(*values: Any, wanted: str) -> Reads:
    """Annotates one of these values."""

    def read(value: Any, _: Bounds) -> Any:
        return value if any(type(one) is type(value) and one == value for one in values) else None

    return Reads(read, wanted, {"enum": list(values)})


def size(high: int | str, low: int = 0, wanted: str = "a list") -> Reads:
    """Annotates a list of low to high entries. high: a number or the name of a bound. wanted: for one too short."""

    def read(value: Any, bounds: Bounds) -> Any:
        if isinstance(value, list) and len(value) > (limit := _resolved(high, bounds)):
            raise Invalid(f"holds {len(value)} entries; at most {limit}", shows_value=False)
        return None if isinstance(value, list) and len(value) < low else value

    return Reads(read, f"must be {wanted}", {"minItems": low, "maxItems": _marked(high)}, then=True)


@dataclass(frozen=True)
class OneOf:
    """An annotation of a union of models, each of which has a Literal of its own under `key`.

    default: the value of `key` for an object without it. hint: the end of the message that refuses other values.
    has_other: whether the last member is for objects with any other text under `key`.
    """

    key: str
    default: str | None = None
    hint: str = ""
    has_other: bool = False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        members = {f"<{i}>": one for i, one in enumerate(get_args(source) or [source])}
        tags = {one: tag for tag, member in members.items() for one in _literals(member.model_fields[self.key])}
        other = list(members)[-1] if self.has_other else None

        def tag_of(value: Any) -> str | None:
            found = value.get(self.key) if isinstance(value, dict) else getattr(value, self.key, None)
            found = self.default if found is None else found
            return tags.get(found, other) if isinstance(found, str) else None

        return core_schema.tagged_union_schema(
            {tag: handler.generate_schema(member) for tag, member in members.items()},
            tag_of,
            custom_error_type="tag",
            custom_error_message=f"must be {_listed(tags)}{self.hint}",
            custom_error_context={"key": self.key},
        )


def _literals(field: FieldInfo) -> tuple[str, ...]:
    return get_args(field.annotation)


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def read_json_schema(value: Any, bounds: Bounds) -> dict[str, Any] | None:
    """Reads an object of which only the depth is checked."""
    if not isinstance(value, dict):
        return None
    if is_deeper(value, bounds["schema_depth"]):
        raise Invalid(f"is nested deeper than {bounds['schema_depth']} levels", shows_value=False)
    return value


# A lone surrogate, which JSON may hold and pydantic's own strings may not, is text as any other.
Text = pydantic.InstanceOf[str]
JsonSchema = Annotated[dict[str, Any], Reads(read_json_schema, "must be a JSON schema, an object", {"type": "object"})]
# A text, or a list; a text, or a list of parts that hold one each.
TextOr = Annotated[
    Annotated[Text, pydantic.Tag("<text>")] | Annotated[P, pydantic.Tag("<list>")],
    pydantic.Discriminator(lambda value: "<text>" if isinstance(value, str) else "<list>"),
]
Content = TextOr[Annotated[list[P], size(1024)]]


def validate(model: type[M], values: dict[str, Any], bounds: Bounds) -> M:
    """Validates a body; ApiError names the first field that is wrong, and says what it must be."""
    try:
        return model.model_validate(values, context=bounds)
    except pydantic.ValidationError as problem:
        errors = problem.errors(include_url=False)
        # What is wrong says more than what is missing: a tool of another type has no name either.
        raise _api_error(min(errors, key=lambda error: error["type"] == "missing"), model, values) from None


def _api_error(problem: ErrorDetails, model: type[RequestModel], values: dict[str, Any]) -> ApiError:
    context, kind = problem.get("ctx", {}), problem["type"]
    cause = context.get("error")
    if isinstance(cause, ApiError):
        return cause
    if kind == "tag" and not isinstance(problem["input"], dict):
        context, kind = {}, "model_type"
    key = cause.key if isinstance(cause, Invalid) else context.get("key")
    # Steps in angle brackets are the tags of unions' members.
    path = [step for step in problem["loc"] if isinstance(step, int) or step[0] != "<"] + ([key] if key else [])
    name, value = "", cast(Any, values)
    for step in path:
        name += f"[{step}]" if isinstance(step, int) else f".{step[:60]}"
        value = value[step] if isinstance(step, int) else value.get(step)
    name = name.removeprefix(".")
    if isinstance(cause, Invalid):
        why = cause.why
    elif value is None:
        declared = model.model_fields.get(name)
        why = f"must be {declared.description}" if declared and declared.description else "is missing"
    elif kind == "tag":
        why = problem["msg"]
    elif kind == "literal_error":
        why = "must be " + context["expected"].replace("'", "")
    else:
        wanted = _TYPES.get(context.get("class") or kind.partition("_")[0])
        why = f"must be {wanted}" if wanted else "cannot be used"
    if not (value is None or isinstance(cause, Invalid) and not cause.shows_value):
        why += f", found {shown(value)}"
    return ApiError(f"{name}{'' if why.startswith(':') else ' '}{why}", param=name)
