"""Which control groups (cgroups, v1 and v2) limit this process, and where their files are."""

import re
from pathlib import Path, PurePosixPath

from cgpt.machine import sysfs


def directories(controller: str, root: Path = Path("/")) -> list[tuple[int, Path]]:
    """(version, directory) of this process's cgroups that may limit `controller` ("cpu", "memory"): its own, then those
    above it as far as they are mounted. Limits add up: the smallest holds. Empty where nothing tells.

    root: the root of the file system that holds proc and sys. Sources: cgroups(7), proc_pid_mountinfo(5).
    """
    found = []
    mounts = _mounts(root)
    for line in sysfs.text(root / "proc/self/cgroup").splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        version = 2 if hierarchy == "0" else 1
        if version == 1 and controller not in controllers.split(","):
            continue
        for kind, options, top, point in mounts:
            if kind == ("cgroup2" if version == 2 else "cgroup") and (version == 2 or controller in options):
                own = point / _below(path, top)
                found += [(version, place) for place in (own, *own.parents) if place.is_relative_to(point)]
                break
    return found


def _mounts(root: Path) -> list[tuple[str, list[str], str, Path]]:
    """(file system, options, the cgroup that is mounted, where) of every mounted hierarchy."""
    found = []
    for line in sysfs.text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(" "), right.split(" ")
        if kind[0] in ("cgroup", "cgroup2") and len(fields) > 4:
            top, point = (re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), f) for f in fields[3:5])
            found.append((kind[0], kind[-1].split(","), top, root / point.lstrip("/")))
    return found


def _below(path: str, top: str) -> str:
    """`path` seen from the mounted cgroup `top`; that one itself where the process's own is not below it, as in a
    namespace that the process was moved out of, or where one outside was mounted."""
    try:
        below = PurePosixPath(path).relative_to(top)
    except ValueError:
        return ""
    return "" if ".." in below.parts else str(below)
