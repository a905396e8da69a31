"""The fuzzer, for a few seconds: inputs that once failed, and some new ones; and that it finds what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cases import Case
from pool import MEMORY, Outcome, check

LINE = "qxc: error: model.onnx: damaged: export it again\n"
TRACEBACK = 'Traceback (most recent call last):\n  File "/a/qxcompiler/cli.py", line 3, in main\nKeyError: 7\n'


def test_no_findings(tmp_path):
    command = [
        sys.executable,
        "-P",
        str(Path(__file__).parent),
        "--inputs",
        "150",
        "--limit",
        "60",
        "--keep",
        str(tmp_path),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("problem", "outcome"),
    [
        ("SIGSEGV", {"status": "SIGSEGV"}),
        ("hang", {"status": "hang"}),
        ("traceback", {"status": 99, "error": TRACEBACK}),
        ("traceback", {"status": 0, "error": TRACEBACK}),
        ("traceback", {"status": 98}),
        ("not one line", {"status": 2}),
        ("not one line", {"status": 2, "error": LINE + LINE}),
        ("not one line", {"status": 2, "error": "qxc: error: damaged\n"}),
        ("memory", {"status": 2, "error": LINE, "memory": MEMORY + 1}),
        ("files left", {"status": 2, "error": LINE, "left": ["out"]}),
        ("noise", {"status": 0, "error": "UserWarning: odd\n"}),
        (None, {"status": 2, "error": LINE}),
        (None, {"status": 0, "error": "qxc: warning: small\n"}),
    ],
)
def test_what_counts_as_a_finding(problem, outcome):
    finding = check(Outcome(0, Case("model", []), **{"error": ""} | outcome))
    assert (finding and finding.problem) == problem
