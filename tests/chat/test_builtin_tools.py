"""The built-in tools of the system message, beside openai-harmony's own; and a chat that answers their calls."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cgpt.chat.builtin_tools import BUILTIN, builtin_namespaces
from cgpt.chat.chat import ToolCall
from cgpt.chat.messages import Developer, Message, Namespace, System, Tool
from cgpt.chat.render import content_text, render_conversation
from cgpt.errors import InputError
from cgpt.tokenizer.tokenizer import Tokenizer

from support.chat_cases import FINAL, scripted
from support.greedy import load_greedy
from support.harmony_cases import Reference

CODE = "<|start|>assistant<|channel|>analysis to=python code<|message|>print(17 + 25)<|call|>"
LOOK_UP = '<|channel|>analysis to=browser.search<|message|>{"query": "demo"}<|call|>'


@pytest.fixture(scope="module")
def real():
    return Tokenizer.packaged("o200k_harmony")


@pytest.fixture(scope="module")
def model():
    return load_greedy("demo-gpt-oss", precision="exact")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return Reference(tmp_path_factory.mktemp("ranks"))


def theirs(reference, content, names):
    """The system message as openai-harmony makes it with its own texts of these tools."""
    made = reference.content(content)
    for name in names:
        made = made.with_browser_tool() if name == "browser" else made.with_python_tool()
    return reference.package.Message.from_role_and_content(reference.package.Role.SYSTEM, made)


@given(
    names=st.lists(st.sampled_from(sorted(BUILTIN)), unique=True),
    date=st.none() | st.just("2025-06-28"),
    effort=st.sampled_from([None, "low", "high"]),
    channels=st.lists(st.sampled_from(["analysis", "final"]), unique=True).map(tuple),
    tools=st.sampled_from([(), (Tool("clock", "Tells the time."),)]),
)
@settings(deadline=None, max_examples=60)
def test_system_messages_agree_with_openai_harmony(reference, real, names, date, effort, channels, tools):
    def system(*spaces):
        return System(date=date, reasoning=effort, channels=channels, namespaces=spaces)

    developer, question = Message("developer", Developer("Be brief.", tools)), Message("user", "Hello")
    got = render_conversation(real, [Message("system", system(*builtin_namespaces(names))), developer, question])
    package = reference.package
    expected = package.Conversation.from_messages(
        [theirs(reference, system(), names), reference.message(developer), reference.message(question)]
    )
    assert got == reference.encoding.render_conversation_for_completion(expected, package.Role.ASSISTANT)


def test_where_the_texts_stand():
    text = content_text(System(namespaces=builtin_namespaces(["python", "browser"])))
    places = [
        text.index(part)
        for part in (
            "Reasoning: medium\n\n# Tools\n\n## browser\n\n// Tool for browsing.\n",
            "namespace browser {\n\n// Searches",
            "type open = (_: {\nid?: number | string, // default: -1\n",
            "} // namespace browser\n\n## python\n\nUse this",
            "Depends on the cluster.\n\n# Valid channels: analysis, commentary, final.",
        )
    ]
    assert places == sorted(places)


def test_calls_come_back_and_their_results_go_on(monkeypatch, model):
    thought = "<|channel|>analysis<|message|>A sum.<|end|>"
    prompts = scripted(monkeypatch, model, thought + CODE, FINAL.format("42"), FINAL.format("Yes."))
    chat = model.chat(builtin_tools=["python"])
    reply = chat.send("What is 17 + 25?")
    (call,) = reply.tool_calls
    assert call == ToolCall("python", "print(17 + 25)", "analysis") and call.name == "python"
    assert (reply.finish_reason, reply.reasoning, reply.text) == ("tool_calls", "A sum.", "")
    assert "\n\n# Tools\n\n## python\n\nUse this tool" in prompts[0]
    chat.add_result(call, "42\n")
    assert chat.send().text == "42"
    result = "<|start|>python to=assistant<|channel|>analysis<|message|>42\n<|end|><|start|>assistant"
    assert prompts[1] == prompts[0] + thought + CODE + result
    chat.send("Sure?")  # what was on the analysis channel has gone with its turn
    assert "print(17" not in prompts[2] and "python to=assistant" not in prompts[2]


def test_run_call_answers(monkeypatch, model):
    scripted(monkeypatch, model, LOOK_UP, FINAL.format("Found."))
    chat, asked = model.chat(builtin_tools=["browser"]), []
    assert chat.run("Look it up.", run_call=lambda call: asked.append(call) or "[0] a page").text == "Found."
    assert asked == [ToolCall("browser.search", '{"query": "demo"}', "analysis")]
    assert chat.messages[2] == Message("tool", "[0] a page", "analysis", "assistant", name="browser.search")


def test_results_of_functions_stay_on_commentary(model):
    chat = model.chat()
    chat.add_result(ToolCall("functions.f", "{}", "analysis"), "x")
    assert chat.messages[0].channel == "commentary"


@pytest.mark.parametrize(
    ("tools", "match"),
    [
        (["bash"], "a built-in tool is browser or python, or a Namespace, not 'bash'"),
        ([3], "not 3"),
        ("python", "builtin_tools is a list of names, .* not 'python'"),
        (["python", Namespace("python")], "two built-in tools are called python"),
    ],
)
def test_bad_builtin_tools(model, tools, match):
    with pytest.raises(InputError, match=match):
        model.chat(builtin_tools=tools)
