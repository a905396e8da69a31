"""A descriptor of this machine: what is measured is there, can be read, and is what predictions use."""

from __future__ import annotations

import numpy as np
import pytest

from qxcompiler import profiling
from qxcompiler.cost import cost_of_product
from qxcompiler.errors import OutputError
from qxcompiler.formats import Scheme
from qxcompiler.packing import packed_bytes
from qxcompiler.progress import silent
from qxcompiler.targets import load_target


@pytest.fixture
def quick(monkeypatch):
    for name, value in (
        ("FORMATS", ("int4g128", "lut3g128", "mxfp4")), ("ROWS", (1, 4)), ("_SIDE", 128), ("_SMALL_SIDE", 128),
        ("_LARGE_SIDE", 256), ("_LARGE_BYTES", 1 << 18), ("_ROUNDS", 2), ("_ROUND_SECONDS", 0.001),
    ):  # fmt: skip
        monkeypatch.setattr(profiling, name, value)


def test_a_machine_is_described(quick, tmp_path):
    profiling.profile(tmp_path / "host.yaml", [2, 1], silent)
    host = load_target(tmp_path / "host.yaml")
    host.check_cost()
    assert host.name == "host"
    measured = host.measured
    assert measured.threads == 1
    assert set(measured.read_bandwidth_bytes_per_second) == {1, 2}
    found = {(str(kernel.scheme), kernel.threads): kernel.weights_per_second for kernel in measured.kernels}
    schemes = [f"{fmt}/{act}" for fmt in ("int4g128", "lut3g128", "mxfp4") for act in ("a32", "a16", "a8")]
    assert set(found) == {(scheme, threads) for scheme in [*schemes, "float"] for threads in (1, 2)}
    assert all(set(rates) == {1, 4} and min(rates.values()) > 0 for rates in found.values())
    scheme = Scheme.parse("int4g64/a8")
    cost = cost_of_product(host, 1, 512, 512, scheme)
    assert cost.busy["kernel"] == pytest.approx(512 * 512 / found["int4g128/a8", 1][1])
    memory = packed_bytes(scheme.format, 512, 512) / measured.read_bandwidth_bytes_per_second[1]
    assert cost.seconds == max(cost.busy["kernel"], memory)
    assert cost.busy["dram"] == memory
    for (name, threads), rates in found.items():  # nothing of few rows was read faster than the memory is said to give
        size = packed_bytes(Scheme.parse(name).format, 256, 256) if name != "float" else 256 * 256 * 4
        assert size / 256**2 * rates[1] <= 1.01 * measured.read_bandwidth_bytes_per_second[threads]


def test_what_others_measured_is_not_inherited(quick, tmp_path):
    profiling.profile(tmp_path / "host.yaml", [1], silent)
    measured = load_target(tmp_path / "host.yaml").measured
    assert set(measured.read_bandwidth_bytes_per_second) == {1}
    assert {kernel.threads for kernel in measured.kernels} == {1}


def test_what_is_timed_is_a_product(quick):
    """Random weights give finite outputs that differ: no kernel is measured on its way around NaN."""
    for name in ("int4g128/a8", "lut3g128/a16", "mxfp4/a32", "int8g128a/a8", "int3g32s8/a16"):
        session = profiling._session([Scheme.parse(name)] * 2, 64, 128, 1)
        x = np.random.default_rng(0).standard_normal((3, 128), dtype=np.float32)
        first, second = session.run(None, {"X": x})
        assert np.isfinite(first).all() and first.shape == (3, 64)
        assert not np.allclose(first, second)
    session = profiling._session([None] * 2, 64, 128, 1, one=True)
    first, second = session.run(None, {"X": x})
    np.testing.assert_array_equal(first, second)


def test_where_nothing_can_be_written_nothing_is_measured(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "_seconds", lambda *args: pytest.fail("measured"))
    with pytest.raises(OutputError, match="its folder does not exist"):
        profiling.profile(tmp_path / "none" / "host.yaml", [1], silent)


def test_a_folder_is_no_descriptor(quick, tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        profiling.profile(tmp_path, [1], silent)
