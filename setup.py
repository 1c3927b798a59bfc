"""Builds fastllm._core: csrc/ once, csrc/kernels/kernels.c once for each instruction set the compiler can do.

What it cannot do is left out with a printed line, never an error; which kernels run is chosen at run time.
Set FASTLLM_STRICT=1 to turn warnings in csrc/ into errors, as the project's own checks do.
"""

import contextlib
import os
import platform
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError, LinkError

CSRC = Path("csrc")
KERNELS = CSRC / "kernels" / "kernels.c"
HEADERS = sorted(str(p) for p in CSRC.rglob("*.h"))
SOURCES = sorted(str(p) for p in CSRC.glob("*.c"))
CYTHON = sorted(str(p) for p in Path("pyx").glob("*.p*"))  # the module, its declarations and what it includes
MSVC = sys.platform == "win32"

AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vnni", "-mfma", "-mf16c"]
# Instruction set -> (header of lanes, macros, flags of GCC and Clang, flags of MSVC, a line that needs all of them).
X86 = {
    "avx2": (
        "lanes_avx2.h",
        [],
        ["-mavx2", "-mfma", "-mf16c"],
        ["/arch:AVX2"],
        "_mm256_cvtph_ps(_mm_setzero_si128());",
    ),
    "avxvnni": (
        "lanes_avx2.h",
        [("FL_AVXVNNI", "1")],
        ["-mavx2", "-mfma", "-mf16c", "-mavxvnni"],
        ["/arch:AVX2"],
        "__m256i z = _mm256_setzero_si256(); z = _mm256_dpbusd_avx_epi32(z, z, z);",
    ),
    "avx512": (
        "lanes_avx512.h",
        [],
        AVX512,
        ["/arch:AVX512"],
        "__m512i z = _mm512_setzero_si512(); z = _mm512_dpbusd_epi32(z, z, z);",
    ),
    "amx": (
        "lanes_avx512.h",
        [("FL_AMX", "1")],
        [*AVX512, "-mavx512vbmi", "-mamx-tile", "-mamx-int8"],
        ["/arch:AVX512"],
        "_tile_dpbssd(0, 1, 2);",
    ),
}
ARM = {
    "neon": (
        "lanes_neon.h",
        [],
        ["-march=armv8.2-a+dotprod"],
        [],
        "int8x16_t z = vdupq_n_s8(0); vdotq_s32(vdupq_n_s32(0), z, z);",
    ),
}
MACHINE = platform.machine().lower()
ISAS = X86 if MACHINE in ("x86_64", "amd64") else ARM if MACHINE in ("aarch64", "arm64") else {}

# Python's own flags ask for debug information, most of a module's size: none unless the user asks too.
DEBUG = [] if "-g" in os.environ.get("CFLAGS", "") else ["-g0"]
if MSVC:
    FLAGS = ["/O2", "/std:c11", "/experimental:c11atomics", "/W3"]
    OPENMP = ["/openmp"]
else:
    FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden"]
    FLAGS += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", *DEBUG]
    OPENMP = ["-fopenmp"]
    if os.environ.get("FASTLLM_STRICT") == "1":
        FLAGS.append("-Werror")


@contextlib.contextmanager
def quiet():
    """Hides what a compiler says of a probe that fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as null:
        os.dup2(null.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


class BuildCore(build_ext):
    def can_build(self, code: str, flags: list[str], link: bool = False) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(code)
            try:
                with quiet():
                    objects = self.compiler.compile([str(source)], folder, extra_postargs=flags)
                    if link:
                        target = str(Path(folder, "probe"))
                        self.compiler.link_executable(objects, target, extra_postargs=flags)
            except (CompileError, LinkError):
                return False
            return True

    def build_extension(self, ext: Extension) -> None:
        openmp = OPENMP
        if not self.can_build("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 0; }\n", OPENMP, True):
            print("fastllm: this compiler has no OpenMP: one thread")
            openmp = []
        folder = Path(self.build_temp, "csrc")
        include = [str(CSRC), str(CSRC / "kernels")]

        def compile_c(sources: list[str], subfolder: str, macros: list, flags: list[str]) -> list[str]:
            return self.compiler.compile(
                sources, str(folder / subfolder), macros, include, extra_postargs=FLAGS + openmp + flags
            )

        parts = [([str(KERNELS)], "scalar", [("FL_LANES_H", '"lanes_scalar.h"')], [])]
        built = []
        for name, (lanes, macros, gcc, msvc, line) in ISAS.items():
            flags = msvc if MSVC else gcc
            header = "immintrin.h" if ISAS is X86 else "arm_neon.h"
            if not self.can_build(f"#include <{header}>\nvoid probe(void) {{ {line} }}\n", flags):
                print(f"fastllm: this compiler cannot build {name}: left out")
                continue
            parts.append(([str(KERNELS)], name, [("FL_LANES_H", f'"{lanes}"'), *macros], flags))
            built.append((f"FL_HAVE_{name.upper()}", "1"))
        print("fastllm: kernels for scalar", *(name[len("FL_HAVE_") :].lower() for name, _ in built))
        parts.append((SOURCES, "core", built, []))
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # each part is a compiler's process, half a minute long
            objects = [o for found in pool.map(lambda part: compile_c(*part), parts) for o in found]
        ext.extra_objects = objects
        ext.extra_link_args = [] if MSVC else openmp
        super().build_extension(ext)


class SourceDist(sdist):
    """Takes along what a stranger needs to test and measure, too."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        more = [Path("CHANGELOG.md"), Path("CONTRIBUTING.md"), Path(".ci/run")]
        more += (Path(folder, "README.md") for folder in ("csrc", "python"))
        for folder in ("tests", "bench"):
            more += (p for p in Path(folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        super().make_release_tree(base_dir, sorted({*files, *map(str, more)}))


core = Extension(
    "fastllm._core",
    ["pyx/_core.pyx"],
    include_dirs=[str(CSRC)],
    libraries=[] if MSVC else ["m"],
    depends=[*CYTHON, str(KERNELS), *SOURCES, *HEADERS],
    extra_compile_args=[] if MSVC else ["-O2", *DEBUG],
)

setup(
    ext_modules=cythonize([core], include_path=["pyx"], build_dir="build/cython"),
    cmdclass={"build_ext": BuildCore, "sdist": SourceDist},
)
