"""cgpt/EVOLUTION.md: what it links to and counts is what the files say."""

import json
import re
import shlex
from pathlib import Path

from cgpt.analysis.compare import WHY, compare, markdown
from cgpt.analysis.info import count, render, scaled, size
from cgpt.checkpoint.sizes import published_config
from cgpt.cli import main as cli
from cgpt.models.accounting import expert_bytes, look_up
from cgpt.models.description import describe

from support.synth_cases import config_file

ROOT = Path(__file__).parents[2]
DOC = ROOT / "cgpt" / "EVOLUTION.md"
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
FIGURE = re.compile(r"\d[\d.,]* (?:[KMB]|[kMG]B|GiB|[kMG]FLOP)\b|\d+\.\d%")


def one_step_undone(changes, tmp_path):
    """The cells of the table's row."""
    path = config_file(tmp_path, published_config("gpt-oss-20b") | changes)
    model = compare(["gpt-oss-20b", path], 131072)["models"][1]
    read = sum(n for part, n in model["bytes"]["per_token"].items() if part != "cache")
    return [
        count(model["parameters"]["total"]),
        f"{model['bytes']['disk'] / 2**30:.1f} GiB",
        size(read),
        scaled(model["flops"]["products"], "FLOP"),
        size(model["cache"]["full"]),
        scaled(model["flops"]["attention"], "FLOP"),
    ]


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def tables(text):
    """The two tables: their lines."""
    return [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", text, re.M)][:2]


def test_links_resolve():
    text = DOC.read_text()
    targets = LINK.findall(text)
    assert len(set(targets)) > 15
    assert [target for target in targets if not (DOC.parent / target).is_file()] == []
    named = re.findall(r"`((?:tests|csrc|cgpt)/[\w./]+)`", text)
    assert [name for name in named if not (ROOT / name).is_file()] == []
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for number in re.findall(r"arXiv:([\d.]*\d)", text))


def test_the_card_is_what_compare_prints():
    printed = markdown(compare(["gpt2-xl", "gpt-oss-20b", "gpt-oss-120b"])).splitlines()
    card = tables(DOC.read_text())[0]
    places = [printed.index(line) for line in card]  # ValueError: not a line of it
    assert places == sorted(places) and places[:2] == [0, 1]
    assert len(card) > 20


def test_the_steps_undone(tmp_path):
    rows = [cells(line) for line in tables(DOC.read_text())[1][2:]]
    assert len(rows) == 7
    for _, changed, *shown in rows:
        changes = {} if changed == "as published" else eval(f"dict({changed.strip('`')})")
        assert shown == one_step_undone(changes, tmp_path), changed


def test_every_figure_in_the_text_comes_from_somewhere():
    text = DOC.read_text().split("## Measured here")[0]
    known = set(FIGURE.findall(markdown(compare(["gpt2", "gpt2-xl", "gpt-oss-20b", "gpt-oss-120b"]))))
    known |= set(FIGURE.findall("\n".join(tables(text)[1]))) | set(FIGURE.findall(render(describe("gpt-oss-20b"))))
    known |= {count(3 * 2880**2 + 3 * 2880)}  # an expert
    large = look_up("gpt-oss-120b")
    known |= {size(number) for number in expert_bytes(large.config, large.tensors)}
    prose = [line for line in text.splitlines() if not line.startswith("|")]
    found = set(FIGURE.findall("\n".join(prose)))
    assert len(found) > 25 and found - known == set()


def test_the_steps_are_those_of_compare():
    text = DOC.read_text()
    assert [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.M)] == list(WHY)
    assert text.count("**Why.**") == text.count("**In numbers.**") == len(WHY)


def test_commands_are_understood(capsys):
    text = DOC.read_text()
    commands = re.findall(r"^    cgpt (.*)$", text, re.M) + re.findall(r"`cgpt (\w+ .*?)`", text)
    assert len(commands) >= 4
    for command in commands:
        cli._parser().parse_args(shlex.split(command))
    program = re.search(r"python -c '(.*?)'", text, re.S)[1].replace("\n    ", "\n")
    exec(program, {})
    assert json.loads(capsys.readouterr().out) == published_config("gpt-oss-20b")
