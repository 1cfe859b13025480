"""/openapi.json says what the endpoints do."""

import re

import cgpt
from cgpt.serve.app import ENDPOINTS
from cgpt.serve.openapi import document

from support.serve_cases import serving


def schema_of(found, path):
    schema = found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return found["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


def strings(schema):
    """The texts that a schema holds as values, but for patterns."""
    if isinstance(schema, dict):
        schema = [value for key, value in schema.items() if key != "pattern"]
    if isinstance(schema, list):
        for one in schema:
            yield from strings(one)
    elif isinstance(schema, str):
        yield schema


def test_the_document():
    with serving(cgpt.load("demo-gpt-oss")) as served:
        status, _, found = served.ask("GET", "/openapi.json")
        assert status == 200 and found == document(served.service, ENDPOINTS) and found["openapi"] == "3.1.0"
        assert set(found["paths"]) == {one.route().path_format for one in ENDPOINTS}
        for one in ENDPOINTS:
            if one.takes:
                assert set(schema_of(found, one.path)["properties"]) == set(one.takes.model_fields)
        assert not [text for text in strings(found) if re.fullmatch(r"\{\w+\}", text)]  # every limit has its value


def test_a_key_is_asked_for_where_there_is_one():
    with serving(cgpt.load("demo-gpt2"), key="k") as served:
        _, _, found = served.ask("GET", "/openapi.json", headers={"Authorization": "Bearer k"})
        assert found["security"] == [{"key": []}] and "/v1/chat/completions" not in found["paths"]
        for path, methods in found["paths"].items():
            if "get" in methods:
                closed = served.ask("GET", path)[0] == 401
                assert closed == (methods["get"].get("security") is None), path


def test_what_it_allows_is_taken_and_what_it_forbids_is_not():
    """For each field by itself: null, and the ends of its range; one beyond them is refused."""
    user = [{"role": "user", "content": "a"}]
    good = {"/v1/completions": {"prompt": "a"}, "/v1/chat/completions": {"messages": user}}
    good["/v1/responses"], good["/v1/messages"] = {"input": "a"}, {"messages": user}
    limit = {"/v1/responses": "max_output_tokens"}
    with serving(cgpt.load("demo-gpt-oss")) as served:
        for path, body in good.items():
            body = body | {limit.get(path, "max_tokens"): 1}
            tried = 0
            for name, schema in schema_of(document(served.service, ENDPOINTS), path)["properties"].items():
                schema, *null = schema.get("anyOf", [schema])
                if null[-1:] == [{"type": "null"}]:
                    assert served.post(path, body | {name: None})[0] == 200, name
                if "minimum" in schema and name != "logprobs" and "max" not in name and name != "top_logprobs":
                    tried += 1
                    extra = {"best_of": 16} if name == "n" and path == "/v1/completions" else {}
                    for value in (schema["minimum"], schema["maximum"]):
                        assert served.post(path, body | extra | {name: value})[0] == 200, (name, value)
                    for value in (schema["minimum"] - 1, schema["maximum"] + 1):
                        served.refused(path, body | {name: value})
            assert tried >= 2
