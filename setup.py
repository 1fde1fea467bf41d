"""Builds the native operator library (native/, docs/native.md) where there is a C++ compiler; everything else is in
pyproject.toml. Without one the installation goes on, and ONNX files run by their function bodies.

MOEIFY_NATIVE_FLAGS adds flags for the compiler; MOEIFY_NATIVE_BUILD=0 leaves the library out.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"
X86 = platform.machine().lower() in ("x86_64", "amd64")
SOURCES = (
    "choice", "compute", "dispatch", "inputs", "operator", "plan", "register", "restored", "kernels_plain", "integers_plain",
)  # fmt: skip
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c")
#: Sources that exist for one instruction set, and how they are compiled: the rest of the library runs on any machine.
INSTRUCTION_SETS = {
    "kernels_avx2": _AVX2,
    "integers_avx2": _AVX2,
    "kernels_avx512": _AVX512,
    "integers_vnni": (*_AVX512, "-mavx512vnni"),
}
# Sums are made in the order that the source says: no contraction but where it says fma, no -ffast-math. Python is built with
# -fwrapv and hands it on: counters that may wrap cost inner loops a tenth of their time, and none here does.
FLAGS = (
    "-std=c++17", "-O3", "-g0", "-fPIC", "-fno-wrapv", "-ffp-contract=off",
    "-fvisibility=hidden", "-fvisibility-inlines-hidden",
)  # fmt: skip


class BuildLibrary(build_ext):
    """A plain shared library beside moeify/runtime/native.py; nothing in it is of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + SUFFIX

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return ["RegisterCustomOps"]

    def build_extension(self, ext: Extension) -> None:
        try:
            self.build_library(ext)
        except (BaseError, CCompilerError, OSError) as error:  # the extension is optional: setuptools turns this into a warning
            raise CompileError(f"{error}; installing without the native library: ONNX files run by their bodies") from error

    def build_library(self, ext: Extension) -> None:
        flags = [*FLAGS, *shlex.split(os.environ.get("MOEIFY_NATIVE_FLAGS", ""))]
        objects: list[str] = []
        for source in ext.sources:
            name = os.path.splitext(os.path.basename(source))[0]
            own = [*flags, *INSTRUCTION_SETS.get(name, ())]
            macros = [("MOEIFY_X86", None)] if X86 else []
            objects += self.compiler.compile(
                [source], output_dir=self.build_temp, macros=macros, extra_postargs=own, depends=ext.depends
            )
        path = self.get_ext_fullpath(ext.name)
        self.mkpath(os.path.dirname(path))
        # Linked beside its place and moved there: a library that a process has open is not written into.
        self.compiler.link_shared_object(objects, path + ".new", target_lang="c++")
        os.replace(path + ".new", path)


class Wheel(bdist_wheel):
    """One wheel for every Python: of this platform where it holds the library, else of any."""

    def run(self) -> None:
        self.run_command("build")
        self.skip_build = True
        built = os.path.join(self.get_finalized_command("build").build_lib, "moeify", "runtime", "libmoeify" + SUFFIX)
        self.root_is_pure = not os.path.isfile(built)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", "any" if self.root_is_pure else super().get_tag()[2]


def libraries() -> list[Extension]:
    if os.environ.get("MOEIFY_NATIVE_BUILD") == "0" or sys.platform == "win32":
        return []
    names = [*SOURCES, *(INSTRUCTION_SETS if X86 else ())]
    headers = sorted(f"native/{name}" for name in os.listdir("native") if name.endswith(".h"))
    sources = [f"native/{name}.cpp" for name in names]
    return [Extension("moeify.runtime.libmoeify", sources, depends=headers, language="c++", optional=True)]


setup(ext_modules=libraries(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel})
