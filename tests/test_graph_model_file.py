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
from qxcompiler.graph import (
    check_unchanged,
    find_sites,
    load_model,
    model_files,
    normalize,
    raise_opset,
    save_model,
)

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


def test_external_data_is_read_when_asked_for(external):
    model = load_model(external)
    tensors = [value.const_value for value in model.graph.initializers.values()]
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
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


@pytest.mark.parametrize("part", ["node", "output"])
def test_graph_that_computes_nothing(tmp_path, part):
    path = tmp_path / "model.onnx"
    proto = small_model()
    proto.graph.ClearField(part)
    path.write_bytes(proto.SerializeToString())
    assert f"graph has no {part}" in refusal(path)


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


@pytest.mark.parametrize(
    "location", ["../weights.bin", "a/../../weights.bin", "", "{folder}/weights.bin", "a\0b", "a/../weights.bin"]
)
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
    os.mkfifo(data)
    assert "not a plain file" in refusal(external)


def test_hard_links_are_files_like_any_other(external):
    os.link(external.parent / "weights.bin", external.parent.parent / "copy")
    load_model(external)


def test_links_out_of_the_folder_to_where_the_model_itself_lies(external):
    """The cache of Hugging Face: everything a link to a file that is called by its hash."""
    cache = external.parent.parent / "cache"
    snapshot = cache / "snapshots" / "a1"
    for folder in (cache / "blobs", snapshot / "onnx"):
        folder.mkdir(parents=True)
    for index, name in enumerate(("model.onnx", "weights.bin")):
        (external.parent / name).rename(cache / "blobs" / str(index))
        (snapshot / "onnx" / name).symlink_to(f"../../../blobs/{index}")
    model = load_model(snapshot / "onnx" / "model.onnx")
    assert model.graph.initializers["first"].const_value.numpy().shape == (8, 16)
    assert len(model_files(snapshot / "onnx" / "model.onnx", model)) == 2
    # but not to another place, nor for a model that is a file
    data = snapshot / "onnx" / "weights.bin"
    data.unlink()
    (cache / "other").write_bytes((cache / "blobs" / "1").read_bytes())
    data.symlink_to("../../../other")
    assert "leads out of its folder" in refusal(snapshot / "onnx" / "model.onnx")
    data.unlink()
    data.symlink_to("../../../blobs/1")
    (snapshot / "onnx" / "model.onnx").unlink()
    (cache / "blobs" / "0").rename(snapshot / "onnx" / "model.onnx")
    assert "leads out of its folder" in refusal(snapshot / "onnx" / "model.onnx")


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


def sparse_tensor(dims: list[int], indices: np.ndarray, values: np.ndarray) -> onnx.SparseTensorProto:
    numbers = onnx.numpy_helper.from_array(values, "sparse")
    return helper.make_sparse_tensor(numbers, onnx.numpy_helper.from_array(indices), dims)


@pytest.mark.parametrize("where", ["initializer", "Constant"])
@pytest.mark.parametrize("linear", [True, False])
def test_sparse_weights_are_read_as_dense_ones(tmp_path, where, linear):
    dense = np.zeros((8, 4), np.float32)
    dense[[1, 5, 7], [2, 0, 3]] = 3, 4, 5
    places = np.flatnonzero(dense) if linear else np.argwhere(dense)
    sparse = sparse_tensor([8, 4], places.astype(np.int64), dense[dense != 0])
    b = Builder()
    if where == "Constant":
        y = b.op("MatMul", "x", b.op("Constant", sparse_value=sparse))
    else:
        y = b.op("MatMul", "x", "sparse")
    proto = b.model({"x": (FLOAT, ["n", 8])}, [y])
    if where == "initializer":
        proto.graph.sparse_initializer.append(sparse)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = load_model(path)
    normalize(model)
    (site,) = find_sites(model)
    np.testing.assert_array_equal(site.weight.matrix().numpy(), dense.T)
    assert len(proto.graph.sparse_initializer) == (where == "initializer")


@pytest.mark.parametrize(
    ("dims", "indices", "said"),
    [
        ([8, 4], [1, 32], "outside its shape"),
        ([8, 4], [1, -1], "outside its shape"),
        ([8, 4], [[1, 1], [8, 0]], "outside its shape"),
        ([8, 4], [1, 2, 3], "do not fit its values"),
        ([1 << 20, 1 << 20], [1, 2], "more than 1 GiB"),
        ([8, -4], [1, 2], "no shape or type"),
    ],
)
def test_sparse_weights_that_do_not_fit(tmp_path, dims, indices, said):
    path = tmp_path / "model.onnx"
    proto = small_model()
    proto.graph.sparse_initializer.append(sparse_tensor(dims, np.array(indices), np.ones(2, np.float32)))
    path.write_bytes(proto.SerializeToString())
    assert said in refusal(path)


FIELDS = [
    (TensorProto.FLOAT, "float_data", 6),
    (TensorProto.DOUBLE, "double_data", 6),
    (TensorProto.COMPLEX64, "float_data", 12),
    (TensorProto.INT64, "int64_data", 6),
    (TensorProto.UINT32, "uint64_data", 6),
    (TensorProto.UINT64, "uint64_data", 6),
    (TensorProto.FLOAT16, "int32_data", 6),
    (TensorProto.BFLOAT16, "int32_data", 6),
    (TensorProto.BOOL, "int32_data", 6),
    (TensorProto.INT8, "int32_data", 6),
    (TensorProto.FLOAT8E4M3FN, "int32_data", 6),
    (TensorProto.INT4, "int32_data", 3),
    (TensorProto.UINT4, "int32_data", 3),
    (TensorProto.STRING, "string_data", 6),
]


@pytest.mark.parametrize(("dtype", "field", "count"), FIELDS)
def test_typed_data_must_fit_the_shape(tmp_path, dtype, field, count):
    path = tmp_path / "model.onnx"
    for entries in (count, count - 1, count + 1, 0):
        proto = small_model()
        tensor = proto.graph.initializer.add(name="typed", data_type=dtype, dims=[2, 3])
        getattr(tensor, field).extend([b"a" if field == "string_data" else 1] * entries)
        path.write_bytes(proto.SerializeToString())
        if entries == count:
            found = load_model(path).graph.initializers["typed"].const_value.numpy()
            assert found.shape == (2, 3)
        else:
            assert f"needs {count} numbers and has {entries}" in refusal(path)
    tensor.int32_data.append(1)
    tensor.float_data.append(1)
    path.write_bytes(proto.SerializeToString())
    assert "has data in" in refusal(path)


@pytest.mark.parametrize(("dtype", "nbytes"), [(TensorProto.INT4, 3), (TensorProto.FLOAT16, 12), (TensorProto.BOOL, 6)])
def test_raw_data_must_fit_the_shape(tmp_path, dtype, nbytes):
    path = tmp_path / "model.onnx"
    for size in (nbytes - 1, nbytes, nbytes + 1):
        proto = small_model()
        proto.graph.initializer.add(name="raw", data_type=dtype, dims=[2, 3], raw_data=bytes(size))
        path.write_bytes(proto.SerializeToString())
        if size == nbytes:
            load_model(path)
        else:
            assert f"needs {nbytes} bytes and has {size}" in refusal(path)


def broken(edit) -> onnx.ModelProto:
    proto = small_model()
    edit(proto.graph)
    return proto


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda graph: graph.node[0].ClearField("output"), "has no output"),
        (lambda graph: graph.node[0].output.__setitem__(0, ""), "has no output"),
        (lambda graph: graph.node[1].input.__setitem__(0, "nowhere"), "reads 'nowhere', which nothing computes"),
        (lambda graph: graph.node[1].output.__setitem__(0, graph.node[0].output[0]), "redeclared"),
        (lambda graph: setattr(graph.output[0], "name", "nowhere"), "computed by nothing"),
        (lambda graph: setattr(graph.initializer[0], "name", ""), "which nothing computes"),
        (lambda graph: setattr(graph.initializer[1], "name", "first"), "is there twice"),
        (lambda graph: graph.input.append(graph.input[0]), "is there twice"),
        (lambda graph: setattr(graph.initializer[0], "data_type", 99), "no known type"),
        (lambda graph: setattr(graph.initializer[0], "data_type", 0), "no known type"),
        (lambda graph: setattr(graph.initializer[0], "data_type", 8), "needs"),
    ],
)
def test_graphs_that_do_not_hold_together(tmp_path, edit, said, capfd):
    path = tmp_path / "model.onnx"
    path.write_bytes(broken(edit).SerializeToString())
    assert said in refusal(path)
    assert capfd.readouterr().err == ""


def test_a_folder_of_external_data_that_is_not_there(external):
    edit_external(external, "location", "nowhere/weights.bin")
    assert "is missing" in refusal(external)
    edit_external(external, "location", "x" * 300)
    assert "is missing" in refusal(external)


def test_paths_that_cannot_be():
    with pytest.raises(ModelError, match="no such file"):
        load_model("a\0b")
    with pytest.raises(ModelError, match="not a plain file"):
        load_model("/dev/zero")


def test_data_that_shrinks_while_it_is_read(external, tmp_path):
    model = load_model(external)
    check_unchanged(model)
    data = external.parent / "weights.bin"
    os.truncate(data, 100)
    with pytest.raises(ModelError, match="was changed while it was read"):
        model.graph.initializers["second"].const_value.numpy()
    with pytest.raises(ModelError, match="was changed while it was read"):
        model.graph.initializers["second"].const_value.tofile((tmp_path / "x").open("wb"))
    with pytest.raises(ModelError, match="was changed while it was read"):
        check_unchanged(model)
    data.unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        model.graph.initializers["first"].const_value.tobytes()


def test_a_file_that_is_written_anew_is_another(external):
    model = load_model(external)
    content = external.read_bytes()
    external.unlink()
    external.write_bytes(content)
    os.utime(external, ns=(1, 1))
    with pytest.raises(ModelError, match="was changed while it was read"):
        check_unchanged(model)


def test_four_bit_external_data(tmp_path):
    proto = small_model()
    tensor = proto.graph.initializer.add(name="nibbles", data_type=TensorProto.INT4, dims=[3], data_location=1)
    for key, value in (("location", "w"), ("offset", "1"), ("length", "2")):
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    (tmp_path / "w").write_bytes(bytes([0, 0x21, 0x0F]))
    found = load_model(tmp_path / "model.onnx").graph.initializers["nibbles"].const_value.numpy()
    assert found.astype(int).tolist() == [1, 2, -1]


def test_models_in_memory(external):
    proto = small_model()
    before = proto.SerializeToString()
    model = load_model(proto)
    normalize(model)
    check_unchanged(model)
    assert len(find_sites(model)) == 2
    assert proto.SerializeToString() == before
    with pytest.raises(ModelError, match="the model in memory: 'first' has its data in a file"):
        load_model(onnx.load(external, load_external_data=False))


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


def test_sizes_below_zero_are_unknown(tmp_path):
    """As onnxruntime reads them."""
    proto = small_model()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    onnx.save(proto, tmp_path / "model.onnx")
    (value,) = load_model(tmp_path / "model.onnx").graph.inputs
    assert value.shape is not None
    assert isinstance(value.shape[0], ir.SymbolicDim)


def test_attributes_of_a_wrong_type_or_without_a_value(tmp_path):
    for attribute, problem in (
        (helper.make_attribute("transB", 1.0), "'transB' of node 'gemm' .Gemm. has a wrong type"),
        (
            onnx.AttributeProto(name="beta", ref_attr_name="b", type=onnx.AttributeProto.FLOAT),
            "refers to one of a func",
        ),
        (onnx.AttributeProto(name="other", type=onnx.AttributeProto.TENSOR), "'other' has no value"),
        (onnx.AttributeProto(name="other", type=onnx.AttributeProto.GRAPH), "'other' has no value"),
    ):
        b = Builder()
        y = b.op("Gemm", "x", b.weight(4, 4), name="gemm")
        proto = b.model({"x": (FLOAT, [2, 4])}, [y])
        proto.graph.node[0].attribute.append(attribute)
        onnx.save(proto, tmp_path / "model.onnx")
        with pytest.raises(ModelError, match=problem):
            load_model(tmp_path / "model.onnx")


def test_too_few_inputs(tmp_path):
    proto = small_model()
    del proto.graph.node[0].input[1:]
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(ModelError, match="has 1 of at least 2 inputs"):
        load_model(tmp_path / "model.onnx")


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
