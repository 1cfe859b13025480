"""Builds cgpt.kernels._kernels: the C of csrc/, every instruction set in one binary, under Cython. See csrc/README.md.

Environment: CGPT_REF_ONLY=1 builds the portable level alone; CGPT_SANITIZE=1 adds ASan and UBSan;
CGPT_EMULATE=1 replaces AVX-512's and AMX's instructions by C, to test their kernels on machines that lack them.
"""

import os
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

SOURCES = sorted(str(p) for folder in ("core", "drivers", "isa") for p in Path("csrc", folder).glob("*.c"))
# Never -ffast-math: it changes sums, and linking with it turns denormals off for the whole process.
FLAGS = ["-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden"]
SWITCHES = [name for name in ("CGPT_REF_ONLY", "CGPT_EMULATE") if os.environ.get(name) == "1"]


# Threads may have small stacks: a frame above 64 KB is an error, as GCC says it and as Clang does.
FRAMES = [["-Werror=frame-larger-than=65536"], ["-Wframe-larger-than=65536", "-Werror=frame-larger-than="]]
OPENMP = "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"


class BuildExt(build_ext):
    def build_extensions(self):
        for extension in self.extensions:
            if os.environ.get("CGPT_SANITIZE") == "1":
                sanitize = [
                    "-fsanitize=address,undefined",
                    "-fno-sanitize-recover=undefined",
                    "-g",
                    "-O1",
                    "-fno-omit-frame-pointer",
                ]
                extension.extra_compile_args += sanitize
                extension.extra_link_args += sanitize[:1]
            elif "CGPT_EMULATE" not in SWITCHES:
                main = "int main(void) { return 0; }\n"
                extension.extra_compile_args += next((f for f in FRAMES if self.accepts(main, "-Werror", *f)), [])
            if self.accepts(OPENMP, "-fopenmp"):
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
            else:
                print("cgpt: this compiler has no OpenMP; building a serial version", file=sys.stderr)
        super().build_extensions()

    def accepts(self, program, *flags):
        """Whether the compiler makes an executable of the program with these flags."""
        with tempfile.TemporaryDirectory() as directory:
            source = Path(directory, "program.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=directory, extra_postargs=list(flags))
                self.compiler.link_executable(objects, str(Path(directory, "program")), extra_postargs=list(flags))
            except Exception:  # whatever the compiler's wrapper raises, the answer is no
                return False
        return True


extension = Extension(
    "cgpt.kernels._kernels",
    ["cgpt/kernels/_kernels.pyx", *SOURCES],
    include_dirs=["csrc"],
    depends=[str(p) for p in Path("csrc").rglob("*") if p.suffix in {".c", ".h", ".def", ".inc"}],
    define_macros=[(name, "1") for name in SWITCHES],
    extra_compile_args=FLAGS,
    extra_link_args=["-lm"],
)

setup(
    ext_modules=cythonize([extension], compiler_directives={"language_level": "3", "boundscheck": False}),
    cmdclass={"build_ext": BuildExt},
)
