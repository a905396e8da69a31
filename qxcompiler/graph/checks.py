"""What must hold of a model file before anything is made of it: nothing here reads or allocates by its claims."""

from __future__ import annotations

__all__ = ["check_graphs", "check_proto"]

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np
import onnx
import onnx.defs
import onnx_ir as ir
from onnx import AttributeProto, TensorProto

# Where a tensor's values are if they are not in `raw_data`; a list of int32 holds most of the small types.
_FIELDS = {
    TensorProto.FLOAT: "float_data",
    TensorProto.COMPLEX64: "float_data",
    TensorProto.DOUBLE: "double_data",
    TensorProto.COMPLEX128: "double_data",
    TensorProto.INT64: "int64_data",
    TensorProto.UINT64: "uint64_data",
    TensorProto.UINT32: "uint64_data",
    TensorProto.STRING: "string_data",
}
_HELD = {AttributeProto.TENSOR: "t", AttributeProto.GRAPH: "g", AttributeProto.SPARSE_TENSOR: "sparse_tensor"}
_ALL_FIELDS = ("float_data", "double_data", "int32_data", "int64_data", "uint64_data", "string_data")
LARGEST_DENSE = 1 << 30  # bytes that a sparse tensor may become


def check_proto(proto: onnx.ModelProto) -> None:
    """Check every tensor of a model, and write its sparse ones as dense ones, in place.

    Raises:
        ValueError: a tensor's data does not fit its shape and type, or a name is given twice.
    """
    outside = _Scope({opset.domain: opset.version for opset in proto.opset_import}, in_function=False)
    graphs = [(proto.graph, outside)]
    nodes: list[tuple[onnx.NodeProto, _Scope]] = []
    for function in proto.functions:
        imports = {opset.domain: opset.version for opset in function.opset_import}
        inside = _Scope({**outside.imports, **imports}, in_function=True)
        nodes.extend((node, inside) for node in function.node)
    while graphs or nodes:
        if graphs:
            graph, scope = graphs.pop()
            graph.initializer.extend(_dense(sparse) for sparse in graph.sparse_initializer)
            del graph.sparse_initializer[:]
            _check_unique("input", [value.name for value in graph.input])
            _check_unique("initializer", [tensor.name for tensor in graph.initializer])
            for tensor in graph.initializer:
                _check_tensor(tensor)
            for value in (*graph.input, *graph.output, *graph.value_info):
                _forget_negative_sizes(value.type)
            nodes.extend((node, scope) for node in graph.node)
        while nodes:
            node, scope = nodes.pop()
            _check_node(node, scope)
            for attribute in node.attribute:
                bodies = [attribute.g] if attribute.HasField("g") else attribute.graphs
                graphs.extend((body, scope) for body in bodies)


@dataclass(frozen=True)
class _Scope:
    """What the nodes of a graph or function follow: the versions of operators by domain."""

    imports: Mapping[str, int]
    in_function: bool

    def schema(self, node: onnx.NodeProto) -> onnx.defs.OpSchema | None:
        """The declaration of a standard operator; of another, the runtime says what is wrong."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        unsaid = 0 if domain else self.imports.get("ai.onnx", 1)  # as the standard says
        version = self.imports.get(domain, unsaid)
        try:
            return onnx.defs.get_schema(node.op_type, version, domain)
        except onnx.defs.SchemaError:
            return None


def _check_node(node: onnx.NodeProto, scope: _Scope) -> None:
    where = f"node '{node.name}' ({node.op_type})"
    if not any(node.output):
        raise ValueError(f"{where} has no output")
    if not all(device.configuration_id for device in getattr(node, "device_configurations", ())):  # since onnx 1.18
        raise ValueError(f"{where} has a device configuration without a name")
    schema = scope.schema(node)
    if schema and len(node.input) < schema.min_input:
        raise ValueError(f"{where} has {len(node.input)} of at least {schema.min_input} inputs")
    types = {name: int(declared.type) for name, declared in schema.attributes.items()} if schema else {}
    for attribute in node.attribute:
        _check_attribute(attribute)
        if attribute.ref_attr_name and not scope.in_function:
            raise ValueError(f"attribute '{attribute.name}' of {where} refers to one of a function, and is in none")
        if attribute.type != types.get(attribute.name, attribute.type):
            raise ValueError(f"attribute '{attribute.name}' of {where} has a wrong type")


def _forget_negative_sizes(declared: onnx.TypeProto) -> None:
    """Let a size below zero, as which some exporters write one that is not fixed, be unknown."""
    if declared.HasField("tensor_type"):
        for dim in declared.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.ClearField("dim_value")


def check_graphs(model: ir.Model) -> None:
    """See that every value that is read is computed or given.

    Raises:
        ValueError: one is not.
    """
    functions = model.functions.values()
    scopes = [model.graph, *model.graph.subgraphs()]
    scopes += [graph for function in functions for graph in (function.graph, *function.graph.subgraphs())]
    known = {
        value
        for graph in scopes
        for value in chain(graph.inputs, graph.initializers.values(), *(node.outputs for node in graph))
    }
    for graph in scopes:
        for node in graph:
            for value in node.inputs:
                if value is not None and value not in known:
                    raise ValueError(
                        f"node '{node.name}' ({node.op_type}) reads '{value.name}', which nothing computes"
                    )
        for value in graph.outputs:
            if value not in known or value.graph is not graph:
                raise ValueError(f"output '{value.name}' of '{graph.name}' is computed by nothing in it")


def _check_unique(kind: str, names: list[str]) -> None:
    seen = set[str]()
    for name in names:
        if name in seen:
            raise ValueError(f"{kind} '{name}' is there twice")
        seen.add(name)


def _check_attribute(attribute: onnx.AttributeProto) -> None:
    if attribute.HasField("sparse_tensor"):
        if attribute.name != "sparse_value":
            raise ValueError(f"attribute '{attribute.name}' is a sparse tensor")
        attribute.name, attribute.type = "value", AttributeProto.TENSOR  # of a `Constant`
        attribute.t.CopyFrom(_dense(attribute.sparse_tensor))
        attribute.ClearField("sparse_tensor")
    if not attribute.name or attribute.type == AttributeProto.UNDEFINED:
        raise ValueError(f"attribute '{attribute.name}' has no name or no type")
    held = _HELD.get(attribute.type)
    if held and not attribute.HasField(held) and not attribute.ref_attr_name:
        raise ValueError(f"attribute '{attribute.name}' has no value")
    for tensor in [attribute.t] if attribute.HasField("t") else attribute.tensors:
        _check_tensor(tensor)


def _check_tensor(tensor: onnx.TensorProto) -> None:
    """Compare the size of a tensor with that of its data, unless that is in a file."""
    name, shape = tensor.name, list(tensor.dims)
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ValueError(f"tensor '{name}' is of no known type ({tensor.data_type})")
    if any(dim < 0 for dim in shape):
        raise ValueError(f"tensor '{name}' has a negative dimension {shape}")
    size = math.prod(shape)
    if tensor.data_location == TensorProto.EXTERNAL:
        if dtype == ir.DataType.STRING:
            raise ValueError(f"tensor '{name}' holds strings in external data")
        return
    if tensor.HasField("raw_data"):
        expected, found = (
            math.ceil(size * dtype.bitwidth / 8) if dtype != ir.DataType.STRING else -1,
            len(tensor.raw_data),
        )
        if found != expected:
            raise ValueError(f"tensor '{name}' {shape} needs {expected} bytes and has {found}")
    field = _FIELDS.get(tensor.data_type, "int32_data")
    for other in _ALL_FIELDS:
        found = len(getattr(tensor, other))
        if found and (other != field or tensor.HasField("raw_data")):
            raise ValueError(f"tensor '{name}' of type {dtype.name} has data in {other}")
    if not tensor.HasField("raw_data"):
        found, expected = len(getattr(tensor, field)), _entries(dtype, size)
        if found != expected:
            raise ValueError(f"tensor '{name}' {shape} needs {expected} numbers and has {found}")


def _entries(dtype: ir.DataType, size: int) -> int:
    """How many entries of its field a tensor takes: complex numbers two each, and small ones share a byte."""
    if dtype in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
        return 2 * size
    return math.ceil(size * dtype.bitwidth / 8) if dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4) else size


def _dense(sparse: onnx.SparseTensorProto) -> onnx.TensorProto:
    """The same tensor with its zeros written."""
    name, shape = sparse.values.name, list(sparse.dims)
    for tensor in (sparse.values, sparse.indices):
        if tensor.data_location == TensorProto.EXTERNAL:
            raise ValueError(f"sparse tensor '{name}' has external data")
        _check_tensor(tensor)
    values = ir.serde.deserialize_tensor(sparse.values)
    if any(dim < 0 for dim in shape) or values.dtype == ir.DataType.STRING or values.dtype.bitwidth % 8:
        raise ValueError(f"sparse tensor '{name}' has no shape or type that can be read")
    size = math.prod(shape)
    if size * values.dtype.bitwidth // 8 > LARGEST_DENSE:
        raise ValueError(f"sparse tensor '{name}' {shape} would take more than 1 GiB")
    numbers, indices = values.numpy(), ir.serde.deserialize_tensor(sparse.indices).numpy()
    if (
        indices.dtype != np.int64
        or numbers.ndim != 1
        or indices.shape not in ((len(numbers),), (len(numbers), len(shape)))
    ):
        raise ValueError(f"the indices of sparse tensor '{name}' do not fit its values")
    if indices.ndim == 2:
        if bool((indices < 0).any()) or bool((indices >= np.array(shape, np.int64)).any()):
            raise ValueError(f"sparse tensor '{name}' has an index outside its shape {shape}")
        indices = np.ravel_multi_index(tuple(indices.T), tuple(shape)) if len(numbers) else np.zeros(0, np.int64)
    elif bool((indices < 0).any()) or bool((indices >= size).any()):
        raise ValueError(f"sparse tensor '{name}' has an index outside its shape {shape}")
    dense = np.zeros(size, numbers.dtype)
    dense[indices] = numbers
    return TensorProto(name=name, data_type=sparse.values.data_type, dims=shape, raw_data=dense.tobytes())
