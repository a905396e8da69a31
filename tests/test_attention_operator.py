"""The attention operators: kernels of every instruction set and function bodies beside NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from attention_models import (
    attention_model,
    bits_of,
    draw_inputs,
    exact_rows,
    expected_attention,
    kept_attention,
    kept_rows,
    numbers_of,
    turned,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from operator_models import available_isas, run_in, session_of

from qxcompiler.runtime_ops.attention import ATTENTION_TYPES
from qxcompiler.runtime_ops.operators import MINIMUM_OPSET
from qxcompiler_runtime import ops_library

BEST = available_isas()[-1]
NAMES = [each.name for each in ATTENTION_TYPES]
CACHED = [each.name for each in ATTENTION_TYPES if each.cached]
IN_CODES = [name for name in CACHED if bits_of(name)]
# of results near 1; scores of 256 products reach 20, and their exponentials lose as many digits
TOLERANCE = {np.float32: 4e-5, np.float16: 4e-3}
OF_CODES = 3e-4  # kernels round queries and weights to 16 bits: of scores of 20 to 65534, and of what is added up


def check_of(
    name: str,
    outputs: list[np.ndarray],
    inputs: dict[str, np.ndarray],
    heads: int,
    groups: int,
    dtype: type[np.generic] = np.float32,
    softcap: float = 0.0,
) -> None:
    """What an operator gives, and, of a cache in codes, that it holds what is nearest to the rows."""
    bits = bits_of(name)
    if bits:
        check_kept(outputs[1:], inputs, heads, groups, bits)
    kept = outputs[1:] if bits else None
    wanted = expected_attention(inputs, heads, groups, softcap=softcap, kept=kept, bits=bits)
    if bits:
        check(outputs[:1], wanted[:1], dtype, OF_CODES)
    else:
        check(outputs, wanted, dtype)


def check_kept(presents: list[np.ndarray], inputs: dict[str, np.ndarray], heads: int, groups: int, bits: int) -> None:
    tokens, (_, length, columns) = inputs["mask"].shape[-1], inputs["query"].shape
    for present, name, new in zip(presents, ("key", "value"), exact_rows(inputs, heads, groups)[1:], strict=True):
        past = inputs[f"past_{name}"]
        assert present.dtype == np.uint8
        assert present.shape == (*past.shape[:2], max(past.shape[2], tokens), past.shape[3])
        np.testing.assert_array_equal(present[:, :, : tokens - length], past[:, :, : tokens - length])
        np.testing.assert_array_equal(present[:, :, tokens:], past[:, :, tokens:])
        fresh = present[:, :, tokens - length : tokens]
        if bits == 8 and "cos" not in inputs:
            np.testing.assert_array_equal(fresh, kept_rows(new, bits))
        numbers, half_step = numbers_of(fresh, bits, columns // heads)
        if fresh.size:
            turned_off = np.abs(numbers - new) if bits == 8 else np.abs(turned(numbers) - turned(new))
            assert (turned_off <= half_step * 1.001).all()
            wanted = kept_rows(new, bits)[..., -2:].view(np.uint16).astype(int)
            assert (np.abs(fresh[..., -2:].view(np.uint16).astype(int) - wanted) <= 1).all()


def check(
    outputs: list[np.ndarray], wanted: list[np.ndarray], dtype: type[np.generic] = np.float32, least: float = 0.0
) -> None:
    tolerance = max(TOLERANCE[dtype], least)
    assert len(outputs) == len(wanted)
    for output, each in zip(outputs, wanted, strict=True):
        assert output.dtype == dtype
        assert output.shape == each.shape
        np.testing.assert_allclose(output, each, rtol=tolerance, atol=tolerance)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, object]:
    name = draw(st.sampled_from(NAMES))
    groups, shared = draw(st.sampled_from([(1, 1), (2, 1), (3, 3), (1, 4), (2, 9), (1, 70)]))
    size, batch = draw(st.sampled_from([1, 7, 8, 20, 33, 64, 96, 256])), draw(st.integers(1, 3))
    length = draw(st.one_of(st.integers(0, 4), st.integers(5, 90)))
    before = draw(st.one_of(st.integers(0, 5), st.integers(6, 140)))
    return {
        "name": name,
        "seed": draw(st.integers(0, 2**32 - 1)),
        "heads": groups * shared,
        "groups": groups,
        "size": size,
        "batch": batch,
        "length": length,
        "keys": length + before if "Cached" in name else draw(st.integers(0, 150)),
        "past": before + draw(st.sampled_from([0, 0, 1, length, length + 3])),
        "rotary": 2 * draw(st.integers(0, size // 2)),
        "mask": tuple(draw(st.sampled_from([1, most])) for most in (batch, groups * shared, length)),
        "dtype": draw(st.sampled_from([np.float32, np.float16])),
        "softcap": draw(st.sampled_from([0.0, 0.0, 0.5, 30.0])),
    }


LONG = {"seed": 1, "batch": 1, "past": 1500, "mask": (1, 1, 1), "dtype": np.float32, "softcap": 0.0}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(cases())
@example({"name": NAMES[3], "heads": 6, "groups": 2, "size": 24, "length": 1, "keys": 1400, "rotary": 8, **LONG})
@example({"name": NAMES[2], "heads": 9, "groups": 1, "size": 16, "length": 3, "keys": 700, "rotary": 0, **LONG})
def test_kernels_and_bodies_compute_what_numpy_does(case: dict) -> None:
    softcap = case.pop("softcap")
    inputs = draw_inputs(**case)
    heads, groups, dtype = case["heads"], case["groups"], case["dtype"]
    model = attention_model(case["name"], heads, groups, dtype, softcap=softcap)
    for isa in (None, *available_isas()):
        check_of(case["name"], session_of(model, isa).run(None, inputs), inputs, heads, groups, dtype, softcap)


@pytest.mark.parametrize("isa", [None, BEST])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("batch", "length", "keys"), [(0, 2, 3), (2, 0, 3), (2, 0, 0), (1, 2, 0)])
def test_nothing_to_attend_to(name: str, batch: int, length: int, keys: int, isa: str | None) -> None:
    keys = max(keys, length) if "Cached" in name else keys
    inputs = draw_inputs(name, 1, 4, 2, 8, batch, length, keys, past=keys, rotary=8, mask=(1, 1, length))
    check_of(name, session_of(attention_model(name, 4, 2), isa).run(None, inputs), inputs, 4, 2)


@pytest.mark.parametrize("isa", [None, BEST])
@pytest.mark.parametrize("name", ["Attention", "RotaryAttention"])
def test_one_number_masks_all_keys(name: str, isa: str | None) -> None:
    inputs = draw_inputs(name, 1, 4, 2, 8, 2, 5, 5, rotary=8, mask=(1, 4, 5))
    inputs["mask"] = np.ascontiguousarray(inputs["mask"][..., :1])
    check(session_of(attention_model(name, 4, 2), isa).run(None, inputs), expected_attention(inputs, 4, 2))


@pytest.mark.parametrize("isa", [None, BEST])
@pytest.mark.parametrize("name", NAMES)
def test_sizes_that_a_model_leaves_open(name: str, isa: str | None) -> None:
    inputs = draw_inputs(name, 2, 4, 2, 8, 2, 3, 7, past=9, rotary=4, mask=(2, 1, 3))
    for shapes in (
        {each: [None] * array.ndim for each, array in inputs.items()},
        {each: [f"{each}_{i}" for i in range(array.ndim)] for each, array in inputs.items()},
        {each: ["batch", *[None] * (array.ndim - 2), array.shape[-1]] for each, array in inputs.items()},
        {each: list(array.shape) for each, array in inputs.items()},
    ):
        session = session_of(attention_model(name, 4, 2, shapes=shapes), isa)
        check_of(name, session.run(None, inputs), inputs, 4, 2)


@pytest.mark.parametrize("isa", [None, *available_isas()])
@pytest.mark.parametrize("name", CACHED)
def test_a_shared_buffer_is_as_good_as_a_cache_that_grows(name: str, isa: str | None) -> None:
    """Chunks of several lengths, in place, give what one piece gives; rows beyond them stay."""
    heads, groups, size, capacity, tokens = 6, 2, 8, 40, 33
    whole = draw_inputs(name, 3, heads, groups, size, 2, tokens, tokens, rotary=8, mask=(1, 1, tokens))
    whole["mask"] = np.where(np.tri(tokens, dtype=bool), 0, -np.inf).astype(np.float32)[None, None]
    session = session_of(attention_model(name, heads, groups), isa)
    wanted = session.run(None, whole)
    check_of(name, wanted, whole, heads, groups)
    fill = np.random.default_rng(4).standard_normal((2, groups, capacity, size)).astype(np.float32)
    bits = bits_of(name)
    fill = kept_rows(fill, bits) if bits else fill
    caches = {each: onnxruntime.OrtValue.ortvalue_from_numpy(fill.copy()) for each in ("key", "value")}
    rows, first = [], 0
    for length in (20, 1, 1, 8, 1, 2):
        end = first + length
        binding = session.io_binding()
        for each, array in whole.items():
            if each.startswith("past"):
                binding.bind_ortvalue_input(each, caches[each[5:]])
            elif each == "mask":
                binding.bind_cpu_input(each, np.ascontiguousarray(array[:, :, first:end, :end]))
            else:
                binding.bind_cpu_input(each, np.ascontiguousarray(array[:, first:end]))
        binding.bind_output("Y")
        for each, cache in caches.items():
            binding.bind_ortvalue_output(f"present_{each}", cache)
        session.run_with_iobinding(binding)
        rows.append(binding.get_outputs()[0].numpy().copy())
        first = end
    tolerance = OF_CODES if bits else 1e-5
    np.testing.assert_allclose(np.concatenate(rows, axis=1), wanted[0], rtol=tolerance, atol=tolerance)
    for cache, present in zip(caches.values(), wanted[1:], strict=True):
        np.testing.assert_allclose(cache.numpy()[:, :, :tokens], present, rtol=1e-6, atol=1e-6)  # codes: equal
        np.testing.assert_array_equal(cache.numpy()[:, :, tokens:], fill[:, :, tokens:])


@pytest.mark.parametrize("isa", [None, *available_isas()])
@pytest.mark.parametrize("length", [1, 70])
def test_queries_that_see_no_key(length: int, isa: str | None) -> None:
    """Minus infinity everywhere gives zeros; the lowest number everywhere, the mean of all values."""
    inputs = draw_inputs("Attention", 5, 2, 1, 8, 1, length, 300)
    session = session_of(attention_model("Attention", 2, 1), isa)
    for number, row in ((-np.inf, np.zeros(8)), (np.finfo(np.float32).min, inputs["value"].mean((0, 1)))):
        inputs["mask"] = np.full((1, 1, 1, 300), number, np.float32)
        Y = session.run(None, inputs)[0]
        np.testing.assert_allclose(Y, np.broadcast_to(np.tile(row, 2), Y.shape), atol=1e-6)


@pytest.mark.parametrize("isa", [None, *available_isas()])
@pytest.mark.parametrize("where", ["query", "key", "value", "mask"])
@pytest.mark.parametrize("length", [1, 20])
def test_nan_stays_with_what_it_touches(length: int, where: str, isa: str | None) -> None:
    inputs = draw_inputs("Attention", 6, 4, 2, 8, 2, length, 90)
    inputs["mask"] = np.zeros((2, 4, length, 90), np.float32)
    place = {"query": (1, 0, 9), "key": (1, 80, 3), "value": (1, 3, 2), "mask": (1, 1, 0, 70)}[where]
    inputs[where][place] = np.nan
    Y = session_of(attention_model("Attention", 4, 2), isa).run(None, inputs)[0].reshape(2, length, 4, 8)
    wanted = np.zeros(Y.shape, bool)
    touched: dict[str, tuple] = {
        "query": (1, 0, 1),
        "key": (1, slice(None), slice(0, 2)),
        "value": (1, slice(None), slice(0, 2), 2),
        "mask": (1, 0, 1),
    }
    wanted[touched[where]] = True
    np.testing.assert_array_equal(np.isnan(Y), wanted)


@pytest.mark.parametrize("isa", [None, *available_isas()])
@pytest.mark.parametrize("name", IN_CODES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_row_in_codes_that_holds_nan_or_infinity_is_nan(number: float, name: str, isa: str | None) -> None:
    inputs = draw_inputs(name, 6, 4, 2, 24, 2, 3, 9, past=6, rotary=0, mask=(1, 1, 1))
    inputs["mask"] = np.zeros((2, 4, 3, 9), np.float32)
    inputs["value"][1, 1, 3] = number  # of the first of two heads
    Y, _, present = session_of(attention_model(name, 4, 2), isa).run(None, inputs)
    wanted = np.zeros((2, 3, 4, 24), bool)
    wanted[1, :, :2] = True
    np.testing.assert_array_equal(np.isnan(Y.reshape(wanted.shape)), wanted)
    assert present[1, 0, 7, -2:].tolist() == [0xC0, 0x7F]


@pytest.mark.parametrize("isa", [None, *available_isas()])
@pytest.mark.parametrize("name", IN_CODES)
def test_rows_in_codes_of_any_magnitude(name: str, isa: str | None) -> None:
    inputs = draw_inputs(name, 6, 2, 2, 19, 1, 12, 12)
    inputs["value"][0] *= np.logspace(-36, 36, 12).astype(np.float32)[:, None]
    inputs["value"][0, :2] = [[0], [1e-38]]  # too little for a scale that is a normal number
    present = session_of(attention_model(name, 2, 2), isa).run(None, inputs)[2]
    rows = inputs["value"].reshape(1, 12, 2, 19).transpose(0, 2, 1, 3)
    np.testing.assert_array_equal(present, kept_rows(rows, bits_of(name)))
    assert not numbers_of(present, bits_of(name), 19)[0][:, :, :2].any()


def test_large_scores() -> None:
    """Exponentials that would overflow, and a softcap that keeps them apart."""
    inputs = draw_inputs("Attention", 7, 2, 2, 16, 1, 30, 200)
    inputs["query"] *= 300
    for softcap in (0.0, 20.0):
        model = attention_model("Attention", 2, 2, softcap=softcap)
        outputs = [session_of(model, isa).run(None, inputs)[0] for isa in (None, *available_isas())]
        wanted = expected_attention(inputs, 2, 2, softcap=softcap)[0]
        for output in outputs:  # a score of 1000 is known to 1e-4
            np.testing.assert_allclose(output, wanted, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_nothing(name: str) -> None:
    for length, keys in ((1, 2000), (150, 150)):
        inputs = draw_inputs(name, 8, 6, 2, 32, 1, length, keys, past=keys, rotary=16, mask=(1, 1, length))
        model = attention_model(name, 6, 2)
        for one, four in zip(*(session_of(model, BEST, threads).run(None, inputs) for threads in (1, 4)), strict=True):
            np.testing.assert_array_equal(one, four)


@pytest.mark.parametrize("name", NAMES)
def test_functions_are_valid_onnx(name: str) -> None:
    for opset in (MINIMUM_OPSET, 21, 23):
        proto = onnx.load_model_from_string(attention_model(name, 4, 2, opset=opset))
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim.add().dim_param = "M"  # the checker wants some shape
        onnx.checker.check_model(proto)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("name", NAMES)
def test_the_library_runs_models_without_bodies(name: str, isa: str) -> None:
    inputs = draw_inputs(name, 9, 4, 2, 8, 2, 3, 7, past=4, rotary=4, mask=(2, 1, 3))
    session = session_of(attention_model(name, 4, 2, with_body=False), isa)
    check_of(name, session.run(None, inputs), inputs, 4, 2)


@pytest.mark.parametrize("with_library", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_1_20(name: str, with_library: bool, tmp_path: Path) -> None:
    inputs = draw_inputs(name, 9, 4, 2, 8, 2, 3, 7, past=4, rotary=4, mask=(2, 1, 3))
    library = str(ops_library()) if with_library else ""
    done = run_in("1.20.1", library, attention_model(name, 4, 2), inputs, tmp_path)
    assert done.returncode == 0, done.stderr
    y, bits = np.load(tmp_path / "y.npy"), bits_of(name)
    if bits:  # where keys and values are half-way between two codes, a last digit decides
        np.testing.assert_allclose(y, kept_attention(inputs, 4, 2, bits), atol={8: 2e-3, 4: 4e-2}[bits])
    else:
        check([y], expected_attention(inputs, 4, 2)[:1])


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"num_heads": 0}, "num_heads 0 is no multiple of kv_num_heads 2"),
        ({"num_heads": 5}, "num_heads 5 is no multiple of kv_num_heads 2"),
        ({"kv_num_heads": -2}, "num_heads 4 is no multiple of kv_num_heads -2"),
        ({"softcap": -1.0}, "softcap is neither positive nor 0"),
        ({"softcap": float("nan")}, "softcap is neither positive nor 0"),
        ({"scale": None}, "attribute 'scale' is missing, or no float"),
        ({"scale": 1}, "attribute 'scale' is missing, or no float"),
        ({"kv_num_heads": None}, "attribute 'kv_num_heads' is missing, or no integer"),
    ],
)
def test_attributes_that_no_kernel_has(attributes: dict, message: str) -> None:
    values = {"heads": 4, "groups": 2} | attributes
    with pytest.raises(Exception, match=f"'the_node': {message}"):
        session_of(attention_model("Attention", **values, with_body=False), BEST)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "query",
            (2, 3, 34),
            r"'query' is float32 \[2, 3, 34\] instead of float32 or float16 \[batch, length, 4 heads\]",
        ),
        ("query", (2, 3, 0), "'query' is"),
        ("query", (2, 96), "'query' is"),
        ("key", (2, 3, 32), r"'key' is float32 \[2, 3, 32\] instead of float32 \[2, 3, 16\]"),
        ("key", (2, 4, 16), "'key' is"),
        ("key", (96,), "'key' is"),
        ("value", (1, 3, 16), "'value' is"),
        ("cos", (3, 3, 8), r"'cos' is float32 \[3, 3, 8\] instead of float32 \[1, 3, 8\] or \[2, 3, 8\]"),
        ("cos", (2, 3, 7), "'cos' is .* an even number of at most 8 columns"),
        ("cos", (2, 3, 10), "'cos' is .* an even number of at most 8 columns"),
        ("cos", (3, 8), "'cos' is"),
        ("sin", (1, 3, 6), "'sin' is"),
        ("past_key", (2, 2, 4, 9), r"'past_key' is float32 \[2, 2, 4, 9\] instead of float32 \[2, 2, 4, 8\]"),
        ("past_key", (2, 4, 8), "'past_key' is"),
        ("past_value", (2, 2, 5, 8), "'past_value' is"),
        ("mask", (2, 1, 3, 8), r"'mask' is .* columns for the 3 new tokens and at most 4 before"),
        ("mask", (2, 1, 3, 2), "'mask' is .* columns for the 3 new tokens"),
        ("mask", (2, 3, 3, 7), r"'mask' is .* instead of float32 \[2, 4, 3, 7\] or 1 of any of them"),
        ("mask", (3, 1, 3, 7), "'mask' is"),
        ("mask", (2, 1, 2, 7), "'mask' is"),
        ("mask", (3, 7), "'mask' is"),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...], message: str) -> None:
    inputs = draw_inputs("RotaryCachedAttention", 9, 4, 2, 8, 2, 3, 7, past=4, rotary=8, mask=(2, 1, 3))
    inputs[name] = np.zeros(shape, np.float32)
    session = session_of(attention_model("RotaryCachedAttention", 4, 2, with_body=False), BEST)
    with pytest.raises(Exception, match=f"'the_node': input {message}"):
        session.run(None, inputs)


@pytest.mark.parametrize(("name", "row"), [("CachedAttentionInt8", 10), ("CachedAttentionInt4", 6)])
def test_a_cache_of_another_format(name: str, row: int) -> None:
    inputs = draw_inputs(name, 9, 4, 2, 8, 2, 3, 7, past=4)
    session = session_of(attention_model(name, 4, 2, with_body=False), BEST)
    inputs["past_key"] = np.zeros((2, 2, 4, 8), np.uint8)
    with pytest.raises(Exception, match=rf"'past_key' is uint8 \[2, 2, 4, 8\] instead of uint8 \[2, 2, 4, {row}\]"):
        session.run(None, inputs)


def test_keys_and_values_of_another_length() -> None:
    inputs = draw_inputs("Attention", 9, 4, 2, 8, 2, 3, 7)
    session = session_of(attention_model("Attention", 4, 2, with_body=False), BEST)
    inputs["value"] = np.zeros((2, 6, 16), np.float32)
    with pytest.raises(Exception, match=r"'value' is float32 \[2, 6, 16\] instead of float32 \[2, 7, 16\]"):
        session.run(None, inputs)
