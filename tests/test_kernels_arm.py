"""The kernels for Arm: cross-built, and run under qemu with every instruction set and with the least."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "runtime_ops"
TRIALS = 150
TOOLS = ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64")
MISSING = [tool for tool in TOOLS if not shutil.which(tool)]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)}")]


def output_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fuzz test, linked statically: qemu then needs no Arm libraries."""
    build = tmp_path_factory.mktemp("aarch64")
    options = [
        f"-DCMAKE_TOOLCHAIN_FILE={SOURCE / 'cmake' / 'aarch64-linux-gnu.cmake'}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
        "-DQXC_TESTS=ON",
        "-DQXC_WARNINGS_ARE_ERRORS=ON",
    ]
    output_of("cmake", "-S", str(SOURCE), "-B", str(build), *options)
    output_of("cmake", "--build", str(build), "--target", "kernels_fuzz", "--parallel", "2")
    return build / "kernels_fuzz"


@pytest.mark.parametrize(
    ("processor", "instruction_sets"),
    [
        ("max", ["portable", "neon", "neon_dotprod", "neon_i8mm"]),
        ("neoverse-n1", ["portable", "neon", "neon_dotprod"]),
        ("cortex-a53", ["portable", "neon"]),
    ],
)
def test_kernels_of_every_processor(fuzz: Path, processor: str, instruction_sets: list[str]) -> None:
    """Each processor runs what it has, right; an instruction that it lacks would kill the process."""
    lines = output_of("qemu-aarch64", "-cpu", processor, str(fuzz), str(TRIALS), "1").splitlines()
    assert lines == [f"{name}: {TRIALS} trials" for name in instruction_sets]
