"""A scripted gpt-oss: what the tests of chats let the model say."""

import cgpt


def get_weather(city: str):
    """Gets the weather in a city."""
    return {"temperature": 7, "sky": "sunny"}


def scripted(monkeypatch, model, *texts):
    """Lets the model say these texts, spelled with special tokens, one for each request; returns the prompts."""
    texts, prompts = list(texts), []
    original = cgpt.generation.request.Request.start

    def start(request, *how):
        prompts.append(model.tokenizer.decode(request.prompt_ids))
        ids = iter(model.tokenizer.encode(texts.pop(0), allowed_special="all"))
        monkeypatch.setattr(request.sampler, "choose", lambda logits: next(ids))
        original(request, *how)

    monkeypatch.setattr(cgpt.generation.request.Request, "start", start)
    return prompts


CALL = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}<|call|>"
FINAL = "<|channel|>final<|message|>{}<|return|>"
