"""Bring a graph into the form that the rest of the compiler works on."""

from __future__ import annotations

__all__ = ["normalize", "overridable_inputs", "raise_opset"]

from collections.abc import Iterator

import onnx
import onnx.defs
import onnx.helper
import onnx.shape_inference
import onnx.version_converter
import onnx_ir as ir
from onnx_ir.passes import common as ir_passes

from qxcompiler.errors import ModelError
from qxcompiler.graph.inlining import inline_functions
from qxcompiler.graph.model_file import EXTERNAL_FROM_BYTES, first_cause
from qxcompiler.graph.names import make_names_unique
from qxcompiler.graph.nodes import is_standard, replace_value
from qxcompiler_runtime.inputs import declared_shape

OPERATOR_DOMAIN = "qxc"
_COERCED = ("Softmax", "LogSoftmax", "Hardmax")


def overridable_inputs(model: ir.Model) -> list[str]:
    """The initializers that a caller may override, before `normalize` makes them constant.

    Up to IR version 3 every initializer had to be an input as well, which said nothing.
    """
    if model.ir_version < 4:
        return []
    return [value.name or "" for value in model.graph.inputs if value.is_initializer()]


def normalize(model: ir.Model) -> None:
    """Bring the graph into the form that the rest of the compiler expects, in place; what it computes stays.

    1. The standard's domain is called "", never "ai.onnx", and its version is known.
    2. Calls of model-local functions are inlined, except our own operators of a compiled model.
    3. Every value and node has a name of its own, in bodies too.
    4. Every tensor is an initializer of the main graph: none in a `Constant` node or in a subgraph.
    5. An initializer is constant: none is also an input that a caller could override.
    6. Nodes are in topological order.
    7. Types and shapes are known where ONNX's shape inference can tell, and the size of a head of what is kept where
       the configuration beside the model's file does.

    Raises:
        ModelError: the functions cannot be inlined, the graph has a cycle, or two versions of the standard are named.
    """
    _name_the_standard(model)
    try:
        inline_functions(model, lambda function: function.domain != OPERATOR_DOMAIN)
        make_names_unique(model)
        _gather_constants(model)
        model.graph.sort()
    except Exception as error:
        raise ModelError(
            _subject(model),
            f"the graph is not valid ({first_cause(error)})",
            "export the model again",
        ) from error
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)
    # IR version 3 lists initializers among the inputs; 8 is the first with model-local functions.
    model.ir_version = max(model.ir_version, 8)
    _size_heads(model)
    _infer_shapes(model)


def _size_heads(model: ir.Model) -> None:
    """Give pasts the shapes that they are declared with, and presents whose last size has the same name."""
    sizes: dict[str | None, int] = {}
    for value in model.graph.inputs:
        if value.shape is not None and isinstance(symbol := value.shape[-1] if len(value.shape) else 0, ir.SymbolicDim):
            shape = declared_shape(value.name or "", value.shape, model.meta.get("path"))
            if isinstance(shape[-1], int):
                value.shape = ir.Shape([*value.shape[:-1], shape[-1]])
                sizes[symbol.value] = shape[-1]
    for value in model.graph.outputs:
        last = value.shape[-1] if value.shape is not None and len(value.shape) else None
        if isinstance(last, ir.SymbolicDim) and last.value in sizes and value.shape is not None:
            value.shape = ir.Shape([*value.shape[:-1], sizes[last.value]])


def _name_the_standard(model: ir.Model) -> None:
    """Nodes read as `ai.onnx` are in the domain "" already; the versions are not."""
    functions = model.functions.values()
    for imports in (model.opset_imports, *(function.opset_imports for function in functions)):
        version = imports.pop("ai.onnx", None)
        if version is not None and imports.setdefault("", version) != version:
            problem = f"names two versions of the standard operators, {imports['']} and {version}"
            raise ModelError(_subject(model), problem, "export the model again")
    if "" not in model.opset_imports and any(node.domain == "" for node in model.graph.all_nodes()):
        model.opset_imports[""] = 1  # as the standard says


def _gather_constants(model: ir.Model) -> None:
    ir_passes.LiftConstantsToInitializersPass(size_limit=0)(model)
    ir_passes.LiftSubgraphInitializersToMainGraphPass()(model)


def _infer_shapes(model: ir.Model) -> None:
    """Note the types and shapes that ONNX's inference finds; names must be unique in bodies too."""
    try:
        inferred = onnx.shape_inference.infer_shapes(_without_large_tensors(model), data_prop=True)
    except Exception:
        return
    found = {
        value.name: value.type for graph in _graphs(inferred.graph) for value in (*graph.value_info, *graph.output)
    }
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name and value.name in found:
                value.type = value.type or ir.serde.deserialize_type_proto_for_type(found[value.name])
                shape = ir.serde.deserialize_type_proto_for_shape(found[value.name])
                value.shape = value.shape if shape is None else shape


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(body)


def _without_large_tensors(model: ir.Model) -> onnx.ModelProto:
    """A copy of a model for what takes a whole one in memory; large tensors have become inputs of it, the last ones."""
    stub = model.clone()
    for name, value in model.graph.initializers.items():
        if value.const_value is not None and value.const_value.nbytes >= EXTERNAL_FROM_BYTES:
            placeholder = stub.graph.initializers.pop(name)
            placeholder.const_value = None
            stub.graph.inputs.append(placeholder)
    return ir.to_proto(stub)


def raise_opset(model: ir.Model, minimum: int = 18) -> None:
    """Convert a normalized model to version `minimum` of the standard operators in place, if it has an older.

    Raises:
        ModelError: an operator of the model cannot be converted.
    """
    opset = model.opset_imports.get("", minimum)
    if opset >= minimum:
        return
    if minimum > onnx.defs.onnx_opset_version():
        problem = f"opset {minimum} is newer than the installed onnx {onnx.__version__} knows"
        raise ModelError(_subject(model), problem, "install a newer onnx, or choose other formats")
    if opset < 9 and any(is_standard(node, ("Scan",)) for node in model.graph.all_nodes()):
        problem = f"uses Scan of opset {opset}, whose batch axis later versions do not have"
        raise ModelError(_subject(model), problem, f"export the model with opset {minimum} or later")
    if opset < 13:
        _flatten_softmax(model)
    remedy = f"export the model with opset {minimum} or later"
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(_without_large_tensors(model), minimum)).graph
    except Exception as error:
        unknown = ", ".join(_missing_operators(model.graph, minimum))
        reason = f"which has no operator {unknown}" if unknown else first_cause(error)
        problem = f"cannot be converted from opset {opset} to {minimum} ({reason})"
        raise ModelError(_subject(model), problem, remedy) from error
    if missing := _missing_operators(converted, minimum):
        problem = f"opset {minimum} has no operator {', '.join(missing)}"
        raise ModelError(_subject(model), problem, remedy)
    inputs = list(converted.inputs)
    converted.inputs.clear()
    converted.inputs.extend(inputs[: len(model.graph.inputs)])
    for value in inputs[len(model.graph.inputs) :]:
        value.const_value = model.graph.initializers[value.name or ""].const_value
        converted.register_initializer(value)
    if opset < 11:
        _sample_as_before(converted)
    model.graph = converted
    model.ir_version = max(
        model.ir_version, onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", minimum)])
    )
    make_names_unique(model)
    _gather_constants(model)
    _infer_shapes(model)


def _flatten_softmax(model: ir.Model) -> None:
    """Write as operators on matrices what up to opset 12 was one: a softmax over all axes from `axis` on.

    The converter does so for some of them, and leaves `Hardmax` as it is.
    """
    for node in list(model.graph.all_nodes()):
        if not is_standard(node, _COERCED) or node.graph is None:
            continue
        x, axis = node.inputs[0], node.attributes.get_int("axis", 1)
        if axis == -1 or (x is not None and x.shape is not None and axis == len(x.shape) - 1):
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
            continue
        shape = ir.node("Shape", [x])
        matrix = ir.node("Flatten", [x], {"axis": axis})
        over_rows = ir.node(node.op_type, matrix.outputs, {"axis": -1}, name=node.name)
        result = ir.node("Reshape", [over_rows.outputs[0], shape.outputs[0]])
        node.graph.insert_before(node, [shape, matrix, over_rows, result])
        replace_value(node.outputs[0], result.outputs[0])
        node.graph.remove(node, safe=True)
    make_names_unique(model)


def _sample_as_before(graph: ir.Graph) -> None:
    """Up to opset 10, `Upsample` and `Resize` took no other coordinates than these, which are no longer the default."""
    for node in graph.all_nodes():
        if is_standard(node, ("Resize",)):
            for name, mode in (("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")):
                node.attributes[name] = ir.AttrString(name, mode)


def _missing_operators(graph: ir.Graph, opset: int) -> list[str]:
    """The standard operators in a graph that a version of the standard does not have, or has dropped."""
    missing = []
    for name in dict.fromkeys(node.op_type for node in graph.all_nodes() if node.domain == ""):
        try:
            deprecated = onnx.defs.get_schema(name, opset, "").deprecated
        except onnx.defs.SchemaError:
            deprecated = True
        if deprecated:
            missing.append(name)
    return missing


def _subject(model: ir.Model) -> object:
    return model.meta.get("path") or model.graph.name or "model"
