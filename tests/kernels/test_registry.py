"""One list of kernels, csrc/kernels.def, and nothing beside it: tables, tests and documentation follow it."""

import re
from pathlib import Path

import pytest

from cgpt.kernels import _kernels

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
SLOTS = re.findall(r"^KERNEL\((\w+), \w+\)", (CSRC / "kernels.def").read_text(), re.M)
TESTS = [p.read_text() for p in Path(__file__).parent.glob("test_*.py") if p != Path(__file__)]


def test_the_binary_has_the_slots_of_the_list():
    assert list(_kernels.kernels()) == SLOTS and len(SLOTS) == len(set(SLOTS))


@pytest.mark.parametrize("slot", SLOTS)
def test_some_test_asserts_which_variant_ran(slot):
    assert any("check_slots(level" in text and f'"{slot}"' in text for text in TESTS), (
        f"no test calls check_slots(level, .., {slot!r})"
    )


def readme_table():
    """{(slot, level): variant}, as csrc/README.md has it."""
    rows = [line.strip("| \n").split(" | ") for line in (CSRC / "README.md").read_text().splitlines() if "|" in line]
    levels = next(row[2:] for row in rows if row[0] == "kernels")
    return {
        (slot, level): variant
        for kernels, _, *variants in (row for row in rows if row[0].startswith("`"))
        for slot in re.findall(r"`(\w+)`", kernels)
        for level, variant in zip(levels, variants, strict=True)
    }


def test_the_readme_says_which_variant_runs(level):
    table = readme_table()
    assert {slot for slot, _ in table} == set(SLOTS)
    assert {slot: table.get((slot, level)) for slot in SLOTS} == _kernels.kernels()


def test_every_c_file_is_built():
    """The files of core/, drivers/ and isa/ are what setup.py compiles; a kernel is included by a level's file."""
    included = "\n".join(p.read_text() for p in (CSRC / "isa").iterdir())
    for path in CSRC.rglob("*.c"):
        name = path.relative_to(CSRC).as_posix()
        assert name.startswith(("core/", "drivers/", "isa/")) or f'"{name}"' in included, f"{name} is part of no build"


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(CSRC))) for p in sorted(CSRC.rglob("*.h"))])
def test_headers_define_only_static_inline_functions(path):
    """A function with external linkage in a header would exist once for all levels, compiled for the highest: an
    illegal instruction on every other machine."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*|^\s*#.*?(?<!\\)$", "", path.read_text(), flags=re.S | re.M)
    for match in re.finditer(r"^(?P<head>[A-Za-z_][\w \t\*]*?\b(\w+)\s*\([^;{}]*\))\s*\{", text, re.M):
        head = match["head"]
        assert head.startswith(("static inline ", "CG_INLINE ")), f"{path.name} defines {head.splitlines()[0]}"


@pytest.mark.parametrize("path", [pytest.param(p, id=str(p.relative_to(CSRC))) for p in sorted(CSRC.rglob("*.c"))])
def test_kernels_keep_to_their_contract(path):
    """No allocation, no output, no exit, no environment inside kernels."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(), flags=re.S)
    found = re.findall(r"\b(malloc|calloc|realloc|free|alloca|printf|fprintf|puts|exit|abort|getenv)\s*\(", text)
    assert not found, f"{path.name} calls {', '.join(found)}"


def test_the_header_check_can_fail(tmp_path):
    bad = tmp_path / "bad.h"
    bad.write_text("static inline int f(int a) { return a; }\nint g(int a) {\n    return a;\n}\n")
    with pytest.raises(AssertionError, match="bad.h defines int g"):
        test_headers_define_only_static_inline_functions(bad)
