"""JSON schemas as TypeScript, the way gpt-oss was shown its tools.

It prints what openai-harmony 0.0.8 prints, to the byte, where that is odd too: `anyOf`, `allOf`, `$ref`, `const` and
enums without a type are `any`; an enum of anything but strings is dropped, and the default of an enum stands
unquoted; an object's description comes again before its brace; later lines of a comment carry no `//`.
Two differences: recursion beyond MAX_DEPTH is an InputError, and NaN or infinity, which JSON has not, are too.
"""

from __future__ import annotations

import json
import math
from typing import Any

from cgpt.errors import InputError

MAX_DEPTH = 100  # of nested schemas
_NAMES = {"string": "string", "number": "number", "integer": "number", "boolean": "boolean"}


def typescript(schema: Any, indent: str = "", depth: int = 0) -> str:
    """The TypeScript type of a JSON schema; `indent` stands before the lines of what is nested."""
    if depth > MAX_DEPTH:
        raise InputError(f"a tool's JSON schema is nested deeper than {MAX_DEPTH}; flatten it")
    if not isinstance(schema, dict):
        return "any"
    kind = schema.get("type")
    if isinstance(schema.get("oneOf"), list):
        return "".join("\n" + _variant(v, indent, False, depth) for v in schema["oneOf"])
    if isinstance(kind, list):
        kinds = ["number" if name == "integer" else name for name in kind if isinstance(name, str)]
        return " | ".join(kinds) if kinds else "any"
    if kind == "object":
        return _object(schema, indent, depth)
    if kind == "array":
        return f"{typescript(schema['items'], indent, depth + 1)}[]" if "items" in schema else "Array<any>"
    if kind == "string" and isinstance(schema.get("enum"), list):
        return " | ".join(f'"{value}"' for value in schema["enum"] if isinstance(value, str)) or "string"
    return _NAMES.get(kind, "any") if isinstance(kind, str) else "any"


def _object(schema: dict[str, Any], indent: str, depth: int) -> str:
    properties, required = schema.get("properties"), schema.get("required")
    out = _comment(indent, schema.get("description")) + "{\n"
    for name, value in properties.items() if isinstance(properties, dict) else ():
        mark = "" if isinstance(required, list) and name in required else "?"
        value = value if isinstance(value, dict) else {}
        out += _property(f"{indent}{name}{mark}:", value, indent, depth)
    return out + indent + "}"


def _property(head: str, schema: dict[str, Any], indent: str, depth: int) -> str:
    """The comments and the line of one property. `head`: its name, a mark and a colon."""
    title, examples, one_of = schema.get("title"), schema.get("examples"), schema.get("oneOf")
    description = _comment(indent, schema.get("description"))
    out = _comment(indent, title) + (f"{indent}//\n" if isinstance(title, str) else "")
    if "oneOf" not in schema:
        out += description
    if isinstance(examples, list) and examples:
        out += f"{indent}// Examples:\n"
        out += "".join(f'{indent}// - "{example}"\n' for example in examples if isinstance(example, str))
    default = _default(schema)
    if isinstance(one_of, list):
        out += description + (_comment(indent, default) if default else "") + head + "\n"
        return out + "".join(_variant(v, indent, True, depth) + "\n" for v in one_of) + f"{indent},\n"
    out += f"{head} {_nullable(schema, typescript(schema, indent + '    ', depth + 1))},"
    return out + (f" // {default}\n" if default and "oneOf" not in schema else "\n")


def _variant(schema: Any, indent: str, named: bool, depth: int) -> str:
    """One line of a oneOf; named: of a property's."""
    schema = schema if isinstance(schema, dict) else {}
    kind = _nullable(schema, typescript(schema, indent + "   ", depth + 1))
    notes = [note for note in (schema.get("description"), _default(schema, named)) if isinstance(note, str)]
    return f"{indent} | {kind}" + (f" // {' '.join(notes)}" if notes else "")


def _nullable(schema: dict[str, Any], kind: str) -> str:
    return f"{kind} | null" if schema.get("nullable") is True and "null" not in kind else kind


def _comment(indent: str, text: Any) -> str:
    return f"{indent}// {text}\n" if isinstance(text, str) else ""


def _default(schema: dict[str, Any], named: bool = True) -> str | None:
    """The default as a comment: a string as it is in quotes; of an enum without quotes, or as JSON if not `named`."""
    if "default" not in schema:
        return None
    value, enum = schema["default"], schema.get("enum")
    if isinstance(value, str) and not (isinstance(enum, list) and enum):
        return f'default: "{value}"'
    return f"default: {value if isinstance(value, str) and named else _json(value)}"


def _json(value: Any) -> str:
    """Compact JSON with numbers as serde_json writes them."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(str(name))}:{_json(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_json, value)) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and not -(1 << 63) <= value < 1 << 64:
        value = float(value)
    if isinstance(value, float):
        return _float(value)
    return json.dumps(value, ensure_ascii=False)


def _float(value: float) -> str:
    if not math.isfinite(value):
        raise InputError(f"a tool's JSON schema holds {value}, which JSON has not")
    digits, _, exponent = repr(value).partition("e")
    if not exponent:
        return digits
    if exponent == "-05":  # where Python already writes an exponent
        sign, digits = ("-", digits[1:]) if digits[0] == "-" else ("", digits)
        return f"{sign}0.0000{digits.replace('.', '')}"
    return f"{digits}e{int(exponent)}"
