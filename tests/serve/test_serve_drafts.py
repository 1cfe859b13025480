"""A server that drafts from the texts of all its clients."""

import cgpt
from cgpt.generation.speculation import SpeculationController

from support.serve_cases import serving


def test_drafts_from_earlier_texts(monkeypatch):
    """The same answers, sampled and by a grammar, with what was drafted in usage and /metrics."""
    model = cgpt.load("demo-gpt2", precision="exact")
    monkeypatch.setattr(SpeculationController, "may_draft", lambda *_: True)
    monkeypatch.setattr(SpeculationController, "record_drafted", lambda *_: None)
    body = dict(model="demo", prompt="ROMEO:", max_tokens=40, temperature=1, seed=5, n=2, logprobs=2)
    schema = {"type": "object", "properties": {"a": {"enum": ["x", "yy"]}}, "required": ["a"]}
    bodies = [body | dict(ignore_eos=True), body | dict(n=1, structured_outputs={"json": schema})]
    answers = []
    for lookup in (None, 16):
        with serving(model, prompt_lookup_num_tokens=lookup) as served:
            answers.append([served.post("/v1/completions", one)[2] for one in bodies * 2])
            metrics = served.ask("GET", "/metrics")[2]
    assert [one["choices"] for one in answers[0]] == [one["choices"] for one in answers[1]]
    details = [[one["usage"]["completion_tokens_details"] for one in found] for found in answers]
    assert all(set(one.values()) == {0} for one in details[0])
    assert details[1][2]["accepted_prediction_tokens"] > 60 and details[1][3]["accepted_prediction_tokens"] > 0
    accepted = sum(one["accepted_prediction_tokens"] for one in details[1])
    drafted = accepted + sum(one["rejected_prediction_tokens"] for one in details[1])
    assert f"cgpt_draft_tokens_total {drafted}\n" in metrics and f"cgpt_accepted_tokens_total {accepted}\n" in metrics
