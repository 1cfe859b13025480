"""The whole project: the code does not grow, and the stub of the compiled module tells the truth."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Lines of code in cgpt/ and csrc/: no blank lines, comments, docstrings, stubs. For the same features it only falls.
MAX_CODE_LINES = 23_235


def python_lines(text):
    lines = set()
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def cython_lines(text):
    text = re.sub(r'"""(?:.|\n)*?"""', "", text)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in text.splitlines())


def c_lines(text):
    text = re.sub(r"//[^\n]*", "", re.sub(r"/\*.*?\*/", "", text, flags=re.S))
    return sum(bool(line.strip()) for line in text.splitlines())


COUNTERS = {".py": python_lines, ".pyx": cython_lines, ".pxd": cython_lines}
COUNTERS |= dict.fromkeys((".c", ".h", ".inc", ".def"), c_lines)


def code_lines():
    """{"cgpt/models": lines} of every folder; Cython's output is none of ours."""
    found = {}
    for path in (p for top in ("cgpt", "csrc") for p in sorted((ROOT / top).rglob("*"))):
        if path.suffix in COUNTERS and path.name != "_kernels.c":
            folder = "/".join(path.relative_to(ROOT).parent.parts[:2])
            found[folder] = found.get(folder, 0) + COUNTERS[path.suffix](path.read_text())
    return found


def test_the_code_does_not_grow():
    found = code_lines()
    total = sum(found.values())
    assert total <= MAX_CODE_LINES, f"{total:,} code lines, {MAX_CODE_LINES:,} allowed: {found}"


def test_what_counts_as_code():
    text = '"""Doc."""\n\n# comment\ndef f(\n    x,\n):\n    """Doc\n    of two."""\n    return """a\n    b"""  # it\n'
    assert python_lines(text) == 5
    assert cython_lines('"""Doc\nof two."""\ncdef int x  # it\n\n# comment\n') == 1
    assert c_lines("/* two\n lines */\nint x; /* it */\n\n// comment\n#define Y\n") == 2


def test_the_stub_of_the_kernels(tmp_path):
    """Names, parameters and defaults of _kernels.pyi are those of the compiled module."""
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text("[mypy]\nignore_errors = True\n")
    (tmp_path / "allowed").write_text(r".*__(reduce|setstate)_cython__" + "\n" + r".*\.__test__" + "\n")
    settings = ["--mypy-config-file", str(tmp_path / "mypy.ini"), "--allowlist", str(tmp_path / "allowed")]
    command = [sys.executable, "-m", "mypy.stubtest", *settings, "--ignore-unused-allowlist", "cgpt.kernels._kernels"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
