"""How much memory a process may still take here: what the machine has, within its cgroup's limit."""

import os
from pathlib import Path

from cgpt.machine import cgroups, sysctl, sysfs

# By version: the limit, what is used, and the page cache in it, which the system takes back.
_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
    2: ("memory.max", "memory.current", ("inactive_file", "active_file")),
}


def available_memory(root: Path = Path("/")) -> int | None:
    """The bytes that can be had without swapping, page cache counted as free; None where nothing tells.

    The least of what the machine has and what the limits of this process's cgroups (v2 or v1) leave.
    root: the root of the file system that holds proc and sys.
    """
    amounts = [_machine(root), *(_left(*found) for found in cgroups.directories("memory", root))]
    return min((amount for amount in amounts if amount is not None), default=None)


def _machine(root: Path) -> int | None:
    found = sysfs.numbers(root / "proc/meminfo").get("MemAvailable:")
    if found is not None:
        return found
    pages = [sysctl.number(f"vm.page_{name}_count") for name in ("free", "pageable_external", "purgeable")]
    if None not in pages:  # macOS: what is free, read from files, or may be thrown away
        return sum(page for page in pages if page) * (sysctl.number("hw.pagesize") or 0)
    try:  # neither: what is installed is the best that is known
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _left(version: int, directory: Path) -> int | None:
    """What the limit of a cgroup leaves; None where it has none."""
    limit, usage, page_cache = _FILES[version]
    allowed, used = sysfs.number(directory / limit), sysfs.number(directory / usage)
    if allowed is None or used is None:  # "max" is no number
        return None
    stat = sysfs.numbers(directory / "memory.stat")
    return max(0, allowed - used + sum(stat.get(name, 0) for name in page_cache))


def process_memory(root: Path = Path("/")) -> int | None:
    """The bytes of memory that this process has of its own (pages of files not counted); None where nothing tells."""
    found = sysfs.numbers(root / "proc/self/status")
    return found["RssAnon:"] + found.get("RssShmem:", 0) if "RssAnon:" in found else None
