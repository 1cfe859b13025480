"""Builds cgpt.kernels._kernels: the C of csrc/, every instruction set in one binary, under Cython. See csrc/README.md.

Environment: CGPT_REF_ONLY=1 builds the portable level alone; CGPT_SANITIZE=1 adds ASan and UBSan; CGPT_EMULATE=1
replaces AVX-512's and AMX's instructions by C, to test their kernels on machines that lack them; CGPT_WERROR=1 makes
the compiler's warnings errors; CGPT_ABI3=1 builds for every Python from 3.11 on, as the wheels are; CGPT_OPENMP=0
takes threads of our own, as where the compiler has no OpenMP. CC, CFLAGS and LDFLAGS are honoured.
"""

import hashlib
import math
import os
import sys
import sysconfig
import tempfile
from multiprocessing.pool import ThreadPool
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext  # translates .pyx, since pyproject.toml requires Cython
from setuptools.errors import CompileError

SOURCES = sorted(str(p) for folder in ("core", "drivers", "isa") for p in Path("csrc", folder).glob("*.c"))
# The slowest to compile begin first. CONTRIBUTING.md has the times.
SLOWEST = ("ref", "avx512", "neon", "avx2", "_kernels", "avx512bf16", "avx512vnni")
# Never -ffast-math: it changes sums, and linking with it turns denormals off for the whole process.
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
# Threads may have small stacks: a frame above 64 KB is an error, as GCC says it and as Clang does.
FRAMES = [["-Werror=frame-larger-than=65536"], ["-Wframe-larger-than=65536", "-Werror=frame-larger-than="]]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1", "-fno-omit-frame-pointer"]
WERROR = ["-Wall", "-Wextra", "-Werror"]
SWITCHES = [name for name in ("CGPT_REF_ONLY", "CGPT_EMULATE") if os.environ.get(name) == "1"]
# Python's limited API costs 2 % more instructions in a step of the tiny demo, and nothing that can be measured at GPT-2
# 124M (bench/SPEED.md): one wheel serves 3.11 and everything newer, a source build stays as it was. Buffers came to the
# limited API with 3.11; a free-threaded Python has none before 3.15.
ABI3 = (
    os.environ.get("CGPT_ABI3") == "1"
    and sys.version_info >= (3, 11)
    and not sysconfig.get_config_var("Py_GIL_DISABLED")
)

MAIN = "int main(void) { return 0; }"
OPENMP = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }"
NO_COMPILER = """cgpt's kernels are written in C, and no C compiler works here: {}
Install one, then try again:
    Debian, Ubuntu   apt install build-essential python3-dev
    Fedora           dnf install gcc python3-devel
    macOS            xcode-select --install
or name the one to use: CC=/path/to/compiler"""
NO_HEADERS = """the C compiler works, but not with the headers of this Python ({}): {}
Install them, then try again:
    Debian, Ubuntu   apt install python3-dev
    Fedora           dnf install python3-devel"""
WINDOWS = """cgpt does not build on Windows itself: its C is GCC's and Clang's, and it needs POSIX calls.
Install it in the Windows Subsystem for Linux: wsl --install"""


def cores() -> int:
    """How many compilers may run at once: the CPUs of this process, by affinity and by the quota of its container."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    groups = Path("/sys/fs/cgroup")
    try:
        if (groups / "cpu.max").exists():  # version 2
            quota, period = (groups / "cpu.max").read_text().split()
        else:
            quota, period = ((groups / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        limit = math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no such file, or "max"
        limit = 0
    return min(count, limit) if limit > 0 else count


def tell(lines: str) -> None:
    """Prints `lines`, and shows them on the terminal if there is one: pip keeps to itself what a build prints."""
    print(f"cgpt: {lines}", flush=True)
    if not sys.stdout.isatty():
        try:
            with open("/dev/tty", "w") as terminal:
                terminal.write(f"\ncgpt: {lines}\n")
        except OSError:
            pass


class BuildExt(build_ext):
    def finalize_options(self):
        """Keeps the objects in one folder for every kind of build, an editable one too."""
        super().finalize_options()
        self.build_temp = str(Path("build", "objects"))

    def build_extensions(self):
        if sys.platform == "win32":
            raise CompileError(WINDOWS)
        problem = self.problem_with(MAIN)
        if problem:
            raise CompileError(NO_COMPILER.format(problem))
        problem = self.problem_with("#include <Python.h>\n" + MAIN)
        if problem:
            raise CompileError(NO_HEADERS.format(sys.executable, problem))
        openmp = os.environ.get("CGPT_OPENMP") != "0" and not self.problem_with(OPENMP, "-fopenmp")
        for extension in self.extensions:
            if os.environ.get("CGPT_SANITIZE") != "1" and "CGPT_EMULATE" not in SWITCHES:
                frames = (flags for flags in FRAMES if not self.problem_with(MAIN, "-Werror", *flags))
                extension.extra_compile_args += next(frames, [])
            extension.extra_compile_args.append("-fopenmp" if openmp else "-pthread")
            extension.extra_link_args.append("-fopenmp" if openmp else "-pthread")
            # Other switches give another library, so it is linked anew; objects that still fit are not compiled again.
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
        # What Python was built with, and the user did not ask for: debug information, five times the code, and the
        # library paths of the machine where it was built.
        self.compiler.compiler_so = without(self.compiler.compiler_so, "-g", "CFLAGS")
        self.compiler.linker_so = without(self.compiler.linker_so, "-Wl,-rpath", "LDFLAGS")
        self.compiler.compile = self.compile_in_parallel
        super().build_extensions()

    def problem_with(self, program, *flags):
        """What keeps `program` from being compiled and linked, or None."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "probe.c")
            source.write_text(program + "\n")
            try:
                objects = self.compiler.compile([str(source)], output_dir=directory, extra_postargs=list(flags))
                self.compiler.link_executable(objects, str(Path(directory, "probe")), extra_postargs=list(flags))
            except Exception as problem:  # its type depends on the version of setuptools
                return str(problem)
        return None

    def compile_in_parallel(
        self, sources, output_dir=None, macros=None, include_dirs=None, debug=False, extra_postargs=None, depends=None
    ):
        """Stands in for the compiler's compile(): one process a core, the slowest first, and no object again whose
        sources and flags have not changed since. Each set of flags has a folder of its own."""
        compiler = self.compiler
        key = repr([compiler.compiler_so, macros, extra_postargs, sysconfig.get_config_var("SOABI")])
        output_dir = str(Path(self.build_temp, hashlib.sha256(key.encode()).hexdigest()[:8]))
        macros, objects, extra_postargs, options, build = compiler._setup_compile(
            output_dir, macros, include_dirs, sources, None, [*extra_postargs, "-MMD"]
        )
        arguments = compiler._get_cc_args(options, debug, None)
        stale = [name for name in objects if not up_to_date(Path(name))]
        stale.sort(key=lambda name: [*SLOWEST, Path(name).stem].index(Path(name).stem))
        if stale:
            tell(f"compiling the C kernels on {cores()} cores (a minute or less)")
        with ThreadPool(cores()) as pool:
            for _ in pool.imap_unordered(
                lambda name: compiler._compile(name, *build[name], arguments, extra_postargs, options), stale
            ):
                pass
        return objects


def without(arguments: list[str], prefix: str, variable: str) -> list[str]:
    """The arguments that do not begin with `prefix`, and those that the user set in the environment's `variable`."""
    wanted = os.environ.get(variable, "").split()
    return [argument for argument in arguments if not argument.startswith(prefix) or argument in wanted]


def up_to_date(target: Path) -> bool:
    """Whether an object is newer than all it was made of, which the compiler wrote beside it (-MMD)."""
    try:
        made_of = target.with_suffix(".d").read_text().replace("\\\n", " ").split(":", 1)[1].split()
        return all(Path(name).stat().st_mtime < target.stat().st_mtime for name in made_of)
    except (OSError, IndexError):
        return False


extension = Extension(
    "cgpt.kernels._kernels",
    ["cgpt/kernels/_kernels.pyx", *SOURCES],
    include_dirs=["csrc"],
    define_macros=[*((name, "1") for name in SWITCHES), *([("Py_LIMITED_API", "0x030B0000")] if ABI3 else [])],
    py_limited_api=ABI3,
    extra_compile_args=[
        *FLAGS,
        *(SANITIZE if os.environ.get("CGPT_SANITIZE") == "1" else []),
        *(WERROR if os.environ.get("CGPT_WERROR") == "1" else []),
    ],
    extra_link_args=["-lm", "-ldl", *(SANITIZE[:1] if os.environ.get("CGPT_SANITIZE") == "1" else [])],
)

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if ABI3 else {},
)
