"""The command `cgpt chat`: a conversation in the terminal, or line by line through pipes."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cgpt.chat.chat import MAX_NEW_TOKENS, Chat, ToolCall
from cgpt.chat.functions import as_tools, run_tool
from cgpt.chat.messages import EFFORTS
from cgpt.checkpoint.locate import model_name
from cgpt.cli.options import (
    add_model_options,
    add_sampling_options,
    decode,
    expert_progress,
    load_model,
    sampling_options,
    say,
)
from cgpt.cli.tool_file import load_functions
from cgpt.errors import CgptError, InputError

DEFAULT_MODEL = "demo-gpt-oss"
# cgpt/demo/README.md
DEMO_ACCURACY = "Of 204 small problems it answered 200 to 202 at temperature 1, its default, and 203 at temperature 0."
HELP = """\
/help              this
/reset             forget the conversation
/system [TEXT]     show the instructions, or set them and begin anew ("-" for none)
/reasoning [WHAT]  low, medium or high: how long to think; show or hide: whether you see it
/tools             list the functions that the model may call
/save FILE         write the conversation as JSON
/quit              leave, as does Ctrl-D; Ctrl-C stops an answer"""
DIM, PLAIN = "\x1b[2m", "\x1b[0m"
MAX_ROUNDS = 32  # of calls for one answer
MAX_RESULT = 1000  # characters of a result that are shown; the model gets them all
# What steers a terminal, and what changes the order of letters: a call must look like what it is.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

SUMMARY = "talk with a gpt-oss model; /help lists what else it understands"
EXAMPLES = """\
  cgpt chat
  cgpt chat --model ./gpt-oss-20b --reasoning low --temperature 1 --system 'Answer in one sentence.'
  cgpt chat --tools weather.py     (its functions, each call shown and asked about)
  echo "What is 17 + 25?" | cgpt chat --date ""      (a line is a message; the answers alone are printed)"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options to its parser."""
    add = parser.add_argument
    add("--system", metavar="TEXT", help="instructions that hold for the whole conversation")
    add("--reasoning", choices=EFFORTS, default="medium", help="how long to think (default: medium)")
    add("--hide-reasoning", action="store_true", help="do not show it; pipes never do")
    add("--date", metavar="DATE", help='what day the model is told it is (default: today; "" for none)')

    add = parser.add_argument_group("tools").add_argument
    help = "a Python file, which is run: the model may call the functions in it that have a docstring; repeatable"
    add("--tools", metavar="FILE.py", action="append", default=[], help=help)
    add("--yes-tools", action="store_true", help="run each call without asking; through pipes nobody can be asked")
    add_sampling_options(parser, MAX_NEW_TOKENS)
    add_model_options(parser, DEFAULT_MODEL)


def run(args: argparse.Namespace) -> None:
    """Talks until /quit, or the end of what stdin has."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if args.tools and not (interactive or args.yes_tools):
        raise InputError("through pipes nobody can be asked whether a call may run; --yes-tools allows all")
    tools = as_tools(function for path in args.tools for function in load_functions(path))
    model = load_model(args)
    date = datetime.date.today().isoformat() if args.date is None else args.date or None
    chat = model.chat(system=args.system, tools=tools, reasoning=args.reasoning, date=date)
    shown = interactive and not args.hide_reasoning
    options, name = sampling_options(args, model, MAX_NEW_TOKENS), model_name(model.directory)
    terminal = Terminal(chat, options, name=name, show_reasoning=shown, yes_tools=args.yes_tools)
    if interactive:
        terminal.run()
    else:
        _answer_lines(terminal)


def _answer_lines(terminal: Terminal) -> None:
    """Each line of stdin is a message. Commands work too; an error or Ctrl-C ends the conversation."""
    for raw in sys.stdin.buffer:
        line = decode(raw, "a message on stdin").strip()
        if line and not terminal.take(line):
            break


def _spelled(call: ToolCall) -> str:
    """The call as Python has it; what is no JSON object as the model wrote it."""
    arguments = call.arguments
    try:
        given = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        given = None
    if isinstance(given, dict):
        arguments = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in given.items())
    return _visible(f"{call.name}({arguments})")


def _visible(text: str) -> str:
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Terminal:
    """The conversation with the model `name` as the terminal shows it. Reasoning and calls are dimmed where stdout is a
    terminal; through pipes calls go to stderr. yes_tools: calls run without being asked about."""

    def __init__(
        self, chat: Chat, options: dict[str, Any], *, name: str = "", show_reasoning: bool, yes_tools: bool = False
    ) -> None:
        self.chat, self.options, self.name = chat, options, name
        self.show_reasoning, self.yes_tools = show_reasoning, yes_tools
        self._interactive = False
        self._kind: str | None = None  # of what was printed last; None at the beginning of a line

    def run(self) -> None:
        self._interactive = True
        with suppress(ImportError):
            import readline  # noqa: F401, gives input() a history and editing
        print(f"{self.name}; /help lists the commands")
        if self.name == DEFAULT_MODEL:
            print(DEMO_ACCURACY)
        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                print("  (/quit or Ctrl-D leaves)")
                continue
            except EOFError:
                print()
                break
            try:
                if line and not self.take(line):
                    break
            except (CgptError, OSError) as problem:
                say(problem)

    def take(self, line: str) -> bool:
        """Does what a line says, a command or a message; False if that is to leave."""
        if line.startswith("/"):
            word, _, rest = line[1:].partition(" ")
            command = getattr(self, f"_{word}_command", None)
            if word == "quit":
                return False
            if not word.isalpha() or command is None:
                raise InputError(f"there is no command /{word}; /help lists them")
            command(rest.strip())
        else:
            self._answer(line)
        return True

    def _answer(self, line: str) -> None:
        """Prints the reply as it comes, and runs what it calls. In a terminal Ctrl-C stops it and keeps the chat."""
        self._kind = None
        deltas = self.chat.run_stream(line, run_call=self._run, max_rounds=MAX_ROUNDS, **self.options)
        try:
            with ExitStack() as reading:
                reading.enter_context(expert_progress(self.chat.model))
                for delta in deltas:
                    reading.close()
                    if delta.kind == "call" or (delta.kind == "reasoning" and not self.show_reasoning):
                        continue
                    self._begin(delta.kind)
                    self._print(_visible(delta.text) if sys.stdout.isatty() else delta.text)
        except KeyboardInterrupt:
            deltas.close()
            if not self._interactive:
                raise
            self._print(" [stopped]")
            return
        finally:
            self._print(self._style(None) + "\n")
        reply = self.chat.reply
        if reply and reply.finish_reason == "length":
            print("[cut off: --max-new-tokens, or the context is full]", file=sys.stderr)
        if reply and reply.tool_calls:
            print(f"[stopped: the model went on calling after {MAX_ROUNDS} rounds]", file=sys.stderr)

    def _run(self, call: ToolCall) -> str:
        """The result of a call, which is shown; it runs if the user allows it."""
        self._say(_spelled(call))
        is_known = any(tool.name == call.name and tool.function for tool in self.chat.tools)
        if is_known and not self.yes_tools and not self._may_run():
            result = "error: the user did not allow this call"
        else:
            result = run_tool(self.chat.tools, call.name, call.arguments)
        rest = f"... {len(result)} characters" if len(result) > MAX_RESULT else ""
        self._say(f"-> {_visible(result[:MAX_RESULT])}{rest}")
        return result

    def _may_run(self) -> bool:
        """Asks; "all" allows the calls to come too. Only y, yes, a or all is a yes."""
        if not self._interactive:
            return False
        self._say("run it? [y]es, [n]o, [a]ll from now on: ")
        line = sys.stdin.readline()
        self._kind = None if line.endswith("\n") else self._kind
        answer = line.strip().lower()
        self.yes_tools = answer in ("a", "all")
        return answer in ("y", "yes", "a", "all")

    def _say(self, text: str) -> None:
        """A line about a call."""
        if self._interactive:
            self._begin("call")
            self._print(text)
        else:
            print(text, file=sys.stderr)

    def _begin(self, kind: str) -> None:
        """A line in the style of this kind, if the text before was another's; calls have a line each."""
        if kind != self._kind or kind == "call":
            self._print(("" if self._kind is None else "\n") + self._style(kind))
            self._kind = kind

    def _style(self, kind: str | None) -> str:
        if not sys.stdout.isatty():
            return ""
        return DIM if kind in ("reasoning", "call") else PLAIN

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    # ------------------------------------------------------------------------------------------------ commands

    def _help_command(self, _: str) -> None:
        print(HELP)

    def _conversation(self) -> dict[str, Any]:
        messages = [{k: v for k, v in asdict(m).items() if v is not None} for m in self.chat.messages]
        settings = {"instructions": self.chat.developer.instructions, "reasoning": self.chat.system.reasoning}
        return {"model": self.name, **settings, "messages": messages}

    def _reset_command(self, _: str) -> None:
        self.chat.reset()
        print("a new conversation")

    def _system_command(self, text: str) -> None:
        if not text:
            print(self.chat.developer.instructions or "no instructions")
            return
        self.chat.reset()
        self.chat.developer = replace(self.chat.developer, instructions=None if text == "-" else text)
        print("a new conversation")

    def _reasoning_command(self, what: str) -> None:
        if what in ("show", "hide"):
            self.show_reasoning = what == "show"
        elif what:
            self.chat.system = replace(self.chat.system, reasoning=what)
        print(f"reasoning: {self.chat.system.reasoning}, {'shown' if self.show_reasoning else 'hidden'}")

    def _tools_command(self, _: str) -> None:
        for tool in self.chat.tools:
            print(f"{tool.name}({', '.join((tool.parameters or {}).get('properties', ()))})  {tool.description}")
        if not self.chat.tools:
            print("no tools; cgpt chat --tools FILE.py gives some")

    def _save_command(self, path: str) -> None:
        if not path:
            raise InputError("/save needs the name of a file")
        Path(path).write_text(json.dumps(self._conversation(), indent=2, ensure_ascii=False) + "\n", "utf-8")
        print(f"saved {len(self.chat.messages)} messages to {path}")
