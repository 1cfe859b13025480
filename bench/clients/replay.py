"""A server whose model says what it is told: the demo gpt-oss through the whole of `cgpt serve`, with chosen ids.

    python bench/clients/replay.py PORT 'TEXT' ['TEXT' ..]

Each request takes the next TEXT, with special tokens by their names, and the last one again and again. For clients that
need a cleverer model than the demo, as coding agents do.
"""

import sys

from cgpt.generation.engine import Engine
from cgpt.generation.request import Request
from cgpt.loading import load
from cgpt.serve import server
from cgpt.serve.app import make_app
from cgpt.serve.limits import Limits
from cgpt.serve.service import Service


def main(port, *texts):
    model, texts = load("demo-gpt-oss"), list(texts)
    start = Request.start

    def scripted(request, *how):
        text = texts.pop(0) if len(texts) > 1 else texts[0]
        ids, prompt = model.tokenizer.encode(text, allowed_special="all"), request.prompt_ids
        begun = next(n for n in range(len(ids), -1, -1) if prompt[len(prompt) - n :] == ids[:n])
        rest = iter(ids[begun:])  # a call that is forced begins in the prompt
        request.sampler.choose = lambda logits: next(rest)
        print(model.tokenizer.decode(request.prompt_ids), "\n==>", text, "\n", file=sys.stderr, flush=True)
        start(request, *how)

    Request.start = scripted
    listening = server.listen("127.0.0.1", int(port))
    server.run(make_app(Service(Engine(model), ["demo-gpt-oss"], Limits())), listening, drain=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
