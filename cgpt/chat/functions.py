"""Python functions as tools of a chat: a JSON schema from the signature, and a call from the model's JSON."""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from cgpt.chat.messages import Tool
from cgpt.errors import InputError
from cgpt.fields import shown

_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_LISTS, _DICTS = (list, tuple, set, Sequence, Iterable), (dict, Mapping)
_NAME = r"[A-Za-z0-9_-]+"


def as_tools(tools: Iterable[Any]) -> tuple[Tool, ...]:
    """Tools from Python functions, schemas in OpenAI's shape (`{"name": .., "description": .., "parameters": ..}`, as
    it is or under "function") or Tools. InputError where one cannot be described, or two share a name."""
    if isinstance(tools, str) or not isinstance(tools, Iterable):
        raise InputError(f"tools is a list of functions, schemas or Tools, not {shown(tools)}")
    made = [_as_tool(tool) for tool in tools]
    for i, tool in enumerate(made):
        if not re.fullmatch(_NAME, tool.name):
            raise InputError(f"a tool's name is made of letters, digits, _ and -, not {shown(tool.name)}")
        if tool.name in [other.name for other in made[:i]]:
            raise InputError(f"two tools are called {tool.name}")
    return tuple(made)


def _as_tool(tool: Any) -> Tool:
    if isinstance(tool, Tool):
        return tool
    if isinstance(tool, dict):
        schema = tool.get("function", tool)
        if not isinstance(schema, dict) or not isinstance(schema.get("parameters"), (dict, type(None))):
            raise InputError(f'a tool\'s schema has a "name" and an object of "parameters", found {shown(tool)}')
        name: Any = schema.get("name")
        return Tool(name, schema.get("description") or "", schema.get("parameters"))
    if callable(tool):
        return tool_of(tool)
    raise InputError(f"a tool is a function, a schema or a Tool, not {shown(tool)}")


def tool_of(function: Callable[..., Any]) -> Tool:
    """A function as a Tool. Its name; the first paragraph of its docstring; a parameter per argument, of the annotated
    type. What a parameter is for comes from Annotated[type, "text"], or from a line "name: text" of the docstring."""
    name = getattr(function, "__name__", type(function).__name__)
    if inspect.iscoroutinefunction(function):
        raise InputError(f"the tool {name} is async; give a function that returns its result")
    summary, notes = _read_docstring(inspect.getdoc(function) or "")
    try:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = inspect.signature(function).parameters.values()
    except Exception as problem:  # annotations may be code of any kind
        raise InputError(f"the tool {name}: its signature cannot be read ({problem})") from None
    properties: dict[str, Any] = {}
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise InputError(f"the tool {name}: the parameter {parameter.name} cannot be given by name; give a schema")
        try:
            schema = _schema(hints.get(parameter.name, Any))
        except (InputError, TypeError) as problem:  # TypeError: a hint that has no hash
            raise InputError(f"the tool {name}, parameter {parameter.name}: {problem}") from None
        if parameter.name in notes:
            schema.setdefault("description", notes[parameter.name])
        if parameter.name not in required and (default := _plain(parameter.default)) is not None:
            schema["default"] = default
        properties[parameter.name] = schema
    arguments = {"type": "object", "properties": properties, "required": required} if properties else None
    return Tool(name, summary, arguments, function)


def _read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """The first paragraph, and what the lines "name: text" or "name (type): text" say."""
    summary = " ".join(text.partition("\n\n")[0].split())
    found = re.findall(r"^\s*(\w+)(?: \([^)]*\))?:[ \t]+(\S.*?)\s*$", text.partition("\n\n")[2], re.M)
    return summary, dict(found)


def _plain(value: Any) -> Any:
    """A default as JSON has it; None where it has none."""
    value = value.value if isinstance(value, enum.Enum) else value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return value


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type, in the words that cgpt.chat.typescript has TypeScript for."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        notes = [note for note in arguments[1:] if isinstance(note, str)]
        return _schema(arguments[0]) | ({"description": notes[0]} if notes else {})
    if hint in (Any, inspect.Parameter.empty):
        return {}
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal:
        return _choices(arguments)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _choices([member.value for member in hint])
    if hint in _SCALARS:
        return {"type": _SCALARS[hint]}
    if hint in _LISTS or origin in _LISTS:
        items = [argument for argument in arguments if argument is not ...]
        same = len(set(items)) == 1
        return {"type": "array"} | ({"items": _schema(items[0])} if same else {})
    if hint in _DICTS or origin in _DICTS:
        return {"type": "object"}
    raise InputError(
        f"no JSON schema for the type {shown(hint)}; use str, int, float, bool, list, dict, Literal, an Enum or a "
        f"union of these, or give the tool as a schema"
    )


def _union(arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Of plain types a list of types; otherwise of one type and None that type, nullable; otherwise oneOf."""
    if all(argument in _SCALARS for argument in arguments):
        return {"type": [_SCALARS[argument] for argument in arguments]}
    others = [argument for argument in arguments if argument is not type(None)]
    if len(others) == 1:
        return _schema(others[0]) | {"nullable": True}
    return {"oneOf": [_schema(argument) for argument in arguments]}


def _choices(values: Sequence[Any]) -> dict[str, Any]:
    kinds = {type(value) for value in values}
    kind = {"type": _SCALARS[kinds.pop()]} if len(kinds) == 1 and kinds <= _SCALARS.keys() else {}
    return {**kind, "enum": list(values)}


def run_tool(tools: Iterable[Tool], name: str, arguments: str) -> str:
    """What the tool `name` gives for `arguments`, JSON text: a str as it is, anything else as JSON. Whatever goes wrong
    is told to the model as the result, for it to try again; nothing is raised but what is no Exception."""
    tool = next((tool for tool in tools if tool.name == name), None)
    if tool is None or tool.function is None:
        known = ", ".join(tool.name for tool in tools if tool.function)
        return f"error: there is no function {name} to run; there are: {known or 'none'}"
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError) as problem:
        return f"error: the arguments are not JSON: {problem}"
    if not isinstance(given, dict):
        return "error: the arguments must be one JSON object"
    try:
        inspect.signature(tool.function).bind(**given)
        result = tool.function(**_with_enums(tool.function, given))
        return result if isinstance(result, str) else json.dumps(result, ensure_ascii=False, default=str)
    except Exception as problem:
        return f"error: {type(problem).__name__}: {problem}"


def _with_enums(function: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments, those that are annotated as an Enum made its members."""
    hints = typing.get_type_hints(function)
    kinds = {n: h for n, h in hints.items() if isinstance(h, type) and issubclass(h, enum.Enum)}
    return {name: kinds[name](value) if name in kinds else value for name, value in given.items()}
