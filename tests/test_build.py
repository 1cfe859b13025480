"""What a build says when the compiler is missing or lacks something, and what it compiles again."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("Cython")
pytest.importorskip("setuptools")

ROOT = Path(__file__).parents[1]

# A compiler without OpenMP that makes an empty object of each source, and notes which; probes go to the real one.
FAKE = r"""#!{python}
import subprocess, sys
from pathlib import Path

arguments = sys.argv[1:]
source = next((a for a in arguments if a.endswith(".c")), "")
if "-fopenmp" in arguments:
    sys.exit("unrecognized option -fopenmp")
if source and "probe" not in source:
    if "#error stop here" in Path(source).read_text():
        sys.exit(f"stopped in {{source}}")
    with open("compiled.log", "a") as log:
        print(source, file=log)
    target = Path(arguments[arguments.index("-o") + 1])
    target.with_suffix(".d").write_text(f"{{target}}: {{source}} csrc/cgpt.h\n")
    arguments = ["-x", "c", "-c", "/dev/null", "-o", str(target)]
sys.exit(subprocess.run(["gcc", *arguments]).returncode)
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a build reads."""
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    (tmp_path / "cgpt/kernels").mkdir(parents=True)
    for name in ("setup.py", "cgpt/__init__.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    for source in (ROOT / "cgpt/kernels").glob("*.p[xy]*"):
        shutil.copy(source, tmp_path / "cgpt/kernels")
    return tmp_path


def build(tree, **environment):
    """(exit code, everything it printed); without a terminal, so that nothing reaches the one of whoever tests."""
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tree,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def test_no_compiler(tree):
    code, text = build(tree, CC="/nonexistent")
    assert code != 0
    assert "no C compiler works here" in text and "/nonexistent" in text
    for words in ("apt install build-essential", "dnf install gcc", "xcode-select --install"):
        assert words in text
    assert "OpenMP" not in text and "Traceback" not in text


def test_no_headers(tree):
    """CPATH comes after -I, so a Python.h that fails goes in by CFLAGS, which come before."""
    (tree / "broken").mkdir()
    (tree / "broken/Python.h").write_text("#error no such header\n")
    code, text = build(tree, CFLAGS=f"-I{tree}/broken")
    assert code != 0
    assert "apt install python3-dev" in text and "no C compiler" not in text and "OpenMP" not in text
    assert "compiling the C kernels" not in text


@pytest.fixture
def fake(tree):
    compiler = tree / "fake-cc"
    compiler.write_text(FAKE.format(python=sys.executable))
    compiler.chmod(0o755)
    return str(compiler)


def compiled(tree):
    """The sources that the fake compiler was given since the last call, sorted."""
    log = tree / "compiled.log"
    names = sorted(log.read_text().split()) if log.exists() else []
    log.unlink(missing_ok=True)
    return names


def test_no_openmp_and_what_is_compiled_again(tree, fake):
    """The build succeeds, and compiles nothing twice that did not change."""
    code, text = build(tree, CC=fake)
    assert code == 0, text
    assert "compiling the C kernels" in text and "no C compiler" not in text
    every = compiled(tree)
    assert {"csrc/isa/ref.c", "cgpt/kernels/_kernels.c"} <= set(every) and len(every) == len(set(every))

    code, text = build(tree, CC=fake)
    assert code == 0 and compiled(tree) == [] and "compiling the C kernels" not in text

    build(tree, CC=fake, CGPT_REF_ONLY="1")
    assert compiled(tree) == every, "other flags need other objects"

    later = time.time() + 10
    os.utime(tree / "csrc/isa/ref.c", (later, later))
    build(tree, CC=fake)
    assert compiled(tree) == ["csrc/isa/ref.c"]
    os.utime(tree / "csrc/cgpt.h", (later, later))
    build(tree, CC=fake)
    assert compiled(tree) == every, "every object was made of this header"


def test_a_source_that_cannot_be_compiled(tree, fake):
    (tree / "csrc/core/cpu.c").write_text("#error stop here\n")
    code, text = build(tree, CC=fake)
    assert code != 0 and "stopped in csrc/core/cpu.c" in text
    assert not list(tree.glob("cgpt/kernels/*.so"))
