"""A real server on a free port of the loopback, in a thread of the test session."""

import http.client
import json
import threading
import time
from contextlib import contextmanager

import openai
import uvicorn

from cgpt.generation.engine import Engine
from cgpt.serve import server
from cgpt.serve.app import make_app
from cgpt.serve.limits import Limits
from cgpt.serve.service import Service


class Served:
    """host, port; service and engine, which run in this process."""

    def __init__(self, service, listening):
        self.service, self.engine = service, service.engine
        self.host, self.port = listening.getsockname()[:2]
        self.url = server.address(listening)

    def client(self, key="none", **options):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def ask(self, method, path, body=None, headers=()):
        """-> status, headers, parsed JSON or text. body: bytes, or what JSON is made of."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=60)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json"} | dict(headers))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        is_json = response.headers.get("content-type") == "application/json"
        return response.status, response.headers, json.loads(text) if is_json else text

    def post(self, path, body, headers=()):
        return self.ask("POST", path, body, headers)

    def refused(self, path, body, status=400):
        """The error object of a request that must be refused with this status."""
        found, _, answer = self.post(path, body)
        assert found == status, answer
        of_anthropic = path.startswith("/v1/messages")
        assert set(answer["error"]) == {"message", "type", *(("details",) if of_anthropic else ("param", "code"))}
        return answer["error"]


@contextmanager
def serving(
    model, *, limits=None, hosts=(), origins=(), key=None, log_prompts=False, names=("demo",), strict=False, **engine
):
    service = Service(Engine(model, **engine), names, limits or Limits(), log_prompts, strict)
    listening = server.listen("127.0.0.1", 0)
    config = uvicorn.Config(
        make_app(service, hosts, origins, key),
        loop="asyncio",
        http=server.Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=1,
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listening]})
    thread.start()
    wait_for(lambda: running.started)
    try:
        yield Served(service, listening)
    finally:
        running.should_exit = True
        thread.join(30)
        assert not thread.is_alive() and not service.engine._thread.is_alive()


def wait_for(condition, seconds=20):
    """Until it holds; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
