"""Python functions as tools: the schema from a signature, and the call from the model's JSON."""

import enum
from typing import Annotated, Literal, Optional

import pytest

from cgpt.chat.functions import as_tools, run_tool, tool_of
from cgpt.chat.messages import Tool
from cgpt.errors import InputError


def get_weather(city: str):
    """Gets the weather in a city."""
    return {"temperature": 7, "sky": "sunny"}


class Unit(enum.Enum):
    C = "celsius"
    F = "fahrenheit"


def test_schema_from_a_function():
    def find(
        what: str,
        count: int = 3,
        unit: Unit = Unit.C,
        *,
        tags: list[str] = (),
        near: Optional[float] = None,  # noqa: UP045
        mode: Literal["a", "b"] = "a",
        note: Annotated[str | None, "free text"] = None,
        boxes: list[int] | None = None,
        other: dict = {},  # noqa: B006
        key: "int | str" = 1,
        anything=None,
    ):
        """Finds things
        everywhere.

        what: the name to look for
        count (int): how many
        """

    tool = tool_of(find)
    assert (tool.name, tool.description) == ("find", "Finds things everywhere.")
    assert tool.parameters == {
        "type": "object",
        "required": ["what"],
        "properties": {
            "what": {"type": "string", "description": "the name to look for"},
            "count": {"type": "integer", "description": "how many", "default": 3},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
            "tags": {"type": "array", "items": {"type": "string"}, "default": ()},
            "near": {"type": ["number", "null"]},
            "mode": {"type": "string", "enum": ["a", "b"], "default": "a"},
            "note": {"type": ["string", "null"], "description": "free text"},
            "boxes": {"type": "array", "items": {"type": "integer"}, "nullable": True},
            "other": {"type": "object", "default": {}},
            "key": {"type": ["integer", "string"], "default": 1},
            "anything": {},
        },
    }


def test_run_tool():
    def convert(unit: Unit, value: float = 1.5):
        return [unit.name, value]

    tools = as_tools([convert, lambda_named("text", lambda: "as it is")])
    assert run_tool(tools, "convert", '{"unit": "fahrenheit"}') == '["F", 1.5]'
    assert run_tool(tools, "convert", '{"unit": "kelvin"}').startswith("error: ValueError: 'kelvin'")
    assert run_tool(tools, "text", "") == "as it is"


async def later(city: str):
    """Runs later."""


def lambda_named(name, function):
    function.__name__ = name
    return function


def test_tools_as_schemas():
    schema = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    expected = (Tool("f", "d", {"type": "object"}),)
    assert as_tools([schema]) == as_tools([{"type": "function", "function": schema}]) == expected
    assert as_tools([{"type": "function", **schema}]) == as_tools(expected) == expected


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        ([3], "a tool is a function"),
        ([{"name": "f", "parameters": 3}], 'an object of "parameters"'),
        ([{"name": "a b"}], "letters, digits"),
        ([{}], "letters, digits"),
        ([get_weather, get_weather], "two tools are called get_weather"),
        ([later], "the tool later is async"),
        ([lambda_named("f", lambda *args: 0)], "parameter args cannot be given by name"),
    ],
)
def test_bad_tools(tools, match):
    with pytest.raises(InputError, match=match):
        as_tools(tools)


def test_a_type_without_schema():
    def f(x: complex): ...

    with pytest.raises(InputError, match="the tool f, parameter x: no JSON schema for the type"):
        tool_of(f)
