"""Which level runs: detection, CGPT_ISA and CGPT_MASK, and that no instruction strays below its level."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cgpt.errors import KernelError
from cgpt.kernels import _kernels, isa

from support.kernel_cases import AVX512_VARIANTS, MASKS, avx512_variant, check_slots, expected_variant, use_level

ARM = "neon" in _kernels.levels()
NEEDS = {  # the names of /proc/cpuinfo
    "ref": "",
    "neon": "asimd",
    "dotprod": "asimddp",
    "i8mm": "i8mm bf16",
    "avx2": "avx2 fma f16c",
    "avx512": "avx512f avx512bw avx512dq avx512vl",
    "amx": "avx512_vnni avx512_bf16 amx_tile amx_bf16",
}
REPORT = """
import json
from cgpt.kernels import isa
print(json.dumps({"level": isa.level(), "kernels": isa.kernels()}))
"""


def python(program, **environment):
    """Runs `program` in a new process that has these CGPT_ variables only."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CGPT_")}
    clean["PYTHONPATH"] = str(Path(_kernels.__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", program], env=clean | environment, capture_output=True, text=True, timeout=60
    )


def report(**environment):
    done = python(REPORT, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def expected_kernels(level):
    return {slot: expected_variant(level, slot) for slot in _kernels.kernels()}


def best():
    """The name in VARIANTS of the highest level here."""
    use_level("ref")  # lifts a mask
    level = isa.available()[-1]
    found = avx512_variant() if level == "avx512" else level
    isa.use_best()
    return found


def test_every_slot_of_the_level(level):
    check_slots(level, *_kernels.kernels())
    assert _kernels.level() == level.partition("-")[0]


def test_the_best_level_is_the_default():
    assert report() == {"level": best().partition("-")[0], "kernels": expected_kernels(best())}


@pytest.mark.parametrize("name", list(_kernels.levels()))
def test_CGPT_ISA(name):
    use_level("ref")  # lifts a mask
    missing = _kernels.levels()[name]
    isa.use_best()
    if missing:
        done = python(REPORT, CGPT_ISA=name)
        assert done.returncode and f"KernelError: level '{name}' needs {missing}" in done.stderr
    else:
        level = best() if name == best().partition("-")[0] else name
        assert report(CGPT_ISA=name) == {"level": name, "kernels": expected_kernels(level)}


def test_CGPT_ISA_that_is_no_level():
    done = python(REPORT, CGPT_ISA="sse9")
    assert done.returncode and "KernelError: CGPT_ISA=sse9" in done.stderr and "ref" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("variant, mask", [("avx512-" + short, mask) for short, mask in MASKS.items()])
@pytest.mark.skipif(ARM, reason="masks of x86")
def test_CGPT_MASK(variant, mask):
    highest = "avx512" if best() == "amx" else best()
    level = min(variant, highest, key=AVX512_VARIANTS.index) if highest in AVX512_VARIANTS else highest
    assert report(CGPT_MASK=mask) == {"level": level.partition("-")[0], "kernels": expected_kernels(level)}
    done = python(REPORT, CGPT_MASK=mask, CGPT_ISA="amx")
    assert done.returncode and "KernelError: level 'amx' needs" in done.stderr


@pytest.mark.skipif(not ARM, reason="masks of aarch64")
@pytest.mark.parametrize("mask, below", [("dotprod", "neon"), ("i8mm", "dotprod")])
def test_CGPT_MASK_of_a_level(mask, below):
    names = list(_kernels.levels())
    level = min(below, best(), key=names.index)
    assert report(CGPT_MASK=mask) == {"level": level, "kernels": expected_kernels(level)}
    done = python(REPORT, CGPT_MASK=mask, CGPT_ISA=mask)
    assert done.returncode and f"KernelError: level '{mask}' needs FEAT_" in done.stderr


def test_CGPT_MASK_that_is_no_feature():
    done = python(REPORT, CGPT_MASK="sse2")
    assert done.returncode and "KernelError: CGPT_MASK=sse2" in done.stderr
    with pytest.raises(KernelError, match=f"'sse2' cannot be masked; {', '.join(_kernels.FEATURES[1:])} can"):
        _kernels.use_level("ref", mask="sse2")


def test_use_level_refuses(level):
    """And leaves the level as it is."""
    before, mask = (_kernels.kernels(), _kernels.levels()), MASKS.get(level.partition("-")[2], "")
    with pytest.raises(KernelError, match=f"unknown level 'avx1024'; there are {', '.join(_kernels.levels())}"):
        _kernels.use_level("avx1024")
    for name, missing in _kernels.levels().items():
        if missing:
            with pytest.raises(KernelError, match=f"level '{name}' needs {missing}"):
                _kernels.use_level(name, mask=mask)
    highest = list(_kernels.levels())[-1]
    with pytest.raises(KernelError, match=f"level '{highest}' needs"):
        _kernels.use_level(highest, mask=_kernels.FEATURES[-1])
    assert (_kernels.kernels(), _kernels.levels()) == before


def test_levels_build_on_one_another():
    """A level that is missing takes those above it along."""
    use_level("ref")
    reasons = list(_kernels.levels().values())
    isa.use_best()
    assert reasons[0] is None
    assert all(above or not below for below, above in zip(reasons, reasons[1:], strict=False))


def test_detection_agrees_with_the_kernel():
    """What CPUID and XCR0 say, or the auxiliary vector, is what Linux read from the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or not (flags := re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.M)):
        pytest.skip("no /proc/cpuinfo with flags")
    if missing_everything() or emulated():
        pytest.skip("this build has no levels above ref, or emulates AMX")
    flags, offered = set(flags[1].split()), True
    for name in _kernels.levels():
        offered = offered and set(NEEDS[name].split()) <= flags
        assert (_kernels.levels()[name] is None) == offered, f"{name}: {_kernels.levels()[name]}"


def missing_everything():
    return list(_kernels.levels().values())[1] in ("an x86-64 processor", "a build that has it")


def emulated():
    return isa.available()[-1] == "amx" and "ldtilecfg" not in instructions("amx.c")


@functools.cache
def disassembly():
    """{source file: {function: its instructions}}; functions with external linkage are under ''."""
    if missing_everything():
        pytest.skip("this build has no levels above ref")
    if not shutil.which("objdump"):
        pytest.skip("needs objdump")
    library = _kernels.__file__
    symbols = subprocess.run(["objdump", "-t", library], capture_output=True, text=True, check=True).stdout
    file_of, file = {}, ""
    for line in symbols.splitlines():
        if " df *ABS*" in line:
            file = line.split()[-1] if line.split()[-1].endswith(".c") else ""
        elif " F .text" in line:
            file_of[int(line.split()[0], 16)] = file
    if "ref.c" not in file_of.values():
        pytest.skip("the extension's symbols have been stripped")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", "-j", ".text", library], capture_output=True, text=True, check=True
    ).stdout
    out = {}
    for block in re.split(r"\n\n", listing):
        head = re.match(r"([0-9a-f]+) <(.*)>:", block.strip())
        if head:
            body = [line.split("\t", 1)[1] for line in block.splitlines()[1:] if "\t" in line]
            out.setdefault(file_of.get(int(head[1], 16), ""), {})[head[2]] = body
    return out


def instructions(file):
    """All instructions of a source file, as one text."""
    return "\n".join("\n".join(body) for body in disassembly().get(file, {}).values())


ABOVE_REF = (
    {"neon.c", "dotprod.c", "i8mm.c"}
    if ARM
    else {"avx2.c", "avx512.c", "avx512vnni.c", "avx512vnni256.c", "avx512bf16.c", "amx.c"}
)
DOTPROD, I8MM = r"^[su]dot\b", r"^(?:[us]mmla|usdot|sudot|bf(?:mmla|dot|cvt|mlal)\w*)\b"
AVX = r"^v(?!err\b|erw\b)\w+|%[yz]mm"
AVX512 = r"%zmm|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b"
VNNI = r"^vpdp"
BF16 = r"^v\w*(?:dpbf16|ne2ps2bf16|neps2bf16)"
AMX = r"^(?:ld|st)tilecfg|^tile(?:load|stored|zero|release)|^tdp"


def test_only_the_levels_files_use_their_instructions():
    """The baseline (everything but the levels' files) runs on any x86-64, avx2 without AVX-512, and so on."""
    code = disassembly()
    assert ABOVE_REF | {"ref.c"} <= set(code), f"found {sorted(code)}"
    for file, functions in code.items():
        rules = {
            "avx2.c": [AVX512, VNNI, BF16, AMX],
            "avx512.c": [VNNI, BF16, AMX],
            "avx512vnni.c": [BF16, AMX],
            "avx512vnni256.c": [BF16, AMX],
            "avx512bf16.c": [AMX],
            "amx.c": [],
        }
        arm = {"dotprod.c": [I8MM], "i8mm.c": []}
        for rule in arm.get(file, [DOTPROD, I8MM]) if ARM else rules.get(file, [AVX, AMX]):
            for function, body in functions.items():
                stray = next((i for i in body if re.search(rule, i)), None)
                assert stray is None, f"{function} of {file or 'an external function'} has {stray}"


def test_each_level_uses_its_instructions():
    """A level whose pragma had no effect would pass every other test."""
    if ARM:
        assert sum(i.startswith("fmla") for i in disassembly()["neon.c"]["peak_run__neon"]) >= 24
        for name in ("tbl", "fcvtl", "fcvtn", "shll", "smlal2"):
            assert re.search(rf"^{name}\b", instructions("neon.c"), re.M), f"the neon level never uses {name}"
        assert len(re.findall(r"^sdot\b", instructions("dotprod.c"), re.M)) >= 8
        assert len(re.findall(r"^smmla\b", instructions("i8mm.c"), re.M)) >= 8
        assert len(re.findall(r"^bfmmla\b", instructions("i8mm.c"), re.M)) >= 8
        return
    assert re.search(r"^vfmadd.*%ymm", instructions("avx2.c"), re.M)
    # The sums of peak.c are equal: a compiler that sees it does one of the twelve.
    assert sum(i.startswith("vfmadd") for i in disassembly()["avx2.c"]["peak_run__avx2"]) >= 12
    if emulated():
        pytest.skip("built with CGPT_EMULATE")
    assert re.search(r"^vfmadd.*%zmm", instructions("avx512.c"), re.M)
    assert re.search(r"^vperm(?:ps|d)\b.*%zmm", instructions("avx512.c"), re.M)
    assert len(re.findall(r"^vpdpwssd\b.*%zmm", instructions("avx512vnni.c"), re.M)) >= 8
    assert len(re.findall(r"^vpdpbusd\b.*%zmm", instructions("avx512vnni.c"), re.M)) >= 8
    assert len(re.findall(r"^vpdpbusd\b.*%ymm", instructions("avx512vnni256.c"), re.M)) >= 8
    assert re.search(r"^vdpbf16ps.*%zmm", instructions("avx512bf16.c"), re.M)
    for name in ("ldtilecfg", "tileloadd", "tdpbf16ps", "tilestored", "tilezero", "tilerelease"):
        assert re.search(rf"^{name}\b", instructions("amx.c"), re.M), f"the amx level never uses {name}"
