"""Lines of batches, and what is in an output."""

import json
from collections import Counter


def line(custom_id, prompt="ROMEO:", url="/v1/completions", **body):
    """A request as a dict; greedy, of the demo model's name."""
    if url == "/v1/completions":
        body = {"model": "demo", "prompt": prompt, "max_tokens": 4, "temperature": 0} | body
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body}


def write_lines(path, lines):
    """lines: dicts, or bytes that are written as they are, without a newline after them."""
    with open(path, "wb") as file:
        for one in lines:
            file.write(one if isinstance(one, bytes) else json.dumps(one).encode() + b"\n")
    return path


def records(path):
    """The records of an output, each once."""
    found = [json.loads(one) for one in path.read_text().splitlines()]
    again = [name for name, count in Counter(one["custom_id"] for one in found).items() if count > 1 and name]
    assert not again, f"answered more than once: {again[:5]}"
    for one in found:
        assert set(one) == {"id", "custom_id", "response", "error"}
        assert (one["response"] is None) != (one["error"] is None)
    return found


def ids(path):
    return {one["custom_id"] for one in records(path)}


def text_of(record):
    return record["response"]["body"]["choices"][0]["text"]


class FakeRunner:
    """Answers at once, with what it was asked; keeps the custom_ids."""

    def __init__(self, fingerprint=b"12345678"):
        self.fingerprint, self.asked = fingerprint, []

    def run(self, requests):
        for request in requests:
            self.asked.append(request.custom_id)
            yield None
            answer = {"status_code": 200, "request_id": "r", "body": {"asked": request.body}}
            yield request.record(None if request.refusal else answer)

    def close(self):
        pass
