"""Finds the checkpoint directory that a path or a name stands for."""

from pathlib import Path

from cgpt.errors import CheckpointError, InputError
from cgpt.fields import shown

_DEMO = Path(__file__).parents[1] / "demo"


def demo_models() -> list[str]:
    """The names of the models that ship in the package."""
    return sorted(path.parent.name for path in _DEMO.glob("*/config.json"))


def locate(path_or_name: str | Path) -> Path:
    """The checkpoint directory that a path, or the name of a model in the package, stands for."""
    if not isinstance(path_or_name, (str, Path)):
        raise InputError(f"a checkpoint is a path or a name, not {shown(path_or_name)}")
    path = Path(path_or_name)
    if path.is_dir():
        return path
    if str(path_or_name) in demo_models():
        return _DEMO / str(path_or_name)
    raise CheckpointError(
        f"{path_or_name}: no such directory, and no model of the package ({', '.join(demo_models())})"
    )
