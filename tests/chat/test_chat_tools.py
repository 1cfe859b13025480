"""The tool loop as a stream, and `cgpt chat --tools`: functions of a file, each call shown, and asked about first."""

import io
import sys

import pytest

from cgpt.chat.functions import as_tools
from cgpt.chat.messages import Tool
from cgpt.cli import chat as chat_command
from cgpt.cli import main as cli
from cgpt.cli.chat import Terminal
from cgpt.cli.tool_file import load_functions
from cgpt.errors import ContextLengthError, InputError

from support.chat_cases import CALL, FINAL, scripted
from support.greedy import load_greedy
from support.terminal import Session

QUESTION = "How is the weather in Venice?"
FILE = '''
from __future__ import annotations
import functools
import json
from dataclasses import dataclass
from os.path import join


@dataclass
class Sky:
    temperature: int
    sky: str


@functools.cache
def get_weather(city: str):
    """Gets the weather in a city."""
    return vars(_sky(city))


def broken(city: str):
    """Raises."""
    raise LookupError(f"no {city}")


def helper(): ...


def _sky(city):
    """Is private."""
    return Sky(23, "rainy")
'''


@pytest.fixture(scope="module")
def model():
    return load_greedy("demo-gpt-oss", precision="exact")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weather.py"
    path.write_text(FILE)
    return path


# ----------------------------------------------------------------------------------------------- the tool loop


def get_weather(city: str):
    """Gets the weather in a city."""
    return {"temperature": 23, "sky": "rainy"}


def test_a_loop_as_a_stream(model):
    chat, other, asked = model.chat(tools=[get_weather]), model.chat(tools=[get_weather]), []

    def run(call):
        asked.append((call.name, call.arguments))
        return '{"temperature": -1, "sky": "sunny"}'

    pieces = list(chat.run_stream(QUESTION, run_call=run))
    assert asked == [("get_weather", '{"city": "Venice"}')]
    text = "".join(p.text for p in pieces if p.kind == "answer")
    assert text == chat.reply.text == "It is -1 degrees and sunny in Venice."
    texts = [p.text for p in other.run_stream(QUESTION)]
    assert "".join(texts).endswith("It is 23 degrees and rainy in Venice.")
    assert [m.role for m in chat.messages] == ["user", "assistant", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("problem", [KeyboardInterrupt, ContextLengthError])
def test_what_stops_the_loop_takes_the_turn_back(monkeypatch, model, problem):
    chat = model.chat(tools=[get_weather])
    chat.send("What is 17 + 25?")
    before = list(chat.messages)

    def stopped(*_):
        raise problem

    if problem is KeyboardInterrupt:  # while the tool runs
        with pytest.raises(problem):
            list(chat.run_stream(QUESTION, run_call=stopped))
    else:  # when its result makes the conversation too long
        result = "long " * model.context_length
        with pytest.raises(problem):
            list(chat.run_stream(QUESTION, run_call=lambda call: result))
    assert chat.messages == before and chat.send("Now add 5.").text == "47"


def test_closing_the_loop(monkeypatch, model):
    chat = model.chat(tools=[get_weather])
    for kind, kept in (("call", 0), ("answer", 4)):
        with monkeypatch.context() as patch:
            scripted(patch, model, CALL.format('{"city": "x"}'), FINAL.format("It rains in x."))
            pieces = chat.run_stream("x")
            assert any(piece.kind == kind for piece in pieces)
            pieces.close()
        assert chat.reply.finish_reason == "cancelled" and len(chat.messages) == kept


def test_a_cut_answer_after_a_call_takes_the_turn_back(monkeypatch, model):
    scripted(monkeypatch, model, CALL.format("{}"), "<|channel|>analysis<|message|>" + "so " * 100)
    chat = model.chat(tools=[get_weather])
    assert chat.run("x", max_new_tokens=40).finish_reason == "length" and chat.messages == []


# ---------------------------------------------------------------------------------------------------- the file


def test_functions_of_a_file(file):
    functions = load_functions(file)
    assert [tool.name for tool in as_tools(functions)] == ["get_weather", "broken"]
    assert functions[0]("Rome") == {"temperature": 23, "sky": "rainy"}


def test_a_file_named_as_a_module_hides_none(file):
    path = file.with_name("json.py")
    path.write_text('import json\ndef f():\n    """Dumps."""\n    return json.dumps([1])\n')
    assert load_functions(path)[0]() == "[1]" and sys.modules["json"].dumps([]) == "[]"


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("no.py", None, "is no Python file"),
        ("weather.txt", FILE, "is no Python file"),
        ("x.py", "def f(:", r"x.py cannot be run: SyntaxError: .*line 1"),
        ("x.py", "import nothing_such", "x.py cannot be run: ModuleNotFoundError: No module named 'nothing_such'"),
        ("x.py", "from os.path import join\ndef f(): ...", "x.py defines no function with a docstring"),
        ("x.py", "def _f():\n    'Is private.'", "x.py defines no function with a docstring"),
    ],
)
def test_bad_files(tmp_path, name, text, match):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=match):
        load_functions(tmp_path / name)


# ------------------------------------------------------------------------------------------------ the terminal


@pytest.fixture
def ask(monkeypatch, capsys, model, file):
    """Lets the model say these texts in a terminal whose user types `typed` -> what is printed, and the chat."""

    def run(*texts, typed="", tools=None, **options):
        chat = model.chat(tools=load_functions(file) if tools is None else tools)
        terminal = Terminal(chat, {}, show_reasoning=True, **options)
        terminal._interactive = True
        with monkeypatch.context() as patch:
            scripted(patch, model, *texts)
            patch.setattr(sys, "stdin", io.StringIO(typed))
            assert terminal.take("x")
        return capsys.readouterr().out, chat

    return run


ROME = CALL.format('{"city": "Rome"}')
SHOWN = 'get_weather(city="Rome")\n'
ASKED = "run it? [y]es, [n]o, [a]ll from now on: "
RESULT = '-> {"temperature": 23, "sky": "rainy"}\n'
DENIED = "-> error: the user did not allow this call\n"


@pytest.mark.parametrize(
    ("typed", "outcome"),
    [
        ("y\n", RESULT),
        (" YES \n", RESULT),
        ("a\n", RESULT),
        ("n\n", DENIED),
        ("\n", DENIED),
        ("yeah\n", DENIED),
        ("", "\n" + DENIED),  # Ctrl-D
    ],
)
def test_each_call_is_asked_about(ask, typed, outcome):
    out, chat = ask(ROME, FINAL.format("Done."), typed=typed)
    assert out == f"{SHOWN}{ASKED}{outcome}Done.\n"
    assert chat.messages[2].content == outcome.strip("-> \n")


def test_all_is_for_the_calls_to_come(ask):
    out, _ = ask(ROME, ROME, FINAL.format("Done."), typed="a\n")
    assert out == f"{SHOWN}{ASKED}{RESULT}{SHOWN}{RESULT}Done.\n"
    out, _ = ask(ROME, ROME, FINAL.format("Done."), typed="y\nn\n")
    assert out == f"{SHOWN}{ASKED}{RESULT}{SHOWN}{ASKED}{DENIED}Done.\n"
    out, _ = ask(ROME, FINAL.format("Done."), yes_tools=True)
    assert out == f"{SHOWN}{RESULT}Done.\n"


def test_endless_calls_end(monkeypatch, ask):
    monkeypatch.setattr(chat_command, "MAX_ROUNDS", 2)
    written = []
    monkeypatch.setattr(sys.stderr, "write", written.append)
    out, chat = ask(*[ROME] * 3, yes_tools=True)
    assert out.count(SHOWN + RESULT) == 2 and chat.reply.tool_calls
    assert "".join(written) == "[stopped: the model went on calling after 2 rounds]\n"


def test_errors_go_to_the_model(ask):
    out, chat = ask(ROME.replace("get_weather", "broken"), FINAL.format("Sorry."), yes_tools=True)
    assert out == 'broken(city="Rome")\n-> error: LookupError: no Rome\nSorry.\n'
    assert chat.messages[2].content == "error: LookupError: no Rome"


def test_what_cannot_run_is_not_asked_about(ask):
    out, _ = ask(ROME, FINAL.format("I cannot."), tools=[Tool("get_weather")])
    assert out == f"{SHOWN}-> error: there is no function get_weather to run; there are: none\nI cannot.\n"
    out, chat = ask(ROME, FINAL.format("I cannot."), tools=[])  # nor is it called, where it was not even offered
    assert out == "I cannot.\n"
    assert chat.messages[2].content == "error: there is no function get_weather to run; there are: none"


def test_a_call_looks_like_what_it_is(monkeypatch, ask):
    """Nothing that the model or a tool writes moves the cursor or hides what is about to run."""
    call = CALL.format('{"city": "\\u001b[2K\\u202e\\u009b1A\\n"}')
    out, _ = ask(call, FINAL.format("\x1b[1A"), typed="y\n")
    assert out.startswith('get_weather(city="\\u001b[2K\\u202e\\x9b1A\\n")\n')
    with monkeypatch.context() as patch:
        patch.setattr(sys.stdout, "isatty", lambda: True)
        out, _ = ask(CALL.format("\x1b[2Knot JSON"), FINAL.format("\x1b[1A\r\n"), typed="y\n")
    assert out.startswith("\x1b[2mget_weather(\\x1b[2Knot JSON)\n") and "\x1b[0m\\x1b[1A\\r\n" in out

    def loud():
        """Says much."""
        return "\x1b[2J" + "a" * 2000

    out, chat = ask(
        ROME.replace("get_weather", "loud").replace('"city": "Rome"', ""),
        FINAL.format("."),
        tools=[loud],
        yes_tools=True,
    )
    assert "-> \\x1b[2J" + "a" * 996 + "... 2004 characters\n" in out and chat.messages[2].content == loud()


def test_in_a_terminal(file):
    session = Session(options=["--tools", file])
    session.until("> ")
    session.type("/tools\n")
    assert "get_weather(city)  Gets the weather in a city.\r\nbroken(city)  Raises.\r\n" in session.until("\n> ")
    session.type(f"{QUESTION}\n")
    shown = session.until("from now on: ")
    assert '\x1b[2mI need the weather tool.\r\n\x1b[2mget_weather(city="Venice")\r\n' in shown
    session.type("\x03")
    session.until("[stopped]", again="\x03")  # Python sees it late if it is just about to wait
    assert "rounds" not in session.until("> ")
    session.type(f"{QUESTION}\n")
    session.until("from now on: ")
    session.type("y\n")
    assert "\x1b[0mIt is 23 degrees and rainy in Venice." in session.until("\n> ")
    session.type("\x04")
    assert session.status() == 0


def test_through_pipes(monkeypatch, capsys, file):
    class Stdin:
        buffer = [f"{QUESTION}\n".encode()]
        isatty = staticmethod(lambda: False)

    monkeypatch.setattr(sys, "stdin", Stdin)
    command = ["chat", "--date", "", "--tools", str(file)]
    assert cli.main(command) == 2 and "--yes-tools allows all" in capsys.readouterr().err
    assert cli.main([*command, "--yes-tools"]) == 0
    out, err = capsys.readouterr()
    assert out == "It is 23 degrees and rainy in Venice.\n"
    assert err == 'get_weather(city="Venice")\n-> {"temperature": 23, "sky": "rainy"}\n'
