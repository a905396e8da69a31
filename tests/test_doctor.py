"""`qxc --version` and `qxc doctor`: what is installed, and whether the kernels compute what they should."""

from __future__ import annotations

import json

import onnxruntime
import pytest
from operator_models import available_isas

import qxcompiler
from qxcompiler import doctor


def test_version_names_the_kernels(qxc):
    result = qxc("--version")
    assert result.returncode == 0
    assert result.stdout.split() == [
        "qxc",
        qxcompiler.__version__,
        "(onnxruntime",
        f"{onnxruntime.__version__},",
        "kernels:",
        f"{doctor.instruction_sets()[0]})",
    ]


def test_instruction_sets_are_those_that_sessions_take():
    found = doctor.instruction_sets()
    assert [name for name in found if name in available_isas()] == list(reversed(available_isas()))
    assert found[-1] == "portable"


@pytest.mark.slow
def test_every_kernel_is_right(qxc):
    result = qxc("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.returncode == 0
    assert [check["instruction_set"] for check in found["kernels"]] == doctor.instruction_sets()
    for check in found["kernels"]:
        assert check["problem"] is None
        assert check["products"] == 69
        assert 0 < check["largest_error"] < 1e-4
    assert found["versions"]["onnxruntime"] == onnxruntime.__version__


def test_a_wrong_kernel_is_named(qxc, monkeypatch):
    monkeypatch.setattr(doctor, "instruction_sets", lambda: ["portable"])
    monkeypatch.setattr(doctor, "_TOLERANCE", 0.0)
    result = qxc("doctor")
    assert result.returncode == 2
    assert "wrong results: int2g64/a8" in result.stdout
    assert (
        result.stderr
        == "qxc: error: the operators: compute wrong results here: report this as a bug, with all of this\n"
    )


def test_kernels_that_do_not_run_are_named(qxc, monkeypatch):
    monkeypatch.setattr(doctor, "instruction_sets", lambda: ["sse9"])
    result = qxc("doctor")
    assert result.returncode == 2
    assert "QXC_ISA=sse9: no such instruction set" in result.stdout


def test_operators_that_are_not_built(qxc, monkeypatch):
    monkeypatch.setattr("qxcompiler_runtime.library._LIBRARY", "libmissing.so")
    assert "the operators are not built" in qxc("--version").stdout
    assert qxc("doctor").returncode == 2
