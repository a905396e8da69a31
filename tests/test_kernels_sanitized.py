"""The kernels under AddressSanitizer and UBSan, with guard pages around every buffer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "runtime_ops"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no C++ compiler")
def test_kernels_touch_nothing_that_is_not_theirs(tmp_path: Path) -> None:
    options = [
        "-DQXC_TESTS=ON",
        "-DQXC_SANITIZE=address,undefined",
        "-DCMAKE_BUILD_TYPE=None",
        "-DQXC_WARNINGS_ARE_ERRORS=ON",
    ]
    for command in (
        ["cmake", "-S", str(SOURCE), "-B", str(tmp_path), *options],
        ["cmake", "--build", str(tmp_path), "--target", "kernels_fuzz", "--parallel", "2"],
        [str(tmp_path / "kernels_fuzz"), "400", "1"],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "portable: 400 trials" in done.stdout
