"""Reading the small files of /proc and /sys, which may be missing, unreadable, or not hold what they should."""

from pathlib import Path


def text(path: Path) -> str:
    """What a file holds, stripped; "" where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):  # ValueError: a name no system has
        return ""


def number(path: Path) -> int | None:
    """The whole number that a file holds, or None."""
    try:
        return int(text(path))
    except ValueError:
        return None


def numbers(path: Path) -> dict[str, int]:
    """The lines "name number ..." of a file; numbers of kB as bytes."""
    lines = [line.split() for line in text(path).splitlines()]
    found = {words[0]: words[1:] for words in lines if len(words) > 1 and words[1].isdecimal()}
    return {name: int(words[0]) * (1024 if words[1:] == ["kB"] else 1) for name, words in found.items()}


def cpus(path: Path) -> set[int]:
    """The CPUs of a list like "0-3,8"; empty where that is not what the file holds."""
    found: set[int] = set()
    try:
        for part in text(path).split(","):
            first, dash, last = part.partition("-")
            found |= set(range(int(first), min(int(last if dash else first), 1 << 16) + 1))
    except ValueError:
        return set()
    return found
