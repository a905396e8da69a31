"""Models whose calls of the operators do not fit: errors that name node and input, and no touch out of bounds."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from fuzz_operators import Tally, fuzz, sanitized_library
from onnx import TensorProto, helper
from operator_fuzz import Call, Input, build, draw, flaw
from operator_models import (
    available_isas,
    expected_matmul,
    format_of,
    gather_model,
    library_for,
    matmul_model,
    random_rows,
    random_weight,
    relative_error,
    run,
    session_of,
)

ISAS = available_isas()
BEST = ISAS[-1]
WEIGHT = random_weight(format_of("int4@a", 32), 40, 100, 6)


def with_attribute(model: bytes, name: str, value: object) -> bytes:
    proto = onnx.load_model_from_string(model)
    node = proto.graph.node[0]
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept if value is None else [*kept, helper.make_attribute(name, value)])
    return proto.SerializeToString()


@pytest.mark.parametrize(
    ("name", "kind"),
    [("K", "integer"), ("N", "integer"), ("group_size", "integer"), ("layout", "string"), ("activation", "string")],
)
def test_attributes_missing_or_of_another_type_are_named(name: str, kind: str) -> None:
    for value in (None, 1.5, [1, 2], b"16" if kind == "integer" else 16):
        model = with_attribute(matmul_model(WEIGHT, "a8"), name, value)
        with pytest.raises(Exception, match=f"qxc node 'the_node': attribute '{name}' is missing, or no {kind}"):
            session_of(model, BEST)


def test_text_that_is_no_text_is_shown_as_far_as_it_goes() -> None:
    for text, shown in ((b"\xff\xfe\0a8", r"\?\?\?a8"), (b"x" * 10_000, "x{200}\\.\\.\\.")):
        with pytest.raises(Exception, match=f"'the_node': layout '{shown}' is not known"):
            session_of(with_attribute(matmul_model(WEIGHT, "a8"), "layout", text), BEST)
        with pytest.raises(Exception, match=f"'the_node': activation '{shown}' is none of"):
            session_of(with_attribute(matmul_model(WEIGHT, "a8"), "activation", text), BEST)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("packed", np.zeros((3, 4, 4, 63), np.uint8)),
        ("scales", np.zeros((3, 4), np.float16)),
        ("zero_points", np.zeros((0, 4, 16), np.uint8)),
        ("bias", np.zeros(39, np.float32)),
    ],
)
def test_constants_are_checked_when_the_session_is_made(name: str, array: np.ndarray) -> None:
    wrong = {} if name == "bias" else {name: array}
    model = matmul_model(WEIGHT, "a8", array if name == "bias" else np.zeros(40, np.float32), **wrong)
    with pytest.raises(Exception, match=f"'the_node': input '{name}' has shape .* instead of"):
        session_of(model, BEST)


def test_types_are_named() -> None:
    with pytest.raises(Exception, match="input 'indices' is float64 instead of int32 or int64"):
        model = onnx.load_model_from_string(gather_model(WEIGHT))
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
        run(model.SerializeToString(), np.zeros(2), BEST)
    with pytest.raises(Exception, match=r"input 'A' is float32 \[2, 99\] instead of float32 or float16 \[..., 100\]"):
        run(matmul_model(WEIGHT, "a8"), np.zeros((2, 99), np.float32), BEST)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model_of", [lambda weight: matmul_model(weight, "a32"), gather_model])
def test_external_data_at_any_byte_of_a_file(model_of: Callable[..., bytes], isa: str, tmp_path: Path) -> None:
    proto = onnx.load_model_from_string(model_of(WEIGHT))
    data = bytearray()
    for tensor in proto.graph.initializer:
        content = tensor.raw_data
        data += b"\0" * (1 - len(data) % 2)  # odd offsets
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "data"), ("offset", len(data)), ("length", len(content))):
            tensor.external_data.add(key=key, value=str(value))
        data += content
    (tmp_path / "data").write_bytes(data)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(library_for(isa))
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options)
    if model_of is gather_model:
        rows = np.arange(40)
        np.testing.assert_array_equal(session.run(None, {"data": rows})[0], WEIGHT.decode().numpy())
    else:
        a = random_rows((3, 100), 1)
        assert relative_error(session.run(None, {"data": a})[0], expected_matmul(WEIGHT, a, 0, "a32")) <= 2e-6


@pytest.mark.parametrize("shape", [(0, 2**40, 2**10), (2**40, 0, 2**10), (2**31, 2**20, 0), (0,)])
def test_empty_indices_of_huge_dimensions(shape: tuple[int, ...]) -> None:
    y = run(gather_model(WEIGHT), np.zeros(shape, np.int64), BEST)
    assert y.shape == (*shape, 100)


def test_sessions_side_by_side() -> None:
    """Sound and broken models, made and run by several threads."""
    a = random_rows((70, 100), 2)
    expected = expected_matmul(WEIGHT, a, 0, "a8")
    library_for(BEST)

    def one(number: int) -> None:
        if number % 3 == 0:
            with pytest.raises(Exception, match="'packed' has shape"):
                session_of(matmul_model(WEIGHT, "a8", packed=np.zeros((1, 1), np.uint8)), BEST)
        else:
            assert relative_error(run(matmul_model(WEIGHT, "a8"), a, BEST, threads=2), expected) <= 2e-6

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(60)))


def test_the_definition_tells_sound_calls_from_broken_ones() -> None:
    """What the fuzzing below judges by, on the function bodies' tensors."""
    calls = [draw(random.Random(seed)) for seed in range(400)]
    sound = [call for call in calls if not call.breaks]
    assert len(sound) > 50
    assert not any(flaw(call) for call in sound)
    assert sum(flaw(call) is not None for call in calls) > 150
    call: Call = next(call for call in sound if call.inputs[1].name == "packed")
    call.inputs[1] = Input("packed", call.inputs[1].array[..., :-1], "constant")
    assert flaw(call) == "packed"
    assert build([call], random.Random(0)).model


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no C++ compiler")
def test_nothing_is_touched_out_of_bounds() -> None:
    """Under AddressSanitizer and UBSan; `make fuzz-operators` draws many more."""
    tally = Tally()
    fuzz(tally, sanitized_library(), models=300, seed=1, isas=ISAS)
    assert not tally.findings, "\n".join(tally.findings)
    assert tally.compared > 60
    assert tally.refused > 60
