"""Random cases by the hundred thousand, going on where the last run ended; bench/fuzz/README.md says what is tried.

    python bench/fuzz.py checkpoints --count 20000    # or streams, requests, tokenizers
    python bench/fuzz.py checkpoints --seed 1234      # one case again

Counts are added up in bench/fuzz/counts.json. The first finding (an exception that is none of ours, a crash, a case of
minutes) ends the run with the seed that makes it again. Where the extension is built with the sanitizers, as
CONTRIBUTING.md says, the cases run under them.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTS = Path(__file__).with_name("fuzz") / "counts.json"
MODULES = {
    "checkpoints": "support.fuzz",
    "tokenizers": "support.fuzz_tokenizers",
    "streams": "support.fuzz_streams",
    "requests": "support.fuzz_requests",
}
REPORT_SECONDS, HANGS_SECONDS = 5, 120


def work(kind: str, seeds: range, current: Path) -> None:
    """Runs the cases of these seeds in this process; a line of JSON for what came of them every few seconds."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    cases = importlib.import_module(MODULES[kind]).cases
    outcomes: Counter[str] = Counter()
    reported = time.monotonic()

    def report() -> None:
        print(json.dumps({"next": seed + 1, "outcomes": outcomes}), flush=True)
        outcomes.clear()

    with open(current, "r+b") as file, mmap.mmap(file.fileno(), 8) as shared, cases() as run_case:
        for seed in seeds:
            shared[:] = seed.to_bytes(8, "little")
            outcomes.update(run_case(seed))
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                report()
        report()


def sanitizers() -> dict[str, str]:
    """The environment for an extension that is built with the sanitizers; none for another."""
    (module,) = (ROOT / "cgpt" / "kernels").glob("_kernels*.so")
    if b"__asan_init" not in module.read_bytes():
        return {}
    libraries = [
        subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    return {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "OMP_WAIT_POLICY": "passive",
    }


def add(path: Path, kind: str, found: dict, is_sanitized: bool) -> None:
    """Adds what a run reports to the counts, which other runs may add to."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        counts = json.loads(file.read() or "{}")
        these = counts.setdefault(kind, {"next_seed": 0, "cases": 0, "sanitized": 0, "outcomes": {}})
        cases = sum(found["outcomes"].values())
        these["next_seed"] = max(these["next_seed"], found["next"])
        these["cases"] += cases
        these["sanitized"] += cases * is_sanitized
        these["outcomes"] = dict(sorted((Counter(these["outcomes"]) + Counter(found["outcomes"])).items()))
        file.truncate(0)
        file.write(json.dumps(counts, indent=1) + "\n")


def run(kind: str, seeds: range, counts: Path | None) -> int:
    """Runs the cases in a process of their own, and returns 1 where one has failed."""
    environment = sanitizers()
    with tempfile.NamedTemporaryFile() as current:
        current.write(bytes(8))
        current.flush()
        command = [sys.executable, "-X", "faulthandler", __file__, kind, "--worker", current.name]
        command += ["--seed", str(seeds.start), "--count", str(len(seeds))]
        worker = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)
        before, since = -1, time.monotonic()
        while True:
            ready, _, _ = select.select([worker.stdout], [], [], REPORT_SECONDS)
            seed = int.from_bytes(Path(current.name).read_bytes(), "little")
            if seed != before:
                before, since = seed, time.monotonic()
            if ready:
                if not (line := worker.stdout.readline()):
                    break
                found = json.loads(line)
                print(kind, found["next"], found["outcomes"], flush=True)
                if counts:
                    add(counts, kind, found, bool(environment))
            elif time.monotonic() - since > HANGS_SECONDS:
                print(f"the case takes more than {HANGS_SECONDS} seconds", file=sys.stderr)
                worker.send_signal(6)  # shows where
                break
        seed = int.from_bytes(Path(current.name).read_bytes(), "little")
    if code := worker.wait():
        print(f"exit {code}; again: python bench/fuzz.py {kind} --seed {seed}", file=sys.stderr)
    return int(code != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=MODULES)
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, help="this one only, and count nothing")
    parser.add_argument("--counts", type=Path, default=COUNTS)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.worker:
        work(a.kind, range(a.seed, a.seed + a.count), a.worker)
        return 0
    if a.seed is not None:
        return run(a.kind, range(a.seed, a.seed + 1), None)
    known = json.loads(a.counts.read_text()) if a.counts.exists() else {}
    first = known.get(a.kind, {}).get("next_seed", 0)
    return run(a.kind, range(first, first + a.count), a.counts)


if __name__ == "__main__":
    sys.exit(main())
