"""The command line: what it prints, what it passes on, and how it ends."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

import cgpt
from cgpt.analysis import info
from cgpt.checkpoint.expert_store import FileReader
from cgpt.cli import main as cli
from cgpt.cli import options
from cgpt.cli.options import ProgressBar
from cgpt.errors import CheckpointError
from cgpt.kernels import isa
from cgpt.models import description
from cgpt.models.description import describe

from golden import case

COMMANDS = [command.__name__.rpartition(".")[2] for command in cli.COMMANDS]


@pytest.fixture(scope="module")
def gpt2():
    return cgpt.load("demo-gpt2")


@pytest.fixture
def cgpt_(capsys):
    """Runs a command in this process -> exit status, stdout, stderr."""

    def run(*args):
        try:
            status = cli.main([str(arg) for arg in args])
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return run


class FakeModel:
    """Takes the place of what cgpt.load gives; records what it is asked for."""

    def __init__(self, monkeypatch, pieces=("some ", "text")):
        self.pieces = pieces
        monkeypatch.setattr(options, "load", self.load)

    transformer = SimpleNamespace(streaming=None)

    def load(
        self, path_or_name, *settings, kv_cache_dtype, huge_pages, memory, weights_cache, progress, revision, comm
    ):
        assert comm is None  # no launcher started this process
        self.loaded = (path_or_name, *settings, kv_cache_dtype, huge_pages, memory, weights_cache, revision)
        self.progress = progress
        return self

    def stream(self, prompt, **options):
        self.prompt, self.options = prompt, options
        yield from self.pieces


def command(*args):
    """A command in a process of its own."""
    return [sys.executable, "-m", "cgpt", *map(str, args)]


# ---- generate


def test_generate_prints_the_text(cgpt_, gpt2):
    text = gpt2.generate("ROMEO:", max_new_tokens=12).text
    assert cgpt_("generate", "--max-new-tokens", 12, "ROMEO:") == (0, text + "\n", "")


def test_generate_prints_json(cgpt_, gpt2):
    done = gpt2.generate("ROMEO:", max_new_tokens=12)
    status, out, err = cgpt_("generate", "--json", "--max-new-tokens", 12, "ROMEO:")
    got = json.loads(out)
    assert (status, err, out.count("\n")) == (0, "", 1)
    assert (got["text"], got["ids"], got["finish_reason"]) == (done.text, done.ids, "length")
    prefill, decode = got["timings"]["prefill"], got["timings"]["decode"]
    assert (prefill["tokens"], decode["tokens"]) == (len(done.prompt_ids), 11)
    for timing in (prefill, decode):
        assert timing["seconds"] > 0
        assert timing["tokens_per_second"] == timing["tokens"] / timing["seconds"]
    _, out, _ = cgpt_("generate", "--json", "--max-new-tokens", 1, "ROMEO:")
    assert json.loads(out)["timings"]["decode"]["tokens_per_second"] is None


def test_generate_passes_its_options_on(cgpt_, monkeypatch):
    model = FakeModel(monkeypatch)
    defaults = dict(max_new_tokens=None, temperature=None, top_k=None, top_p=None, min_p=None)
    defaults |= dict(repetition_penalty=None, seed=None, stop=None, prompt_lookup_num_tokens=None)
    defaults |= dict(special=False, skip_special_tokens=False)
    assert cgpt_("generate", "a prompt") == (0, "some text\n", "")
    assert model.loaded == ("demo-gpt2", None, "auto", None, None, False, None, None, None)
    assert model.prompt == "a prompt"
    assert model.options == defaults

    lookup = ["--prompt-lookup-num-tokens", 6]
    sampling = "--temperature 0.7 --top-k 8 --top-p 0.9 --min-p 0.1 --repetition-penalty 1.2 --seed 3"
    running = "--model m --threads 2 --precision exact --dense bf16 --kv-cache-dtype f32 --huge-pages --memory 9GB"
    running += " --stop . --stop ! --max-new-tokens 5 --special --skip-special-tokens"
    cgpt_("generate", *sampling.split(), *running.split(), *lookup, "--", "-x")
    assert model.prompt == "-x"
    assert model.loaded == ("m", 2, "exact", "bf16", "f32", True, "9GB", None, None)
    assert model.options == dict(
        max_new_tokens=5,
        temperature=0.7,
        top_k=8,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.2,
        prompt_lookup_num_tokens=6,
        seed=3,
        stop=[".", "!"],
        special=True,
        skip_special_tokens=True,
    )


def test_special_tokens_in_the_prompt_and_the_text(cgpt_, gpt2):
    *_, ids = (
        json.loads(cgpt_("generate", "--json", "--max-new-tokens", "5", *more, "Hi<|endoftext|>")[1])["ids"]
        for more in ((), ("--special",))
    )
    assert ids == gpt2.generate([*gpt2.encode_prompt("Hi"), *gpt2.eos_token_ids], max_new_tokens=5).ids
    assert gpt2.generate("Hi<|endoftext|>", special=True, max_new_tokens=5).ids == ids


def test_generate_writes_each_piece_when_it_comes(monkeypatch):
    written = io.StringIO()
    flushed = []
    written.flush = lambda: flushed.append(written.getvalue())
    monkeypatch.setattr(sys, "stdout", written)
    model = FakeModel(monkeypatch)

    def pieces():
        yield "one"
        assert flushed[-1] == "one"
        yield " two"
        assert flushed[-1] == "one two"

    model.pieces = pieces()
    assert cli.main(["generate", "x"]) == 0
    assert flushed[-1] == "one two\n"


def test_generate_reads_stdin(cgpt_, monkeypatch):
    model = FakeModel(monkeypatch)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("na\u00efve\n".encode()), encoding="ascii"))
    assert cgpt_("generate", "-")[0] == 0
    assert model.prompt == "na\u00efve\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    status, out, err = cgpt_("generate", "-")
    assert (status, out) == (2, "") and "cgpt: error: the prompt on stdin is not UTF-8" in err


def test_characters_that_the_terminal_lacks_become_question_marks(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    FakeModel(monkeypatch, ["na\u00efve"])
    assert cli.main(["generate", "x"]) == 0
    assert terminal.buffer.getvalue() == b"na?ve\n"


# ---- The options of a model


@pytest.mark.parametrize("command", ["generate x", "chat", "serve", "quality"])
def test_commands_that_load_a_model_take_its_options(monkeypatch, command):
    model = FakeModel(monkeypatch)
    given = "--model m --threads 2 --precision int8 --dense bf16 --kv-cache-dtype f32 --huge-pages --memory 9GB"
    given += " --revision v1 --weights-cache kept"
    args = cli._parser().parse_args(f"{command} {given}".split())
    options.load_model(args)
    assert model.loaded == ("m", 2, "int8", "bf16", "f32", True, "9GB", "kept", "v1")
    options.load_model(args, reference=True)
    assert model.loaded == ("m", 2, "exact", None, None, True, "9GB", "kept", "v1")


# ---- The other commands


def test_info(cgpt_, monkeypatch):
    monkeypatch.setattr(description, "available_memory", lambda root: 10**10)
    assert cgpt_("info", "demo-gpt2") == (0, info.render(describe("demo-gpt2")) + "\n", "")
    status, out, _ = cgpt_("info", "gpt-oss-20b", "--context", 4096, "--json")
    assert (status, json.loads(out)["memory"]) == (0, describe("gpt-oss-20b", 4096)["memory"])


def small_config(directory):
    config = dict(model_type="gpt2", vocab_size=50, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    (directory / "config.json").write_text(json.dumps(config))
    return directory / "config.json"


def test_synth(cgpt_, tmp_path):
    weights = []
    for seed in ([], ["--seed", 0], ["--seed", 1]):
        directory = tmp_path / f"model{len(weights)}"
        status, out, err = cgpt_("synth", small_config(tmp_path), directory, *seed)
        assert (status, err) == (0, "") and str(directory) in out
        weights.append((directory / "model.safetensors").read_bytes())
    assert cgpt.load(directory).config.n_embd == 8
    assert weights[0] == weights[1] != weights[2]
    status, out, err = cgpt_("synth", small_config(tmp_path), tmp_path / "new", "--routing-skew", 1)
    assert (status, out) == (2, "") and "no experts" in err
    status, out, err = cgpt_("synth", small_config(tmp_path), tmp_path / "tails", "--awkward-rows", 0.5)
    assert (status, err) == (0, "") and (tmp_path / "tails" / "model.safetensors").read_bytes() not in weights
    status, out, err = cgpt_("synth", "gpt3", tmp_path / "new")
    assert (status, out) == (2, "") and "gpt3" in err


def test_kernels(cgpt_):
    status, out, _ = cgpt_("kernels")
    assert status == 0 and out.startswith(f"level   {isa.level()}\n")
    for name, missing in isa.levels().items():
        state = f"needs {missing}" if missing else "available"
        assert re.search(rf"^ +{name} +{re.escape(state)}$", out, re.M)
    for slot, variant in cgpt.kernel_variants().items():
        assert re.search(rf"^{slot} +{re.escape(variant)}$", out, re.M)


def test_version(cgpt_):
    assert cgpt_("--version") == (0, f"cgpt {cgpt.__version__}\n", "")


# ---- Help


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_of_the_help_are_understood(cgpt_, monkeypatch, name):
    status, out, _ = cgpt_(name, "--help")
    lines = out.split("examples:\n")[1]
    examples = re.findall(r"^  (?:CGPT_ISA=\w+ )?cgpt (.*?)(?: < .*|   +\(.*)?$", lines, re.M)
    assert status == 0 and len(examples) >= 2
    for example in examples:
        args = cli._parser().parse_args(shlex.split(example))
        assert args.run.__module__ == f"cgpt.cli.{name}"


def test_help_names_every_command(cgpt_):
    status, out, _ = cgpt_("--help")
    assert status == 0 and all(re.search(rf"^ +{name}\s+\w", out, re.M) for name in COMMANDS)


# ---- How it ends


def test_errors_are_one_line(cgpt_, tmp_path, monkeypatch):
    for args in (
        ["generate", "--model", tmp_path / "nowhere", "x"],
        ["generate", "--model", tmp_path, "x"],
        ["generate", "--top-p", 2, "x"],
        ["generate", "--stop", "", "x"],
        ["generate", ""],
        ["generate", "word " * 300],
        ["generate", "--threads", 0, "x"],
        ["generate", "--model", case("gpt2_plain_f32").directory, "x"],
        ["info", "nothing"],
        ["info", "demo-gpt2", "--context", 10**6],
    ):
        status, out, err = cgpt_(*args)
        assert (status, out) == (2, ""), args
        assert re.fullmatch(r"cgpt: error: .+\n", err), args
    for problem in (OSError(28, "No space left"), MemoryError()):
        monkeypatch.setattr(options, "load", lambda *args, problem=problem, **how: throw(problem))
        status, out, err = cgpt_("generate", "x")
        assert status == 2 and re.fullmatch(r"cgpt: error: .*\w.*\n", err)


def throw(problem):
    raise problem


def test_wrong_usage(cgpt_):
    for args in ([], ["compose"], ["generate"], ["generate", "--top-k", "many", "x"], ["info", "--x"]):
        status, out, err = cgpt_(*args)
        assert (status, out) == (2, "") and err.startswith("usage: cgpt")


def test_an_error_on_the_way_leaves_the_text(cgpt_, monkeypatch):
    model = FakeModel(monkeypatch)

    def pieces():
        yield "some"
        raise CheckpointError("gone")

    model.pieces = pieces()
    assert cgpt_("generate", "x") == (2, "some\n", "cgpt: error: gone\n")


def test_warnings_are_one_line(cgpt_, monkeypatch):
    model = FakeModel(monkeypatch)
    load = model.load

    def warns(*args, **kwargs):
        warnings.warn("a surplus tensor", stacklevel=2)
        return load(*args, **kwargs)

    monkeypatch.setattr(options, "load", warns)
    assert cgpt_("generate", "x") == (0, "some text\n", "cgpt: warning: a surplus tensor\n")


def test_ctrl_c_leaves_the_text(gpt2):
    whole = gpt2.generate("ROMEO:").text
    process = subprocess.Popen(command("generate", "ROMEO:"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=60)
    text = (first + rest).decode()
    assert (process.returncode, err) == (130, b"")
    assert text.endswith("\n") and whole.startswith(text[:-1]) and len(text) < len(whole)


@pytest.mark.parametrize("args", [["generate", "ROMEO:"], ["kernels"]], ids=lambda args: args[0])
def test_a_closed_pipe_is_no_error(args):
    reader, writer = os.pipe()
    os.close(reader)
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command(*args), stdout=writer, stderr=subprocess.PIPE, env=buffered, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_entry_points():
    done = subprocess.run(command("info", "nothing"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("cgpt: error: nothing")


def test_commands_need_no_command_line():
    """cgpt.cli.main lists the commands; none of their modules takes anything back from it."""
    folder = Path(cli.__file__).parent
    modules = [f"cgpt.cli.{path.stem}" for path in folder.glob("*.py") if path.stem not in ("main", "__init__")]
    program = f"import sys, {', '.join(modules)}; sys.exit('cgpt.cli.main' in sys.modules)"
    assert len(modules) > 5 and subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


# ---- The progress bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def terminal_on_stderr(monkeypatch, delay=0):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(ProgressBar, "INTERVAL", 0)
    monkeypatch.setattr(ProgressBar, "DELAY", delay)
    return terminal


def on_screen(written):
    """The line a terminal shows: \\r goes back to its beginning, ESC [K clears what follows."""
    shown = ""
    for part in re.split(r"(\r|\x1b\[K)", written):
        if part == "\r":
            at = 0
        elif part == "\x1b[K":
            shown = shown[:at]
        elif part:
            shown, at = shown[:at] + part + shown[at + len(part) :], at + len(part)
    return shown


def test_progress_is_shown_and_taken_back(monkeypatch):
    terminal = terminal_on_stderr(monkeypatch)
    with ProgressBar("loading x") as progress:
        for done, cells, numbers in ((0, 0, "0.00"), (5, 15, "5.00"), (10, 30, "10.00")):
            progress(done * 10**9, 10 * 10**9)
            bar = "#" * cells + "." * (30 - cells)
            assert on_screen(terminal.getvalue()) == f"loading x [{bar}] {numbers} of 10.00 GB"
    assert on_screen(terminal.getvalue()) == ""


def test_progress_of_short_work_is_not_shown(monkeypatch):
    terminal = terminal_on_stderr(monkeypatch, delay=60)
    with ProgressBar("loading x") as progress:
        progress(1, 2)
    assert terminal.getvalue() == ""


def test_progress_is_not_drawn_too_often(monkeypatch):
    terminal = terminal_on_stderr(monkeypatch)
    monkeypatch.setattr(ProgressBar, "INTERVAL", 60)
    with ProgressBar("loading x") as progress:
        progress(1, 2)
        progress(2, 2)
    assert terminal.getvalue().count("loading") == 1


def test_the_first_experts_are_shown_as_they_come(monkeypatch, capsys):
    """Until the first words; then the line is gone, and so is who drew it."""
    terminal, words = terminal_on_stderr(monkeypatch), []
    read = FileReader.__call__
    monkeypatch.setattr(FileReader, "__call__", lambda *args: time.sleep(1e-3) or read(*args))
    monkeypatch.setattr("builtins.print", lambda *a, **k: words.append((on_screen(terminal.getvalue()), *a)))
    assert cli.main(["generate", "--model", "demo-gpt-oss", "--memory", "1GB", "--max-new-tokens", "4", "What is"]) == 0
    assert re.search(
        r"reading experts: 0\.00 GB, hits \d+%; in memory \[[#.]{30}\] 0.00 of 0.00 GB", terminal.getvalue()
    )
    assert len(words) > 1 and {shown for shown, *_ in words} == {""}
    assert not [thread for thread in threading.enumerate() if thread.name == "cgpt-progress"]
    drawn = len(terminal.getvalue())
    assert cli.main(["generate", "--model", "demo-gpt-oss", "--max-new-tokens", "4", "What is"]) == 0
    assert "experts" not in terminal.getvalue()[drawn:], "nothing is streamed"


def test_progress_without_a_terminal_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr(ProgressBar, "DELAY", 0)
    with ProgressBar("loading x") as progress:
        progress(1, 2)
    assert capsys.readouterr() == ("", "")


def test_loading_and_writing_show_progress(monkeypatch, tmp_path):
    terminal = terminal_on_stderr(monkeypatch)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert cli.main(["generate", "--max-new-tokens", "1", "x"]) == 0
    assert "loading demo-gpt2 [##############################]" in terminal.getvalue()
    assert cli.main(["synth", str(small_config(tmp_path)), str(tmp_path / "model")]) == 0
    assert "model [##############################]" in terminal.getvalue()
    assert on_screen(terminal.getvalue()) == ""
