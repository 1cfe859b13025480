"""Imports inside the package only go down, level by level, and never in a circle."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What may import what: each level only the levels before it, and nothing beside it.
LEVELS = (
    ("errors", "version"),
    ("fields",),
    ("arguments",),
    ("kernels",),
    ("machine",),
    ("checkpoint",),
    ("tokenizer",),
    ("models",),
    ("generation",),
    ("distributed",),
    ("chat",),
    ("api",),
    ("loading",),
    ("serve", "analysis"),
    ("batch",),
    ("cluster",),
    ("bench",),
    ("evolution",),
    ("cli",),
)
SUFFIXES = (".py", ".pyx", ".pxd")
# The only imports that go up, and why. They close no circle.
UPWARD = {
    (("cgpt", "api"), ("cgpt", "batch", "run")): "Model.batch() is one of the public calls, which are methods of Model",
}
RANK = {name: rank for rank, level in enumerate(LEVELS) for name in level}


def imports(path, text):
    """(line, dotted name) of all that a file of the package imports from it, at the top, in functions and under
    TYPE_CHECKING; a name that is no module stands for the module that holds it."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    if path.suffix != ".py":  # Cython's own grammar: imports at the top only
        for match in re.finditer(r"^(?:from (cgpt[\w.]*) c?import (\w+|\*)|c?import (cgpt[\w.]*))", text, re.M):
            line = text.count("\n", 0, match.start()) + 1
            found.append((line, match[3] or f"{match[1]}.{match[2]}".removesuffix(".*")))
        return found
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            found += [(node.lineno, ".".join((*base, alias.name))) for alias in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "cgpt"]


def module_of(path):
    """("cgpt", "models", "base") of cgpt/models/base.py; a package for its __init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def graph(sources):
    """{module: [(path, line, imported module)]} of {path: text}."""
    modules = {module_of(path) for path in sources}
    edges = {}
    for path, text in sources.items():
        edges[module_of(path)] = found = []
        for line, name in imports(path, text):
            target = tuple(name.split("."))
            while target not in modules and len(target) > 1:
                target = target[:-1]
            if (path, line, target) not in found:
                found.append((path, line, target))
    return edges


def problems(sources):
    """What breaks the rule, each with its file, line and import."""
    edges = graph(sources)
    found = []
    for module, targets in edges.items():
        for path, line, target in targets:
            where, name = f"{path.relative_to(ROOT)}:{line}", ".".join(target)
            if module in (("cgpt",), ("cgpt", "__main__")) or (module, target) in UPWARD:
                continue
            if target == ("cgpt",):
                found.append(f"{where} imports cgpt itself; name the module that has what is needed")
            elif unknown := {module[1], target[1]} - RANK.keys():
                found.append(f"{where} imports {name}: {', '.join(sorted(unknown))} has no level in {__file__}")
            elif target[1] != module[1] and RANK[target[1]] >= RANK[module[1]]:
                found.append(f"{where} imports {name}: {target[1]} is not below {module[1]}")
    return found + circles(edges)


def circles(edges):
    """Each circle of modules once, by the imports that close it."""
    state, found = {}, []

    def visit(module, trail):
        state[module] = "open"
        for path, line, target in edges.get(module, ()):
            step = (*trail, (target, f"{path.relative_to(ROOT)}:{line} imports {'.'.join(target)}"))
            if state.get(target) == "open" and target != module:
                names = [name for name, _ in step]
                first = names.index(target)  # the circle begins after it was entered
                found.append("a circle: " + ", ".join(text for _, text in step[first + 1 :]))
            elif target not in state:
                visit(target, step)
        state[module] = "done"

    for module in edges:
        if module not in state:
            visit(module, ((module, ""),))
    return found


def package_sources():
    return {path: path.read_text() for path in (ROOT / "cgpt").rglob("*.p*") if path.suffix in SUFFIXES}


def test_imports_only_go_down():
    found = problems(package_sources())
    assert not found, "\n".join(found)


def test_exceptions_are_needed():
    edges = graph(package_sources())
    assert all(above in [target for _, _, target in edges[module]] for module, above in UPWARD)


@pytest.mark.parametrize(
    "file, text, message",
    [
        ("kernels/isa.py", "from cgpt.models import base\n", "cgpt/kernels/isa.py:1 imports cgpt.models.base"),
        ("kernels/isa.py", "def f():\n    import cgpt.api\n", "cgpt/kernels/isa.py:2 imports cgpt.api"),
        ("kernels/isa.py", "from ..cli.main import main\n", "cgpt/kernels/isa.py:1 imports cgpt.cli.main"),
        ("kernels/isa.py", "from cgpt import load\n", "cgpt/kernels/isa.py:1 imports cgpt itself"),
        ("kernels/_kernels.pyx", "\nfrom cgpt.api import load\n", "cgpt/kernels/_kernels.pyx:2 imports cgpt.api"),
        ("models/base.py", "if TYPE_CHECKING:\n    from cgpt.chat.chat import Chat\n", "cgpt/models/base.py:2"),
        ("api.py", "def f():\n    from cgpt.serve.app import make_app\n", "cgpt/api.py:2 imports cgpt.serve.app"),
        ("api.py", "from cgpt.batch import output\n", "cgpt/api.py:1 imports cgpt.batch.output"),
        ("serve/app.py", "from cgpt.analysis import info\n", "analysis is not below serve"),
        ("attic/old.py", "from cgpt import errors\n", "attic has no level"),
        ("errors.py", "from cgpt.errors import CgptError\nfrom cgpt import fields\n", "cgpt/errors.py:2"),
    ],
)
def test_a_planted_import_is_found(file, text, message):
    sources = {ROOT / "cgpt" / name: "" for name in ("__init__.py", "api.py", "errors.py", "fields.py")}
    names = ("kernels/isa.py", "models/base.py", "chat/chat.py", "cli/main.py", "serve/app.py", "analysis/info.py")
    names += ("batch/run.py", "batch/output.py")
    sources |= {ROOT / "cgpt" / name: "" for name in names}
    found = problems({**sources, ROOT / "cgpt" / file: text})
    assert len(found) == 1 and message in found[0]


def test_a_planted_circle_is_found():
    a, b, c, d = (ROOT / "cgpt/models" / f"{name}.py" for name in "abcd")
    sources = {
        d: "from cgpt.models.a import x\n",
        a: "from cgpt.models.b import x\n",
        b: "\nfrom cgpt.models import c\n",
        c: "def f():\n    from cgpt.models.a import x\n",
    }
    [found] = problems(sources)
    assert found == (
        "a circle: cgpt/models/a.py:1 imports cgpt.models.b, cgpt/models/b.py:2 imports cgpt.models.c, "
        "cgpt/models/c.py:2 imports cgpt.models.a"
    )
    assert not problems({**sources, c: ""})
