"""`cgpt chat`, through pipes and in a terminal."""

import json
import subprocess
import sys

import pytest

from cgpt.chat.chat import Chat
from cgpt.cli import chat as chat_command
from cgpt.cli import main as cli

from support.greedy import load_greedy
from support.terminal import Session

ADD = "What is 17 + 25?"


@pytest.fixture
def chat(capsys, monkeypatch):
    """Runs `cgpt chat` in this process on lines of stdin -> exit status, stdout, stderr."""

    def run(*lines, options=("--date", "", "--precision", "exact")):
        class Stdin:
            buffer = [line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines]

            @staticmethod
            def isatty():
                return False

        monkeypatch.setattr(sys, "stdin", Stdin)
        return cli.main(["chat", "--temperature", "0", *options]), *capsys.readouterr()

    return run


def test_pipes(chat):
    assert chat(ADD, "", "Now add 5.") == (0, "42\n47\n", "")


def test_a_fresh_process():
    command = [sys.executable, "-m", "cgpt", "chat", "--temperature", "0", "--date", ""]
    done = subprocess.run(command, input=f"{ADD}\n", capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "42\n", "")


def test_commands(chat, tmp_path):
    path = tmp_path / "saved.json"
    status, out, err = chat(
        ADD, "/reset", "Now add 5.", "/reasoning high", "/reasoning", "/system Answer briefly.", "/system", "/system -",
        "/system", "/reasoning show", ADD, f"/save {path}", "/help", "/quit", ADD,
    )  # fmt: skip
    lines = out.splitlines()
    assert (status, err, lines[:2]) == (0, "", ["42", "a new conversation"])
    assert lines[2] != "47"  # it has forgotten the sum
    assert lines[3:9] == [
        "reasoning: high, hidden",
        "reasoning: high, hidden",
        "a new conversation",
        "Answer briefly.",
        "a new conversation",
        "no instructions",
    ]
    assert lines[9] == "reasoning: high, shown" and lines[10].startswith("We need 17+25") and "42" in lines
    assert f"saved 3 messages to {path}" in out and out.endswith("Ctrl-C stops an answer\n")
    saved = json.loads(path.read_text("utf-8"))
    assert saved["model"] == "demo-gpt-oss" and saved["reasoning"] == "high"
    assert [m.get("channel") for m in saved["messages"]] == [None, "analysis", "final"]
    assert saved["messages"][0] == {"role": "user", "content": ADD}


def test_options_reach_the_model(chat, monkeypatch):
    asked = []
    run_stream = Chat.run_stream

    def noting(self, text, **options):
        asked.append((self, options))
        return run_stream(self, text, **options)

    monkeypatch.setattr(Chat, "run_stream", noting)
    options = ("--system", "Answer briefly.", "--reasoning", "low", "--temperature", "0.5", "--top-p", "0.9",
               "--top-k", "40", "--min-p", "0.01", "--repetition-penalty", "1.1",
               "--seed", "1", "--max-new-tokens", "60", "--date", "2025-06-28")  # fmt: skip
    assert chat(ADD, options=options)[0] == 0
    made, given = asked[0]
    assert given.pop("max_rounds") and given.pop("run_call")
    assert {name: value for name, value in given.items() if value is not None} == {
        "max_new_tokens": 60,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 1,
    }
    assert (made.developer.instructions, made.system.reasoning, made.system.date) == (
        "Answer briefly.",
        "low",
        "2025-06-28",
    )


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("/nothing", "there is no command /nothing; /help lists them"),
        ("/_x y", "there is no command /_x"),
        ("/reasoning max", "reasoning is one of low, medium, high"),
        ("/save", "/save needs the name of a file"),
        ("/save /no/such/folder/x", "No such file"),
        (b"\xff\n", "a message on stdin is not UTF-8"),
    ],
)
def test_errors(chat, line, says):
    status, out, err = chat(line, ADD)
    assert status == 2 and err.startswith("cgpt: error: ") and says in err and out == ""


def test_gpt2(chat):
    status, _, err = chat(ADD, options=("--model", "demo-gpt2"))
    assert status == 2 and "does not speak the harmony format" in err


def test_length(chat):
    status, _, err = chat(ADD, options=("--max-new-tokens", "5"))
    assert status == 0 and "cut off" in err


def test_interrupt_while_printing(monkeypatch, capsys):
    """Ctrl-C may come while no answer is computed; then the stream has to be closed."""
    terminal = chat_command.Terminal(load_greedy("demo-gpt-oss").chat(), {}, show_reasoning=True)
    terminal._interactive = True
    print_ = terminal._print

    def interrupted(text):
        print_(text)
        if text == "+":
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(terminal, "_print", interrupted)
    assert terminal.take(ADD) and capsys.readouterr().out == "17+ [stopped]\n"
    assert terminal.chat.reply.finish_reason == "cancelled" and terminal.chat.messages == []
    assert terminal.take("/reasoning hide") and terminal.take(ADD)
    assert capsys.readouterr().out.endswith("\n42\n")


ENDLESS = """
import numpy as np
from cgpt.generation.sampling import Sampler
choose = Sampler.choose
ends = np.isin(np.arange(528), [501, 504, 509, 514])
Sampler.choose = lambda self, logits: choose(self, np.where(ends, np.float32(-1e9), logits))
"""  # no answer ever ends


def test_in_a_terminal():
    session = Session()
    assert "demo-gpt-oss; /help" in session.until("> ")
    session.type(f"{ADD}\n")
    shown = session.until("\n> ")
    assert "\x1b[2m17+25" in shown and "\x1b[0m42\x1b[0m" in shown
    session.type("/reasoning hide\n")
    session.until("\n> ")
    session.type("Now add 5.\n")
    assert "\x1b[2m" not in (shown := session.until("\n> ")) and "47" in shown
    session.type("/nothing\n")
    assert "there is no command /nothing" in session.until("\n> ")
    session.type("\x1b[A\x1b[A\n")  # the line before the last one: history
    assert "\x1b[0m52\x1b[0m" in session.until("\n> ")
    session.type("\x03")  # Ctrl-C at the prompt; Python sees it late if readline is about to wait
    session.until("Ctrl-D leaves", again="\x03")
    session.until("> ")
    session.type("\x04")
    assert session.status() == 0


def test_interrupt_stops_the_answer_and_keeps_the_chat():
    session = Session(ENDLESS)
    session.until("> ")
    session.type(f"{ADD}\n")
    session.until("17+25")
    session.type("\x03")
    session.until("[stopped]")
    session.until("> ")
    session.type("/save /dev/stdout\n")
    assert '"messages": []' in session.until("saved 0 messages")
    session.until("> ")
    session.type("/quit\n")
    assert session.status() == 0
