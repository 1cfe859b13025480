"""How much memory a process may still take here: what the machine has, within its cgroup's limit."""

from __future__ import annotations

import os
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can be had without swapping, page cache counted as free; None where nothing tells.

    The least of what the machine has and what the limits of this process's cgroups (v2 or v1) leave.
    root: the root of the file system that holds proc and sys.
    """
    amounts = [_machine(root), *_cgroups(root)]
    return min((amount for amount in amounts if amount is not None), default=None)


def _machine(root: Path) -> int | None:
    found = _numbers(root / "proc/meminfo").get("MemAvailable:")
    if found is not None:
        return found * 1024  # in KiB
    try:  # not Linux: what is installed is the best that is known
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _cgroups(root: Path) -> list[int | None]:
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    left = []
    for line in lines:
        hierarchy, controllers, path = line.split(":", 2)
        if hierarchy == "0":
            base, read = root / "sys/fs/cgroup", _left_v2
        elif "memory" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/memory", _left_v1
        else:
            continue
        directory = base / path.lstrip("/")
        while True:
            left.append(read(directory))
            if directory == base:
                break
            directory = directory.parent
    return left


def _left_v2(directory: Path) -> int | None:
    return _left(directory, "memory.max", "memory.current", ("inactive_file", "active_file"))


def _left_v1(directory: Path) -> int | None:
    files = ("total_inactive_file", "total_active_file")
    return _left(directory, "memory.limit_in_bytes", "memory.usage_in_bytes", files)


def _left(directory: Path, limit: str, usage: str, page_cache: tuple[str, ...]) -> int | None:
    try:
        allowed = int((directory / limit).read_text())
        used = int((directory / usage).read_text())
    except (OSError, ValueError):  # ValueError: "max"
        return None
    stat = _numbers(directory / "memory.stat")
    return max(0, allowed - used + sum(stat.get(name, 0) for name in page_cache))


def _numbers(path: Path) -> dict[str, int]:
    """The lines "name number ..." of a file of the kernel's."""
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
