"""The C library as an SDK takes it: installed, found by CMake and pkg-config, and cross-built for 64-bit Arm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.metadata import files
from pathlib import Path

import numpy as np
import onnx
import pytest
from operator_models import TOLERANCE, expected_matmul, random_rows, random_weight, relative_error

import qxcompiler
from qxcompiler.formats import parse_format
from qxcompiler.packing import pack

SOURCE = Path(__file__).parent.parent / "runtime_ops"
EXAMPLE = SOURCE / "examples" / "multiply.c"
TOOLCHAIN = SOURCE / "cmake" / "aarch64-linux-gnu.cmake"
STRICT_C = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]
CONSUMER = """
cmake_minimum_required(VERSION 3.20)
project(consumer LANGUAGES C)
find_package(qxc 1 REQUIRED)
find_package(Threads REQUIRED)
foreach(library kernels kernels_static)
  add_executable(multiply_${library} {EXAMPLE})
  target_link_libraries(multiply_${library} PRIVATE qxc::${library} Threads::Threads)
endforeach()
"""
# an instruction set that a package of its own could bring: portable C++, but for products with A as it is
TOY = {
    "flags.cmake": """
set(processors ".*")
set(flags -DTOY=1)
""",
    "processor.cpp": "namespace qxc::toy { bool is_supported() { return true; } }",
    "instruction_set.h": """
#include "portable/matmul.h"
#include "portable/vectors.h"

namespace qxc {
namespace {

static_assert(TOY, "compiled with the flags");

using Vector = PortableVector;

struct ToyProduct {
  using Rows = FloatRows;

  template <class Block>
  static void tiles(const PackedWeight& weight, const FloatRows& a, int64_t first, int64_t last, const Output& out) {
    for (int64_t n = first * kTileRows; n < smaller(last * kTileRows, weight.rows); ++n) {
      for (int64_t m = 0; m < a.rows; ++m) {
        if (a.skip[m]) continue;
        double sum = 0;
        for (int64_t k = 0; k < weight.columns; ++k) {
          float value;
          decode_columns<Block::kCode, Block::kBits>(weight, n, k, k + 1, &value);
          sum += static_cast<double>(value) * a.a[m * weight.columns + k];
        }
        store_output(out, m, n, static_cast<float>(sum));
      }
    }
  }
};

template <Activation activation>
using RoundedProduct = PortableRoundedProduct<activation>;
using FloatProduct = ToyProduct;

}  // namespace
}  // namespace qxc
""",
}
# format, and how the example is told of it
FORMATS = {
    "int3g128": ("int", 3, "float16", 128),
    "lut3g64": ("lut", 3, "float16", 64),
    "lut4g32t": ("lut_per_tensor", 4, "float16", 32),
    "int4g32a": ("uint", 4, "float16", 32),
    "int3g32as8": ("uint", 3, "two_level", 32),
    "mxfp4": ("fp", 4, "e8m0", 32),
    "mxfp6e2m3": ("e2m3", 6, "e8m0", 32),
    "fp8e5m2g64": ("e5m2", 8, "float16", 64),
}
N, K = 200, 320  # 13 tiles: the threads' halves differ; the last groups of 128 are short


def needs(*programs: str):
    missing = [program for program in programs if not shutil.which(program)]
    return pytest.mark.skipif(bool(missing), reason=f"no {', '.join(missing)}")


def succeed(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def install(folder: Path, *options: str) -> Path:
    """Build and install the library, then move it away from where it was told to be."""
    build, told, prefix = folder / "build", folder / "told", folder / "sdk"
    succeed("cmake", "-S", SOURCE, "-B", build, f"-DCMAKE_INSTALL_PREFIX={told}", *options)
    succeed("cmake", "--build", build, "--parallel", "2")
    succeed("cmake", "--install", build)
    told.rename(prefix)
    return prefix


def build_consumer(folder: Path, prefix: Path, *options: str) -> list[Path]:
    """The example, linked to the shared library and to the static one by CMake."""
    folder.mkdir()
    (folder / "CMakeLists.txt").write_text(CONSUMER.replace("{EXAMPLE}", str(EXAMPLE)))
    flags = f"-DCMAKE_C_FLAGS={' '.join(STRICT_C)}"
    succeed("cmake", "-S", folder, "-B", folder, f"-DCMAKE_PREFIX_PATH={prefix}", flags, *options)
    succeed("cmake", "--build", folder)
    return [folder / "multiply_kernels", folder / "multiply_kernels_static"]


def write_product(folder: Path, name: str, activation: str) -> tuple[list[str], np.ndarray]:
    """The example's files for 3 random rows; its arguments, and what it must compute."""
    weight = random_weight(parse_format(name), N, K, seed=len(name))
    a = random_rows((3, K), seed=5)
    for tensor_name, array in {**{name: t.numpy() for name, t in pack(weight).tensors.items()}, "a": a}.items():
        array.tofile(folder / f"{tensor_name}.bin")
    code, bits, scale, group_size = FORMATS[name]
    arguments = [code, str(bits), scale, str(N), str(K), str(group_size), activation, str(folder)]
    return arguments, expected_matmul(weight, a, 0.0, activation)


def check_products(folder: Path, *program: object, **environment: str) -> set[str]:
    """Multiply with every format and activation; the kernels that did it."""
    kernels = set()
    for name in FORMATS:
        for activation, tolerance in TOLERANCE.items():
            inputs = folder / f"{name}-{activation}"
            inputs.mkdir()
            arguments, expected = write_product(inputs, name, activation)
            printed = succeed(*program, *arguments, **environment)
            y = np.fromfile(inputs / "y.bin", np.float32).reshape(3, N)
            assert relative_error(y, expected) <= tolerance, (name, activation)
            kernels.add(re.fullmatch(r"\[3, 320\] x \[200, 320\]\^T, (\w+) kernels\n", printed)[1])
    return kernels


@pytest.fixture(scope="session")
def sdk(tmp_path_factory) -> Path:
    return install(tmp_path_factory.mktemp("sdk"), "-DQXC_WARNINGS_ARE_ERRORS=ON")


@pytest.fixture(scope="session")
def multiply(sdk, tmp_path_factory) -> Path:
    """The example, with the static library."""
    return build_consumer(tmp_path_factory.mktemp("consumer") / "project", sdk)[1]


def test_python_package_holds_no_part_of_the_c_library():
    installed = {str(file) for package in ("qxcompiler", "qxcompiler-runtime") for file in files(package) or []}
    assert "qxcompiler_runtime/libqxc_ops.so" in installed
    assert not [file for file in installed if re.search(r"\.(a|c|h|pc|in|cmake)$|libqxc_kernels", file)]


@needs("cc", "c++")
@pytest.mark.parametrize("compiler", [["cc", "-xc", "-std=c99"], ["c++", "-xc++", "-std=c++11"]], ids=["c", "c++"])
def test_header_compiles_alone(compiler):
    header = SOURCE / "include" / "qxc" / "kernels.h"
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-fdiagnostics-color=never"]
    main = "int main(void) { return qxc_kernels_version() - 256 * QXC_KERNELS_VERSION_MAJOR; }\n"
    source = f'#include "{header}"\n#include "{header}"\n{main}'
    done = subprocess.run([*compiler, *flags, "-"], input=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@needs("cmake", "cc", "c++")
def test_cmake_finds_it_shared_and_static(sdk, tmp_path):
    for program in build_consumer(tmp_path / "project", sdk):
        outputs = tmp_path / program.name
        outputs.mkdir()
        assert len(check_products(outputs, program)) == 1


@pytest.mark.slow
@needs("cmake", "cc", "c++")
@pytest.mark.parametrize(("wanted", "found"), [("1", True), ("1.0", True), ("2", False), ("1.99", False)])
def test_cmake_takes_no_other_version(sdk, tmp_path, wanted, found):
    script = f"cmake_minimum_required(VERSION 3.20)\nproject(c LANGUAGES C)\nfind_package(qxc {wanted} REQUIRED)\n"
    (tmp_path / "CMakeLists.txt").write_text(script)
    command = ["cmake", "-S", str(tmp_path), "-B", str(tmp_path / "build"), f"-DCMAKE_PREFIX_PATH={sdk}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) is found, done.stderr


@pytest.mark.slow
@needs("cmake", "cc", "c++", "pkg-config")
@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_pkg_config_finds_it(sdk, tmp_path, static):
    search = {"PKG_CONFIG_PATH": str(next(sdk.glob("lib*/**/pkgconfig")))}
    mode = ["--static"] if static else []
    flags = succeed("pkg-config", *mode, "--cflags", "--libs", "qxc_kernels >= 1.0", **search).split()
    program = tmp_path / "multiply"
    succeed("cc", *STRICT_C, *(["-static"] if static else []), "-pthread", EXAMPLE, "-o", program, *flags)
    library = next(sdk.glob("lib*/**/libqxc_kernels.so")).parent
    assert len(check_products(tmp_path, program, LD_LIBRARY_PATH=str(library))) == 1


@pytest.mark.slow
@needs("cmake", "cc", "c++", "nm", "readelf")
def test_library_exports_the_header_and_needs_no_cpp_runtime(sdk):
    header = (sdk / "include" / "qxc" / "kernels.h").read_text()
    declared = set(re.findall(r"\b(qxc_\w+)\(", re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)))
    assert "qxc_matmul_compute" in declared
    library = next(sdk.glob("lib*/**/libqxc_kernels.so"))
    exported = {line.split()[-1] for line in succeed("nm", "-D", "--defined-only", library).splitlines()}
    assert exported == declared
    dynamic = succeed("readelf", "-d", library)
    needed = {name.split(".")[0] for name in re.findall(r"NEEDED.*\[(.*)\]", dynamic)}
    assert needed <= {"libc", "libm"}
    major, minor = (re.search(rf"VERSION_{part} (\d+)", header)[1] for part in ("MAJOR", "MINOR"))
    assert f"SONAME             Library soname: [libqxc_kernels.so.{major}]" in dynamic.replace("(", "").replace(
        ")", ""
    )
    assert library.resolve().name == f"libqxc_kernels.so.{major}.{minor}"


@pytest.mark.slow
@needs("cmake", "cc", "c++")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packed.bin": -1}, "FOLDER/packed.bin: has 24959 bytes, but the sizes given take 24960"),
        ({"scales.bin": 2}, "FOLDER/scales.bin: has 1250 bytes, but the sizes given take 1248"),
        ({"a.bin": -4}, "FOLDER/a.bin: has 3836 bytes, not rows of 1280"),
        ({"a.bin": -3840}, "FOLDER/a.bin: has 0 bytes, not rows of 1280"),
        ({"packed.bin": None}, "FOLDER/packed.bin: No such file or directory"),
        ({0: "mxfp4"}, "CODE: mxfp4 is unknown"),
        ({2: "e4m3"}, "SCALE: e4m3 is unknown"),
        ({1: "7"}, "the library has no format of this code, bits and group size"),
        ({5: "100"}, "the library has no format of this code, bits and group size"),
        ({3: "many"}, "N: many is no size"),
        ({4: "-1"}, "K: -1 is no size"),
        ({6: "a4"}, "ACTIVATION: a4 is unknown"),
        ({7: "/nowhere"}, "/nowhere/packed.bin: No such file or directory"),
    ],
    ids=str,
)
def test_example_refuses_in_one_line(multiply, tmp_path, change, message):
    arguments, _ = write_product(tmp_path, "int3g128", "a8")
    for what, new in change.items():
        if isinstance(what, int):
            arguments[what] = new
        elif new is None:
            (tmp_path / what).unlink()
        else:
            file = tmp_path / what
            data = file.read_bytes()
            file.write_bytes(data[:new] if new < 0 else data + bytes(new))
    done = subprocess.run([str(multiply), *arguments], capture_output=True, text=True, check=False)
    message = message.replace("FOLDER", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"multiply: error: {message}\n")
    assert not (tmp_path / "y.bin").exists()


@pytest.mark.slow
@needs("cmake", "aarch64-linux-gnu-gcc", "aarch64-linux-gnu-g++", "qemu-aarch64")
def test_cross_built_for_arm_it_computes_the_same(tmp_path):
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={TOOLCHAIN}"
    prefix = install(tmp_path, toolchain, "-DQXC_WARNINGS_ARE_ERRORS=ON")
    root = "/usr/aarch64-linux-gnu"
    for program in build_consumer(tmp_path / "project", prefix, toolchain):
        outputs = tmp_path / program.name
        outputs.mkdir()
        kernels = check_products(outputs, "qemu-aarch64", "-cpu", "max", "-L", root, program)
        assert not any(name.startswith("avx") for name in kernels)


def write_instruction_set(folder: Path, **changed: str | None) -> Path:
    folder.mkdir(parents=True)
    for name, text in {**TOY, **changed}.items():
        if text is not None:
            (folder / name).write_text(text)
    return folder


@pytest.mark.slow
@needs("cmake", "cc", "c++")
def test_an_instruction_set_from_outside_computes_the_same_as_portable_kernels(tmp_path):
    toy, build = write_instruction_set(tmp_path / "toy"), tmp_path / "build"
    # a processor that we have no instruction sets for, so that only the toy and portable C++ are built
    processor = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=unheard_of"]
    options = ["-DQXC_TESTS=ON", "-DQXC_WARNINGS_ARE_ERRORS=ON", f"-DQXC_EXTRA_INSTRUCTION_SETS={toy}"]
    succeed("cmake", "-S", SOURCE, "-B", build, *processor, *options)
    succeed("cmake", "--build", build, "--target", "kernels_fuzz", "--parallel", "2")
    assert succeed(build / "kernels_fuzz", 200, 1).splitlines() == ["portable: 200 trials", "toy: 200 trials"]


def configure_with(folder: Path, build: Path) -> subprocess.CompletedProcess[str]:
    command = ["cmake", "-S", SOURCE, "-B", build, f"-DQXC_EXTRA_INSTRUCTION_SETS={folder}"]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


@needs("cmake", "cc", "c++")
@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("toy", {"flags.cmake": None}, "FOLDER: has no flags.cmake: see runtime_ops/kernels/README.md"),
        ("toy", {"processor.cpp": None}, "FOLDER: has no processor.cpp: see runtime_ops/kernels/README.md"),
        ("toy", {"flags.cmake": ""}, "FOLDER: flags.cmake sets no processors: see runtime_ops/kernels/README.md"),
        ("toy-1", {}, "FOLDER: names a C++ namespace: take small letters, digits and _"),
        ("portable", {}, "portable: two folders have this name: rename yours"),
    ],
)
def test_an_instruction_set_from_outside_that_cannot_be_built_is_refused(tmp_path, name, changed, message):
    folder = write_instruction_set(tmp_path / name, **changed)
    done = configure_with(folder, tmp_path / "build")
    assert done.returncode != 0
    message = f"QXC_EXTRA_INSTRUCTION_SETS: {message.replace('FOLDER', str(folder))}"
    assert message in " ".join(done.stderr.split())


@needs("cmake", "cc", "c++")
def test_an_instruction_set_of_another_processor_is_left_out_and_said(tmp_path):
    folder = write_instruction_set(tmp_path / "toy", **{"flags.cmake": "set(processors riscv64)"})
    done = configure_with(folder, tmp_path / "build")
    assert done.returncode == 0, done.stderr
    assert f"QXC_EXTRA_INSTRUCTION_SETS: {folder}: left out: is for riscv64, not for " in done.stdout


def test_the_documents_way_to_get_a_weight_out_of_a_model(tiny, monkeypatch):
    """On what the compiler writes where nothing is asked for: look-up tables, fused layers."""
    monkeypatch.chdir(tiny.folder)
    qxcompiler.compile(tiny.model, "cpu-x86", tiny.folder / "out", quantizer="rtn", activations="a8")
    page = (Path(__file__).parents[1] / "docs" / "c-library.md").read_text()
    snippet = page.split("```python\n")[1].split("```")[0]
    exec(compile(snippet, "c-library.md", "exec"), {})
    model = onnx.load("out/model.onnx")
    node = next(node for node in model.graph.node if node.domain == "qxc" and node.op_type.startswith("MatMul"))
    packed = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    assert Path("packed.bin").read_bytes() == onnx.numpy_helper.to_array(packed).tobytes()
    assert Path("scales.bin").stat().st_size
