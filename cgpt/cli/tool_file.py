"""A Python file of functions as tools of a chat: what `cgpt chat --tools FILE.py` loads."""

import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cgpt.errors import InputError


def load_functions(path: str | Path) -> list[Callable[..., Any]]:
    """Runs the file and gives the functions that it defines, in their order: those with a docstring whose names do not
    begin with "_". InputError where it cannot be run, or has none."""
    path = Path(path)
    name = f"_cgpt_tools_{path.stem}"  # a name of its own: json.py must not become the module json
    if path.suffix != ".py" or not path.is_file():
        raise InputError(f"{path} is no Python file; tools are the functions of one, FILE.py")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader  # as it ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as problem:
        raise InputError(f"{path} cannot be run: {type(problem).__name__}: {problem}") from problem
    public = [value for key, value in vars(module).items() if not key.startswith("_")]
    found = [value for value in public if _is_defined_in(name, value) and value.__doc__]
    if not found:
        raise InputError(f"{path} defines no function with a docstring, whose name does not begin with _")
    return found


def _is_defined_in(module: str, value: Any) -> bool:
    """Tells whether `value` is a function of the module, or one in a wrapper such as functools.cache makes."""
    return getattr(value, "__module__", None) == module and inspect.isfunction(inspect.unwrap(value))
