"""/openapi.json says what the endpoints do."""

import cgpt
from cgpt.serve import app
from cgpt.serve.openai import chat, completions, responses
from cgpt.serve.openai.openapi import document

from support.serve_cases import serving

TAKE = {
    "/v1/completions": completions.FIELDS,
    "/v1/chat/completions": chat.FIELDS,
    "/v1/responses": responses.FIELDS,
    "/tokenize": {"model", "prompt", "content", "special"},
    "/detokenize": {"model", "tokens"},
}


def schema_of(found, path):
    return found["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]


def test_the_document():
    with serving(cgpt.load("demo-gpt-oss")) as served:
        status, _, found = served.ask("GET", "/openapi.json")
        assert status == 200 and found == document(served.service) and found["openapi"] == "3.1.0"
        assert set(found["paths"]) == {route.path_format for route in app.ROUTES}
        for path, fields in TAKE.items():
            schema = schema_of(found, path)
            assert {name for one in schema.get("anyOf", [schema]) for name in one["properties"]} <= fields


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
    good["/v1/responses"] = {"input": "a"}
    most = {"/v1/responses": "max_output_tokens"}
    with serving(cgpt.load("demo-gpt-oss")) as served:
        for path, body in good.items():
            body = body | {most.get(path, "max_tokens"): 1}
            for name, schema in schema_of(document(served.service), path)["properties"].items():
                null = schema.get("type", [])[-1:] == ["null"]
                if null:
                    assert served.post(path, body | {name: None})[0] == 200, name
                if "minimum" in schema and name != "logprobs" and "max" not in name and name != "top_logprobs":
                    extra = {"best_of": 16} if name == "n" and path == "/v1/completions" else {}
                    for value in (schema["minimum"], schema["maximum"]):
                        assert served.post(path, body | extra | {name: value})[0] == 200, (name, value)
                    for value in (schema["minimum"] - 1, schema["maximum"] + 1):
                        served.refused(path, body | {name: value})
