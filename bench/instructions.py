"""Instructions per weight and token of each product at each level of x86-64 and aarch64, counted, not timed:

    python bench/instructions.py            # needs gcc, aarch64-linux-gnu-gcc, qemu-x86_64 and qemu-aarch64

A product is run under qemu, one instruction at a time, with 16 rows of weights and with 48: what the 32 rows more take,
over their weights and tokens. Packing the activations is the same for both. csrc/README.md has the table.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPILERS = {"x86_64": "gcc", "aarch64": "aarch64-linux-gnu-gcc"}
LEVELS = {"ref": "aarch64", "avx2": "x86_64", "neon": "aarch64", "dotprod": "aarch64", "i8mm": "aarch64"}
DTYPES = {"F32": 0, "F16": 1, "BF16": 2, "BF16_PACKED": 5, "MXFP4": 3, "INT8": 4}
PRECISIONS = ("auto", "exact", "int8")
TOKENS = (1, 16, 64)
K = 512
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-static", "-Icsrc"]
SOURCES = [
    "bench/instructions.c",
    "csrc/core/cpu.c",
    "csrc/core/dispatch.c",
    *sorted(str(p.relative_to(ROOT)) for folder in ("drivers", "isa") for p in (ROOT / "csrc" / folder).glob("*.c")),
]


def executed(machine: str, program: Path, arguments: list[str]) -> int:
    """The instructions of a run."""
    with tempfile.NamedTemporaryFile() as log:
        command = [f"qemu-{machine}", "-cpu", "max", "-singlestep", "-d", "exec,nochain", "-D", log.name]
        subprocess.run([*command, str(program), *arguments], check=True)
        return sum(block.count(b"Trace") for block in iter(lambda: log.read(1 << 20), b""))


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        for machine, compiler in COMPILERS.items():
            program = Path(directory, machine)
            subprocess.run([compiler, *FLAGS, "-o", str(program), *SOURCES, "-lm"], check=True, cwd=ROOT)
        print("| weights | precision | tokens |", " | ".join(LEVELS), "|")
        print("|---" * (3 + len(LEVELS)) + "|")
        for dtype, number in DTYPES.items():
            for precision in PRECISIONS if dtype in ("MXFP4", "INT8") else PRECISIONS[:1]:
                for tokens in TOKENS:
                    cells = []
                    for level, machine in LEVELS.items():
                        counts = [
                            executed(
                                machine,
                                Path(directory, machine),
                                [level, *map(str, (number, PRECISIONS.index(precision), tokens, rows, K))],
                            )
                            for rows in (16, 48)
                        ]
                        cells.append(f"{(counts[1] - counts[0]) / (32 * K * tokens):.3f}")
                    print(f"| {dtype} | {precision} | {tokens} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    sys.exit(main())
