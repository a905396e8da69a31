"""The benchmark's model of a whole Llama: what it computes, and what is read from the profiler."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from operator_models import relative_error
from synthetic_llama import Decoder, Llama, build, product_bytes

from qxcompiler.formats import Scheme
from qxcompiler.graph import save_model

SIZES = Llama(blocks=1, hidden=64, mlp=96, heads=4, key_value_heads=2, vocabulary=48, positions=16)


@pytest.fixture(params=["int3g32/a32", "lut4g32/a16"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return Scheme.parse(request.param)


@pytest.fixture
def path(scheme: Scheme, tmp_path):
    save_model(build(SIZES, scheme), tmp_path)
    onnx.checker.check_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_decoding_with_a_cache_gives_what_a_run_without_gives(path) -> None:
    whole = Decoder(path, SIZES, threads=1).step((7, 30))
    decoder = Decoder(path, SIZES, threads=1)
    steps = np.concatenate([decoder.step((7,)), decoder.step((30,))])
    assert np.isfinite(whole).all()
    assert whole.std() > 0
    assert relative_error(steps, whole) <= 2e-4
    decoder.reset()
    assert relative_error(decoder.step((30,)), whole[1:]) > 1e-2  # the past counts


def test_the_past_is_told_by_its_order(path) -> None:
    one, other = (Decoder(path, SIZES, threads=1).step(tokens)[-1] for tokens in ((7, 30, 5), (30, 7, 5)))
    assert relative_error(one, other) > 1e-3


def test_profiled_runs_hold_every_operator(path, scheme: Scheme) -> None:
    decoder = Decoder(path, SIZES, threads=1, profile=path.with_name("profile"))
    assert len(decoder.seconds(2)) == 2
    runs = decoder.profiled_runs()
    assert len(runs) == 3  # the prompt and two tokens
    suffix = scheme.format.operator_suffix
    expected = {f"MatMul{suffix}", f"SwiGlu{suffix}", f"Gather{suffix}", "RotaryCachedAttention", "Split"}
    expected |= {"RMSNorm", "SkipRMSNorm"}
    assert all(expected <= run.keys() and sum(run.values()) < 1 for run in runs)


def test_bytes_of_a_token() -> None:
    weights = 64 * (64 + 32 + 32 + 64 + 3 * 96 + 48)  # query, key, value, output; gate, up, down; head
    scheme = Scheme.parse("int4g32/a8")
    assert product_bytes(build(SIZES, scheme), scheme) == weights // 2 + weights // 32 * 2
