"""Trees of /proc and /sys that only look like a machine's, for the tests of threads, memory and doctor."""

CGROUP2 = "30 24 0:26 {top} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
CGROUP1 = "3{n} 24 0:2{n} {top} /sys/fs/cgroup/{name} rw - cgroup cgroup rw,{controllers}\n"


def write(root, files):
    """Writes {path below root: text} and gives root."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def v2(path="/", top="/", **files):
    """A cgroup v2 hierarchy: this process is in `path`, and the cgroup `top` is what is mounted. Files are named
    directory__file with / and . as _ and -: a__cpu-max is a/cpu.max, __cpu-max is the mounted directory's own."""
    tree = {"proc/self/cgroup": f"0::{path}", "proc/self/mountinfo": CGROUP2.format(top=top)}
    return tree | {f"sys/fs/cgroup/{_place(name)}": text for name, text in files.items()}


def _place(name):
    directory, _, file = name.partition("__")
    return "/".join(filter(None, [*directory.split("_"), file.replace("-", ".")]))


def v1(controller, path="/", top="/", name=None, controllers=None, **files):
    """The same in v1, of one controller, mounted below `name` together with `controllers`."""
    name, controllers = name or controller, controllers or controller
    tree = {
        "proc/self/cgroup": f"4:{controllers}:{path}\n3:freezer:/elsewhere",
        "proc/self/mountinfo": "22 1 0:21 / /proc rw - proc proc rw\n"
        + CGROUP1.format(n=1, top="/", name="freezer", controllers="freezer")
        + CGROUP1.format(n=2, top=top, name=name, controllers=controllers),
    }
    return tree | {f"sys/fs/cgroup/{name}/{_place(file)}": text for file, text in files.items()}


def cpus(*siblings, online=None):
    """A /sys of cores: each of `siblings` is (package, core, its CPUs)."""
    files = {}
    for package, core, members in siblings:
        for cpu in members:
            place = f"sys/devices/system/cpu/cpu{cpu}/topology/"
            files |= {place + "physical_package_id": package, place + "core_id": core, place + "die_id": 0}
    every = sorted(cpu for _, _, members in siblings for cpu in members)
    return {"sys/devices/system/cpu/online": online or ",".join(map(str, every))} | files


def smt(cores, packages=1):
    """`packages` sockets of `cores` cores with two CPUs each, numbered as Linux does on most machines: all cores, then
    their siblings."""
    total = cores * packages
    return cpus(*((n // cores, n % cores, (n, n + total)) for n in range(total)))
