"""One engine in a process of its own: `python -m peer_engines.worker JOB.json`; the result goes to job["result"].

job["what"]: "versions", "prepare" (convert), or "turn": from the start of the process to the first token, a warm-up,
then for each length `repeat` times a prompt of fresh random ids and n tokens, and the same for several sequences at
once. Whatever goes wrong is a result too: {"skipped": why}.
"""

import json
import os
import sys
import time
import traceback
from pathlib import Path

import numpy as np

from peer_engines import engine_class
from peer_engines.base import Engine, Skip

FIRST = 8  # tokens in the prompt that the time to the first token is measured with
PROBE = 32  # tokens in the prompt whose next-token logits are compared
GREEDY = 16  # tokens generated after it


def probe(vocab_size: int) -> list[int]:
    return np.random.default_rng(0).integers(0, vocab_size, PROBE).tolist()


def turn(engine: Engine, job: dict) -> dict:
    rng = np.random.default_rng()

    def ids(n: int, sequences: int = 1) -> list[list[int]]:  # never the same twice: several engines keep a prefix cache
        return rng.integers(0, engine.config["vocab_size"], (sequences, n)).tolist()

    engine.load(Path(job["path"]))
    next(iter(engine.tokens(ids(FIRST), 1)))
    result: dict = {"first": time.monotonic() - job["started"], "figures": {}}
    for n, sequences in [(n, 1) for n in job["prompts"]] + [(FIRST, job["batch"])] * (job["batch"] > 1):
        if sequences > 1:
            engine.context = FIRST + job["new"] + 8
        for _ in engine.tokens(ids(n, sequences), 5):
            pass
        for _ in range(job["repeat"]):
            rates = timed(engine, ids(n, sequences), job["new"])
            names = (f"prompt {n}", f"decode @{n}") if sequences == 1 else ("", f"{sequences} sequences")
            for name, rate in zip(names, rates, strict=True):
                if name:
                    result["figures"].setdefault(name, []).append(rate)
    result["peak"] = peak_memory()
    if job["check"]:
        engine.context = job["context"]
        asked = probe(engine.config["vocab_size"])
        result["greedy"] = [one for (one,) in engine.tokens([asked], GREEDY)]
        logits = engine.logits(asked)
        if logits is not None:
            np.save(job["check"], logits)
    return result


def timed(engine: Engine, prompts: list[list[int]], new: int) -> tuple[float, float]:
    """Tokens per second of the prompts, and of what is generated after the first token of each."""
    at = [time.perf_counter()]
    for _ in engine.tokens(prompts, new + 1):
        at.append(time.perf_counter())
    if len(at) != new + 2:
        raise Skip(f"gave {len(at) - 1} tokens of {new + 1}")
    return len(prompts) * len(prompts[0]) / (at[1] - at[0]), len(prompts) * new / (at[-1] - at[1])


def peak_memory() -> float:
    """GB. Not getrusage: that starts from what the parent had before exec."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9


def run(job: dict) -> dict:
    cls = engine_class(job["engine"])
    versions = cls.versions(job["library"])
    if job["what"] == "versions":
        return {"versions": versions}
    checkpoint, most = Path(job["checkpoint"]), max(1, job["batch"])
    engine = cls(checkpoint, job["precision"], job["threads"], job["context"], most, job["library"])
    if job["what"] == "prepare":
        start = time.perf_counter()
        path = engine.prepare(Path(job["work"]))
        return {"path": str(path), "seconds": time.perf_counter() - start}
    return turn(engine, job)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    scripts = Path(__file__).parents[1].resolve()  # transformers would take bench/kernels.py for a package of that name
    sys.path = [path for path in sys.path if Path(path).resolve() != scripts]
    os.environ["PYTHONPATH"] = os.pathsep.join(
        path for path in sys.path if path in os.environ["PYTHONPATH"].split(os.pathsep)
    )
    try:
        result = run(job)
    except Skip as why:
        result = {"skipped": str(why)}
    except Exception as problem:  # of any peer: one that fails must not stop the others
        traceback.print_exc()  # into the log
        lines = str(problem).strip().splitlines() or [""]
        result = {"skipped": f"{type(problem).__name__}: {lines[0][:200]}"}
    Path(job["result"]).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a peer's threads may refuse to end


if __name__ == "__main__":
    main()
