"""Builds `vdengine._native` from csrc/ and maps the folder kernels/ to the package `vdengine.kernels`.

Everything else is in pyproject.toml. The extension uses no torch headers, so one build serves every torch
version, and it holds every instruction set it can use (chosen when it is loaded), so one build serves every
machine of an architecture: no -march=native.
"""

import sys
import tempfile
import warnings
from pathlib import Path

from pybind11 import get_include
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

SOURCES = ["packing.cpp", "assemble.cpp", "rows.cpp", "gather.cpp", "decode.cpp", "module.cpp"]
HEADERS = ["native.h", "bf16.h", "each_isa.inl", "vector.inl", "rows_kernel.inl", "decode_kernel.inl"]

FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-ffp-contract=fast",  # fused multiply-add where the instruction set has it
    "-fno-math-errno",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",  # vector types never cross a call that is not inlined
]

OPENMP_PROBE = "#include <omp.h>\nint main() { return omp_get_max_threads() > 0 ? 0 : 1; }\n"


class BuildNative(build_ext):
    """`build_ext` that uses OpenMP where the compiler has it."""

    def build_extensions(self) -> None:
        if self.compiler.compiler_type == "msvc":
            raise RuntimeError("csrc needs gcc or clang: its vector code uses their vector extensions")
        openmp = ["-fopenmp"] if self._has_openmp() else []
        if not openmp:
            warnings.warn(
                "this compiler has no OpenMP: vdengine._native is built without it and runs on one thread "
                "(on macOS: `brew install llvm libomp`, then CXX=$(brew --prefix llvm)/bin/clang++)",
                stacklevel=1,
            )
        for extension in self.extensions:
            extension.extra_compile_args = FLAGS + openmp
            extension.extra_link_args = list(openmp)
        super().build_extensions()

    def _has_openmp(self) -> bool:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "probe.cpp"
            source.write_text(OPENMP_PROBE)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(
                    objects, "probe", output_dir=folder, extra_postargs=["-fopenmp"], target_lang="c++"
                )
            except Exception as error:  # the compilers raise several unrelated types
                print(f"OpenMP probe failed: {error}", file=sys.stderr)
                return False
        return True


setup(
    packages=[
        "vdengine",
        *(f"vdengine.{name}" for name in find_packages("vdengine")),
        "vdengine.kernels",
    ],
    package_dir={"vdengine": "vdengine", "vdengine.kernels": "kernels"},
    ext_modules=[
        Extension(
            "vdengine._native",
            sources=[f"csrc/{name}" for name in SOURCES],
            depends=[f"csrc/{name}" for name in HEADERS],
            include_dirs=[get_include()],
            language="c++",
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
