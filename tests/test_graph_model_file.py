"""Model files: bad ones are refused in one line, good ones come back as they went out."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graph_models import ARCHITECTURES, IDS, Builder, TensorProto, bert, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper

from qxcompiler.errors import ModelError, OutputError
from qxcompiler.graph import find_sites, load_model, normalize, raise_opset, save_model

FLOAT = TensorProto.FLOAT


def small_model() -> onnx.ModelProto:
    b = Builder()
    y = b.op("MatMul", b.op("MatMul", "x", b.weight(8, 16, name="first")), b.weight(16, 4, name="second"))
    return b.model({"x": (FLOAT, ["n", 8])}, [y])


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model in its own folder, with its weights in `weights.bin`."""
    path = tmp_path / "model" / "model.onnx"
    path.parent.mkdir()
    onnx.save(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def edit_external(path: Path, key: str, value: str) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        entry = next((e for e in tensor.external_data if e.key == key), None) or tensor.external_data.add(key=key)
        entry.value = value
    path.write_bytes(proto.SerializeToString())


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.count(": ") >= 2  # what is wrong, and what to do
    return message


def test_external_data_is_mapped(external):
    model = load_model(external)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert all(isinstance(tensor, ir.ExternalTensor) and tensor.raw is None for tensor in tensors)
    proto = onnx.load(external)
    for tensor, expected in zip(tensors, proto.graph.initializer, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), onnx.numpy_helper.to_array(expected))


def test_relative_path(external, monkeypatch):
    monkeypatch.chdir(external.parent)
    model = load_model("model.onnx")
    monkeypatch.chdir("/")
    assert model.graph.initializers["first"].const_value.numpy().shape == (8, 16)


def test_files_that_are_no_models(tmp_path):
    path = tmp_path / "model.onnx"
    assert "no such file" in refusal(path)
    assert "is a folder" in refusal(tmp_path)
    for content in (
        b"",
        b"hello, world",
        b"GGUF\x03\x00\x00\x00",
        b'{"a": 1}',
        b"PK\x03\x04",
        bytes(range(256)),
    ):
        path.write_bytes(content)
        assert "not an ONNX file" in refusal(path)


def test_truncated_file(tmp_path):
    path = tmp_path / "model.onnx"
    whole = small_model().SerializeToString()
    for length in (len(whole) // 4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert "cut off or damaged" in refusal(path)


def test_empty_graph(tmp_path):
    path = tmp_path / "model.onnx"
    proto = small_model()
    del proto.graph.node[:]
    path.write_bytes(proto.SerializeToString())
    assert "graph is empty" in refusal(path)


def test_missing_data_file(external):
    (external.parent / "weights.bin").unlink()
    assert "'weights.bin' of 'first' is missing" in refusal(external)


def test_short_data_file(external):
    data = external.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-1])
    assert "'weights.bin' is too short" in refusal(external)


@pytest.mark.parametrize(("key", "value"), [("length", "4"), ("length", "1000000")])
def test_claimed_extent_must_fit_the_shape(external, key, value):
    edit_external(external, key, value)
    assert "claims" in refusal(external)


def test_offset_outside_the_file(external):
    edit_external(external, "offset", "-4")
    assert "offset must be non-negative" in refusal(external)
    edit_external(external, "offset", str(1 << 40))
    assert "too short" in refusal(external)


@pytest.mark.parametrize("location", ["../weights.bin", "a/../../weights.bin", "", "{folder}/weights.bin"])
def test_data_outside_the_folder(external, location):
    folder = external.parent
    (folder.parent / "weights.bin").write_bytes((folder / "weights.bin").read_bytes())
    edit_external(external, "location", location.format(folder=folder))
    assert "outside its folder" in refusal(external)


def test_data_outside_the_folder_by_links(external):
    data, elsewhere = external.parent / "weights.bin", external.parent.parent / "elsewhere"
    data.rename(elsewhere)
    data.symlink_to(elsewhere)
    assert "leads out of its folder" in refusal(external)
    data.unlink()
    os.link(elsewhere, data)
    assert "not a plain file" in refusal(external)
    data.unlink()
    os.mkfifo(data)
    assert "not a plain file" in refusal(external)


def test_link_inside_the_folder_is_fine(external):
    data = external.parent / "weights.bin"
    data.rename(external.parent / "real.bin")
    data.symlink_to("real.bin")
    assert load_model(external).graph.initializers["first"].const_value.numpy().shape == (8, 16)


def test_external_data_of_a_constant_node_and_a_function_is_checked(tmp_path):
    path = tmp_path / "model.onnx"
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[8, 4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    multiply = helper.make_node("MatMul", ["a", "w"], ["b"])
    branch = helper.make_graph([constant, multiply], "branch", [], [onnx.ValueInfoProto(name="b")])
    nested = helper.make_node("If", ["a"], ["b"], then_branch=branch, else_branch=branch)
    for body in (None, [constant, multiply], [nested]):
        b = Builder()
        if body:
            b.functions.append(helper.make_function("f", "F", ["a"], ["b"], body, [helper.make_opsetid("", 18)]))
            b.domains["f"] = 1
            y = b.op("F", "x", domain="f")
        else:
            b.nodes.append(constant)
            y = b.op("MatMul", "x", "w")
        path.write_bytes(b.model({"x": (FLOAT, ["n", 8])}, [y]).SerializeToString())
        assert "outside its folder" in refusal(path)


@pytest.mark.parametrize("dims", [[8, 17], [1 << 40, 1 << 40], [8, -16]])
def test_shape_must_fit_the_data(tmp_path, dims):
    path = tmp_path / "model.onnx"
    proto = small_model()
    proto.graph.initializer[0].dims[:] = dims
    path.write_bytes(proto.SerializeToString())
    assert "'first'" in refusal(path)


def test_sparse_weights_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    proto = small_model()
    proto.graph.sparse_initializer.add().values.name = "sparse"
    path.write_bytes(proto.SerializeToString())
    assert "sparse" in refusal(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_damage_is_refused_or_harmless(tmp_path, position, byte):
    path = tmp_path / "model.onnx"
    content = bytearray(small_model().SerializeToString())
    content[int(position * len(content))] = byte
    path.write_bytes(content)
    try:
        load_model(path)
    except ModelError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_normalizing_keeps_the_function(architecture):
    proto, feeds = ARCHITECTURES[architecture]()
    expected = run(proto, feeds)
    model = ir.from_proto(proto)
    normalize(model)
    found = run(ir.to_proto(model), feeds)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5)


def test_normal_form():
    b = Builder()
    w = b.op("Constant", value=onnx.numpy_helper.from_array(np.ones((8, 4), np.float32)))
    y = b.op("MatMul", "x", w)
    z = b.op("Add", y, b.op("Constant", value=onnx.numpy_helper.from_array(np.ones(4, np.float32))))
    proto = b.model({"x": (FLOAT, ["n", 8])}, [z])
    proto.graph.node.reverse()
    for node in proto.graph.node:
        node.name = "same"
    proto.ir_version = 4
    model = ir.from_proto(proto)
    normalize(model)
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    assert len({node.name for node in model.graph}) == 2
    assert model.ir_version >= 8
    assert next(iter(model.graph)).outputs[0].dtype == ir.DataType.FLOAT
    found = run(ir.to_proto(model), {"x": np.ones((2, 8), np.float32)})
    np.testing.assert_array_equal(found[z], np.full((2, 4), 9, np.float32))


def test_cyclic_graph_is_refused():
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "loop", [value("x", FLOAT, [1])], [value("b", FLOAT, [1])])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    with pytest.raises(ModelError, match="loop: the graph is not valid"):
        normalize(model)


def test_errors_after_loading_name_the_file(tmp_path):
    b = Builder(opset=11)
    path = tmp_path / "model.onnx"
    path.write_bytes(b.model({"x": (FLOAT, [2, 2])}, [b.op("Foo", "x")]).SerializeToString())
    with pytest.raises(ModelError, match=f"^{path}: cannot be converted from opset 11 to 18"):
        raise_opset(load_model(path))


def versioned_model(opset: int) -> onnx.ModelProto:
    """A model of the operators whose form changed between opsets 11 and 18."""
    b = Builder(opset)
    axes_are_inputs = opset >= 13
    x = b.op("Add", b.op("MatMul", "x", b.weight(8, 16)), b.weight(16))
    x = b.op("Softmax", x, axis=2)
    for operator in ("Unsqueeze", "Squeeze"):
        x = b.op(operator, x, b.ints(1)) if axes_are_inputs else b.op(operator, x, axes=[1])
    total = b.op("ReduceSum", x, b.ints(1)) if axes_are_inputs else b.op("ReduceSum", x, axes=[1])
    x = b.op("Add", b.op("Sub", x, b.op("ReduceMean", x, axes=[-1])), total)
    x = b.op("Clip", x, b.scalar(-0.1), b.scalar(0.5))
    x = b.op("Pad", x, b.ints(0, 0, 0, 0, 0, 2))
    x = b.op("Slice", x, b.ints(1), b.ints(17), b.ints(2))
    x = b.op("Conv", b.op("Transpose", x, perm=[0, 2, 1]), b.weight(16, 16, 1))
    x = b.op("Reshape", x, b.ints(-1, 16))
    x = b.op("Gemm", x, b.weight(16, 16), b.weight(16), transB=1)
    left, right = b.op("Split", x, outputs=2, axis=1)
    x = b.op("Gelu", b.op("Mul", left, right), domain="com.microsoft")
    b.domains["com.microsoft"] = 1
    inner = Builder(opset)
    y = inner.op("Unsqueeze", x, "zero") if axes_are_inputs else inner.op("Unsqueeze", x, axes=[0])
    inner.op("Softmax", y, axis=2)
    info = onnx.ValueInfoProto(name=inner.nodes[-1].output[0])
    for index, node in enumerate(inner.nodes):  # names of their own
        for names in (node.input, node.output):
            names[:] = [name if name in (x, "zero") else f"inner_{name}" for name in names]
        node.name = f"inner{index}"
    info.name = f"inner_{info.name}"
    b.constant(np.array([0], np.int64), "zero")
    body = helper.make_graph(inner.nodes, "body", [], [info])
    x = b.op(
        "If",
        b.op("Greater", b.op("ReduceMax", x, keepdims=0), b.scalar(-9)),
        then_branch=body,
        else_branch=body,
    )
    return b.model({"x": (FLOAT, ["b", "s", 8])}, [x])


@pytest.mark.parametrize("opset", range(11, 18))
def test_raising_the_opset_keeps_the_function(opset):
    proto = versioned_model(opset)
    proto.ir_version = 6
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 16, 8)).astype(np.float32)}
    expected = run(proto, feeds)
    model = ir.from_proto(proto)
    normalize(model)
    sites = len(find_sites(model))
    raise_opset(model)
    assert model.opset_imports[""] == 18
    assert len(find_sites(model)) == sites == 3
    assert [value.name for value in model.graph.inputs] == ["x"]
    found = run(ir.to_proto(model), feeds)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-6)


def test_a_recent_opset_is_left_alone():
    b = Builder(opset=21)
    model = ir.from_proto(b.model({"x": (FLOAT, ["n", 8])}, [b.linear("x", 8, 8)]))
    graph = model.graph
    raise_opset(model)
    assert model.graph is graph
    assert model.opset_imports[""] == 21


@pytest.mark.parametrize(
    ("operator", "inputs", "message"),
    [
        ("Scatter", ["x", "ids", "x"], "opset 18 has no operator Scatter"),
        ("Foo", ["x"], "has no operator Foo"),
    ],
)
def test_operators_that_cannot_be_converted(operator, inputs, message):
    b = Builder(opset=11)
    y = b.op("MatMul", b.op(operator, *inputs), b.weight(32, 32))
    model = ir.from_proto(b.model({"x": (FLOAT, [2, 32]), "ids": IDS}, [y]))
    with pytest.raises(ModelError, match=message):
        raise_opset(model)


def test_saved_model_is_the_model(tmp_path):
    proto, feeds = bert()
    expected = run(proto, feeds)
    model = ir.from_proto(proto)
    before = model.graph.initializers.copy()
    tensors = [value.const_value for value in before.values()]
    save_model(model, tmp_path)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors
    (data,) = tmp_path.glob("*.data")
    digest = hashlib.sha256(data.read_bytes()).hexdigest()[:12]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", f"model.onnx.{digest}.data"]
    found = run(onnx.load(tmp_path / "model.onnx"), feeds)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    load_model(tmp_path / "model.onnx")


def test_saving_is_deterministic_and_aligned(tmp_path):
    b = Builder()
    x = b.op("MatMul", "x", b.weight(257, 1031))  # 1060 KB, an odd size
    x = b.op("MatMul", x, b.weight(1031, 257))
    x = b.op("Add", b.op("MatMul", x, b.weight(257, 3)), b.constant(np.ones(3, np.float32), "small"))
    proto = b.model({"x": (FLOAT, ["n", 257])}, [x])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_model(ir.from_proto(proto), tmp_path / name, "m.onnx")
    files = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert len(files) == 2
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    tensors = {
        value.name: value.const_value for value in load_model(tmp_path / "one/m.onnx").graph.initializers.values()
    }
    assert not isinstance(tensors.pop("small"), ir.ExternalTensor)
    assert len(tensors) == 3
    for tensor in tensors.values():
        assert tensor.offset % (4096 if tensor.nbytes >= 1 << 20 else 64) == 0


def test_saving_loaded_external_data(external, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    save_model(load_model(external), out)
    again = onnx.load(out / "model.onnx")
    for found, expected in zip(again.graph.initializer, onnx.load(external).graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), onnx.numpy_helper.to_array(expected))


def test_small_models_have_no_data_file(tmp_path):
    save_model(ir.from_proto(small_model()), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_missing_output_folder(tmp_path):
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(ir.from_proto(small_model()), tmp_path / "nowhere")


def test_full_disk(tmp_path):
    model = ir.from_proto(bert()[0])
    tensors = [value.const_value for value in model.graph.initializers.values()]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, hard))  # as if the disk had 2 KiB left
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            save_model(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert [value.const_value for value in model.graph.initializers.values()] == tensors
