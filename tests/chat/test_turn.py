"""The one rule for what a message of the model's turn is, and the turn as it comes."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt.chat.builtin_tools import builtin_namespaces
from cgpt.chat.messages import Developer, Message, Namespace, System, Tool
from cgpt.chat.parse import Header
from cgpt.chat.turn import Turn, TurnRules, message_kind, offered_recipients
from cgpt.errors import InputError

from support.greedy import load_greedy

OFFERED = frozenset({"functions.f", "functions.user", "python", "browser.search"})


@pytest.fixture(scope="module")
def model():
    return load_greedy("demo-gpt-oss")


@pytest.mark.parametrize(
    ("role", "channel", "recipient", "kind", "kind_with_schema"),
    [
        ("assistant", "final", None, "answer", "answer"),
        ("assistant", "final", "user", "answer", "answer"),
        ("assistant", "final", "all", "answer", "answer"),
        ("assistant", None, None, "answer", "malformed"),
        ("assistant", "finals", None, "answer", "malformed"),
        ("assistant", "Final", "assistant", "answer", "malformed"),
        ("assistant", "analysis", None, "reasoning", "reasoning"),
        ("assistant", "analysis", "user", "reasoning", "reasoning"),
        ("assistant", "commentary", None, "preamble", "malformed"),
        ("assistant", "commentary", "user", "preamble", "malformed"),
        ("assistant", "commentary", "functions.f", "call", "call"),
        ("assistant", "analysis", "functions.f", "call", "call"),
        ("assistant", "final", "functions.f", "call", "call"),
        ("assistant", None, "f", "call", "call"),
        ("assistant", "analysis", "python", "call", "call"),
        ("assistant", "analysis", "browser.search", "call", "call"),
        ("assistant", "commentary", "functions.user", "call", "call"),
        ("assistant", "commentary", "functions.g", "malformed", "malformed"),
        ("assistant", "commentary", "functions", "malformed", "malformed"),
        ("assistant", "analysis", "browser.open", "malformed", "malformed"),
        ("assistant", "analysis", "search", "malformed", "malformed"),
        ("assistant", "final", "bob", "malformed", "malformed"),
        ("user", "final", None, "malformed", "malformed"),
        ("tool", "commentary", "assistant", "malformed", "malformed"),
        ("system", None, None, "malformed", "malformed"),
    ],
)
def test_the_rule(role, channel, recipient, kind, kind_with_schema):
    header = Header(role, None, channel, recipient)
    assert (message_kind(header, OFFERED), message_kind(header, OFFERED, True)) == (kind, kind_with_schema)
    message = Message(role, "x", channel, recipient, name="t")
    assert message_kind(message, OFFERED) == kind


def test_what_is_offered():
    developer = Developer(tools=(Tool("f"),), namespaces=(Namespace("crm", tools=(Tool("find"), Tool("add"))),))
    system = System(namespaces=builtin_namespaces(["python", "browser"]))
    found = offered_recipients(system, developer)
    browser = {"browser.search", "browser.open", "browser.find"}
    assert found == {"functions.f", "crm.find", "crm.add", "python"} | browser
    assert offered_recipients(System(), Developer()) == frozenset()


# ---------------------------------------------------------------------------------------------- the turn as it comes


def turn_of(model, text, rules=None, stop=(), reason="stop", problem=None):
    """A Turn that has read this text id by id, as far as it would, and its deltas."""
    ids = text if isinstance(text, list) else model.tokenizer.encode(text, allowed_special="all")
    request = SimpleNamespace(ids=ids, constraint=SimpleNamespace(problem=problem))
    turn, deltas = Turn(model, request, rules or TurnRules(OFFERED), stop), []
    for i in range(1, len(ids) + 1):
        event = SimpleNamespace(num_ids=i, finish_reason=reason if i == len(ids) else None)
        deltas += turn.advance(event)
        if turn.finish_reason:
            break
    return turn, deltas


def shown(deltas):
    """The text of each kind, in order of the messages."""
    items = {}
    for delta in deltas:
        kind, text, name = items.get(delta.item, (delta.kind, "", delta.name))
        assert (kind, name) == (delta.kind, delta.name)
        items[delta.item] = kind, text + delta.text, name
    assert list(items) == list(range(len(items)))
    return [found if found[2] else found[:2] for found in items.values()]


THOUGHT = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"
ENDS = {
    "<|channel|>final<|message|>42<|return|>": ([("answer", "42")], "stop"),
    f"{THOUGHT}<|channel|>final<|message|>42<|return|>": ([("reasoning", "Hm."), ("answer", "42")], "stop"),
    "<|channel|>final to=user<|message|>42<|return|>": ([("answer", "42")], "stop"),
    "<|channel|>final<|message|>4<|channel|>2": ([("answer", "4<|channel|>2")], "stop"),
    "42": ([("answer", "42")], "stop"),
    "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.f<|channel|>commentary<|message|>{}"
    "<|call|>": ([("preamble", "I look."), ("call", "{}", "f")], "tool_calls"),
    "<|channel|>commentary to=f<|message|>{}<|end|> and more": ([("call", "{}", "f")], "tool_calls"),
    "<|channel|>commentary to=functions.f<|message|>{}<|endoftext|>": ([("call", "{}", "f")], "tool_calls"),
    "<|channel|>commentary to=functions.g<|message|>{}<|call|>": ([], "stop"),
    "<|channel|>final to=bob<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y": ([], "stop"),
    "<|channel|>final<|message|>42<|end|><|start|>user<|message|>And now?": ([("answer", "42")], "stop"),
    "<|channel|>final<|message|>42<|end|><|start|>functions.f to=assistant<|message|>x": ([("answer", "42")], "stop"),
    f"{THOUGHT}<|channel|>fin": ([("reasoning", "Hm.")], "stop"),
}


@pytest.mark.parametrize("text", ENDS)
def test_what_ends_a_turn(model, text):
    turn, deltas = turn_of(model, text)
    assert (shown(deltas), turn.finish_reason) == ENDS[text]
    cut, _ = turn_of(model, text, reason="length")
    assert cut.finish_reason in ("length", turn.finish_reason)


def test_with_a_schema_nothing_else_is_an_answer(model):
    """Text and headers that the constraint lets nobody write: as a length cut leaves them, for one."""
    rules = TurnRules(OFFERED, True)
    for text in ("42", " to=functi", "<|channel|>finals<|message|>42", "<|channel|>commentary<|message|>42<|end|>"):
        assert shown(turn_of(model, f"{THOUGHT}{text}", rules)[1]) == [("reasoning", "Hm.")]


def test_the_prefix_belongs_to_the_turn(model):
    prefix = model.tokenizer.encode("<|channel|>commentary to=functions.f<|message|>", allowed_special="all")
    turn, deltas = turn_of(model, '{"a": 1}<|call|>', TurnRules(OFFERED, prefix=tuple(prefix)))
    assert shown(deltas) == [("call", '{"a": 1}', "f")] and turn.finish_reason == "tool_calls"
    assert turn.tokens == len(turn.request.ids)


@pytest.mark.parametrize("stop", ["two", "two three", "e t", "nowhere", "three"])
def test_stop_strings(model, stop):
    """They cut what is for the user, and the tokens with it; reasoning and arguments may hold them."""
    text = f"{THOUGHT.replace('Hm.', stop)}<|channel|>final<|message|>one two three<|return|>"
    turn, deltas = turn_of(model, text, stop=[stop])
    expected = "one two three".partition(stop)[0]
    assert shown(deltas) == [("reasoning", stop), ("answer", expected)] and turn.finish_reason == "stop"
    ids = [turn.request.ids[index] for delta in deltas for index in delta.indices]
    assert model.tokenizer.decode(ids).startswith(expected)
    assert all(delta.indices == () or delta.is_for_user for delta in deltas)
    called, _ = turn_of(model, f"<|channel|>commentary to=functions.f<|message|>{stop}<|call|>", stop=[stop])
    assert called.parser.messages[0].content == stop and called.finish_reason == "tool_calls"


def test_reasoning_is_counted(model):
    turn, _ = turn_of(model, f"{THOUGHT}<|channel|>final<|message|>42<|return|>")
    assert turn.reasoning_tokens == len(model.tokenizer.encode("Hm.")) + 1 and turn.tokens == len(turn.request.ids)


def test_a_constraint_that_gave_up(model):
    with pytest.raises(InputError, match="could not be kept to its schema: too complex"):
        turn_of(model, "x", problem="too complex")


BITS = ["<|channel|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>", "assistant",
        "user", "analysis", "commentary", "final", "finals", " to=functions.f", " to=functions.g", " to=user", " to=",
        "json", " ", "<|endoftext|>", "<|channel|>final<|message|>", "<|end|><|start|>assistant",
        "<|start|>user<|message|>"]  # fmt: skip


@given(st.lists(st.sampled_from(BITS), max_size=20), st.booleans(), st.sampled_from(["stop", "length"]))
@settings(deadline=None, max_examples=300)
def test_whatever_comes_is_sorted_by_the_rule(model, bits, has_schema, reason):
    """Deltas are the messages that the parser finds, without the malformed ones; and no unknown tool is called."""
    rules = TurnRules(OFFERED, has_schema)
    turn, deltas = turn_of(model, "".join(bits) or " ", rules, reason=reason)
    turn.close()
    kinds = [message_kind(m, rules.offered, rules.has_schema) for m in turn.parser.messages]
    expected = [(k, m.content) for k, m in zip(kinds, turn.parser.messages, strict=True) if k != "malformed"]
    found = [(one[0], one[1]) for one in shown(deltas)]
    assert found == expected[: len(found)] and all(text == "" for _, text in expected[len(found) :])
    assert turn.finish_reason in ("stop", "length", "tool_calls") and (
        turn.finish_reason != "length" or reason == "length"
    )
    assert (turn.finish_reason == "tool_calls") <= ("call" in kinds)
    assert {delta.name for delta in deltas} <= {None, "f"}
