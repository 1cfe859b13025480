"""One model of the fleet, behind the endpoints of `cgpt serve`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator

from anyio import to_thread
from ray import serve
from starlette.types import Message, Scope

from cgpt.checkpoint.locate import model_name
from cgpt.cluster.ray.cores import claim_cores
from cgpt.cluster.ray.messages import Forwarded, replica_tag
from cgpt.cluster.ray.options import FleetOptions, listed
from cgpt.generation.engine import Engine
from cgpt.loading import load
from cgpt.serve.app import THREADS, unguarded_app
from cgpt.serve.limits import Limits
from cgpt.serve.metrics import Family
from cgpt.serve.server import SWITCH_SECONDS
from cgpt.serve.service import Service

STREAM_SECONDS = 0.02  # a message costs the fleet a millisecond or two of a core
log = logging.getLogger("cgpt.serve")


class Replica:
    """Answers requests that a front has let in. Its threads run on cores that no other replica has."""

    def __init__(self, options: FleetOptions, has_key: bool) -> None:
        """has_key: whether the front asks clients for an API key."""
        sys.setswitchinterval(SWITCH_SECONDS)
        self._id = serve.get_replica_context().replica_id.unique_id
        self._claim = claim_cores(options.cpus)
        model = load(
            options.model,
            options.threads,
            options.precision,
            options.dense,
            kv_cache_dtype=options.kv_cache_dtype,
            huge_pages=options.huge_pages,
            memory=options.memory,
            weights_cache=options.weights_cache,
            revision=options.revision,
        )
        engine = Engine(
            model,
            max_running=options.max_running,
            max_waiting=options.max_waiting,
            prefix_cache_bytes=None if options.prefix_cache is None else int(options.prefix_cache * 1e9),
            prefix_cache_directory=options.prefix_cache_dir,
            prefix_cache_disk_bytes=int(options.prefix_cache_disk * 1e9),
            prompt_lookup_num_tokens=options.prompt_lookup_num_tokens,
        )
        names = listed(options.name) or (os.path.basename(model_name(model.directory)),)
        limits = Limits(max_tokens=options.max_tokens)
        self._service = Service(engine, names, limits, options.log_prompts, options.strict, replica_tag(self._id))
        self._app = unguarded_app(self._service, has_key)

    def __del__(self) -> None:  # Ray's word for the end, when nothing runs any more
        if hasattr(self, "_service"):  # else the model was not loaded, which has been said
            self._service.engine.close()

    async def answer(self, request: Forwarded) -> AsyncIterator[list[Message]]:
        """Yields the ASGI messages of the answer, the first at once, what comes within STREAM_SECONDS together. Ends
        the work where nobody reads them to the end."""
        to_thread.current_default_thread_limiter().total_tokens = THREADS
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        task = asyncio.ensure_future(self._run(request, messages))
        try:
            has_begun = is_last = False
            while not is_last:
                found = [await messages.get()]
                if has_begun:
                    await asyncio.sleep(STREAM_SECONDS)
                while not messages.empty():
                    found.append(messages.get_nowait())
                has_begun, is_last = True, found[-1] is None
                if some := [message for message in found if message is not None]:
                    yield some
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, request: Forwarded, messages: asyncio.Queue[Message | None]) -> None:
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.path.encode("utf-8", "surrogateescape"),
            "root_path": "",
            "query_string": request.query,
            "headers": list(request.headers),
            "client": None,
            "server": None,
        }
        body: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]

        async def receive() -> Message:
            if not body:
                await asyncio.Event().wait()  # until the task is cancelled
            return body.pop()

        try:
            await self._app(scope, receive, messages.put)
        except Exception:  # which the application has answered with 500
            log.exception("a request failed")
        finally:
            messages.put_nowait(None)

    async def metrics(self) -> tuple[str, list[Family]]:
        """Its id, and what it counts."""
        return self._id, self._service.metrics.families(self._service.engine)

    async def check_health(self) -> None:
        """Raises what ended the engine, where something did; Ray then starts another replica."""
        if self._service.engine.failure is not None:
            raise self._service.engine.failure
