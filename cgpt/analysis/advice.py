"""What to do where something stands in cgpt's way: sentences, from the facts that cgpt.analysis.doctor found."""

from collections.abc import Iterator, Mapping
from typing import Any

from cgpt.machine.cpu_time import OTHERS, STOLEN
from cgpt.machine.threads import openmp_limit

LEVELS = {"avx2": "AVX2", "avx512": "AVX-512", "amx": "AMX"}


def advice(facts: Mapping[str, Any]) -> list[str]:
    """One sentence or two for each thing that is wrong; facts as in cgpt.analysis.doctor.examine."""
    return [line for part in (_level, _cpus, _threads, _load, _memory) for line in part(facts)]


def _level(facts: Mapping[str, Any]) -> Iterator[str]:
    level, environment = facts["level"], facts["environment"]
    offered = [name for name, missing in level["missing"].items() if missing is None]
    if level["in_use"] != offered[-1]:
        names = " and ".join(name for name in ("CGPT_ISA", "CGPT_MASK") if name in environment) or "a call"
        yield f"{names} keeps the level at {level['in_use']}; this machine offers {offered[-1]}"
    barred = {name: missing for name, missing in level["missing"].items() if missing}
    first = next(iter(barred), None)  # those above it lack the same
    if first and "operating system" in barred[first]:
        yield (
            f"{LEVELS[first]} is there but the operating system, or the hypervisor, does not enable it: look for "
            "noxsave or clearcpuid in /proc/cmdline, or at the CPU model of the virtual machine"
        )
    if first and "permission" in barred[first]:
        yield (
            "AMX is there but the system refuses it to this process: that takes Linux 5.16 or newer, and a sandbox "
            "(seccomp) that lets arch_prctl through"
        )
    if offered[-1] == "ref":
        yield "no vector instructions that cgpt knows: it runs in portable C, many times slower than with AVX2"


def _cpus(facts: Mapping[str, Any]) -> Iterator[str]:
    cpu, usable = facts["cpu"], facts["usable"]
    quota, cores, nodes = usable["quota"], usable["cores"], len(cpu["numa_nodes"])
    if quota is not None and quota < cores:
        yield (
            f"this container is limited to {quota:.3g} CPUs, of {cores} cores, and stopped whenever it has used them "
            "up; docker run --cpus, Kubernetes' limits.cpu and systemd's CPUQuota set that"
        )
    if cores < cpu["cores"]:
        yield f"this process may use {cores} of {cpu['cores']} cores: taskset, a cpuset or the batch system says so"
    if nodes > 1:
        yield (
            f"{nodes} NUMA nodes: weights lie in the memory of the node that read them first, so threads of the others "
            "read from afar; try numactl --interleave=all, or numactl -N 0 -m 0 for a model that fits one node"
        )


def _threads(facts: Mapping[str, Any]) -> Iterator[str]:
    environment, cores, quota = facts["environment"], facts["usable"]["cores"], facts["usable"]["quota"]
    default, in_use = facts["threads"]["default"], facts["threads"]["in_use"]
    if in_use > cores:
        yield f"{in_use} threads on {cores} physical cores: they share them and wait for each other; use {default}"
    elif in_use > default:
        yield f"{in_use} threads are more than the {default} that the quota, or the environment, leaves room for"
    room = min(cores, quota or cores)
    for name in ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT"):
        asked = openmp_limit(environment.get(name, ""))
        if asked and asked == default < int(room):
            yield f"{name}={environment[name]} holds the default at {asked} threads; there are {cores} cores"
        elif asked and asked > default:
            yield f"{name}={environment[name]} does not raise the default; load(threads=..) and --threads do"


def _load(facts: Mapping[str, Any]) -> Iterator[str]:
    others, average, stolen = (facts["load"][name] for name in ("others", "average", "stolen"))
    what = ""
    if others is not None and others > OTHERS:
        what = f"other processes used {others:.0%} of these CPUs during the measurement"
    elif others is None and average is not None and average > max(1, facts["usable"]["cpus"] / 2):
        what = f"{average:g} processes wanted a CPU during the last minute"
    if what and facts["environment"].get("OMP_WAIT_POLICY", "").lower() == "passive":
        yield f"{what}: all figures are those of a shared machine"
    elif what:
        yield (
            f"{what}: threads that wait for each other spin for a moment, and take turns with these; beside others "
            "OMP_WAIT_POLICY=passive makes it 1.1 to 1.4 times as fast (alone 6 to 9 % slower: GPT-2 on 2 cores)"
        )
    if stolen is not None and stolen > STOLEN:
        yield f"the host gave {stolen:.0%} of these CPUs' time to other guests (steal): figures will vary"


def _memory(facts: Mapping[str, Any]) -> Iterator[str]:
    pages = facts["memory"]["huge_pages"]
    if pages["transparent"] == "never":
        yield (
            "transparent huge pages are off: weights that load() copies (GPT-2's, dense=..) are read more slowly; as "
            "root: echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        )
    if pages["free"] and pages["size"]:
        idle = pages["free"] * pages["size"] / 1e9
        yield f"{idle:.1f} GB are set aside as huge pages, which cgpt does not use; vm.nr_hugepages=0 gives them back"
