"""The operators of the domain `qxc`: their names, inputs, outputs, attributes and ONNX function bodies.

An operator is a line in `OPERATORS`; one that comes for every type of packed weight, a line in `_KINDS`. The kernels in
C++ are registered under the same names, each where it is written, in `onnxruntime/`. A package adds its own by an entry
point of the group `qxcompiler.operators`: an `Operator`, whose kernel is in a library of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from qxcompiler.extensions import find, named
from qxcompiler.formats import CODEBOOK_BITS, INTEGER_BITS, SCALE_TYPES, SMALL_FLOATS, Format
from qxcompiler.runtime_ops.attention import ATTENTION_ATTRIBUTES, ATTENTION_TYPES
from qxcompiler.runtime_ops.gather_packed import gather_packed
from qxcompiler.runtime_ops.hadamard import hadamard
from qxcompiler.runtime_ops.matmul_packed import matmul_packed
from qxcompiler.runtime_ops.norm import NORM_ATTRIBUTES, NORM_TYPES
from qxcompiler.runtime_ops.swiglu_packed import swiglu_packed
from qxcompiler.runtime_ops.unpack import ATTRIBUTES, WeightType

__all__ = [
    "DOMAIN",
    "HADAMARD",
    "MINIMUM_OPSET",
    "OPERATORS",
    "SCHEME",
    "VERSION",
    "Operator",
    "function_for",
    "operator_name",
    "operator_of",
]

DOMAIN = "qxc"
VERSION = 1
MINIMUM_OPSET = 18  # the first with BitwiseAnd, and axes of reductions as an input


@dataclass(frozen=True)
class Operator:
    """What a model has to know of an operator.

    Attributes:
        name: in the domain `qxc`.
        inputs: their names.
        outputs: their names.
        attributes: names and types.
        write_body: the function body, in Python: takes onnxscript's `OpBuilder`, whose methods are ONNX's operators,
            and the inputs; returns the output, or all of them.
        kind: `MatMul`, `SwiGlu` or `Gather`, of one that reads a packed weight.
        weight: the type of that weight.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    write_body: Callable[..., ir.Value | Sequence[ir.Value]]
    kind: str | None = None
    weight: WeightType | None = None


@dataclass(frozen=True)
class _Kind:
    """What an operator does with a packed weight, of whatever type.

    Attributes:
        before: inputs before those of the weight.
        after: inputs after them.
        attributes: names and types.
        write_body: as an operator's, with the type of the weight after the first argument, and inputs by name.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    attributes: Mapping[str, ir.AttributeType]
    write_body: Callable[..., ir.Value]

    def operator(self, name: str, weight: WeightType) -> Operator:
        inputs = (*self.before, *weight.inputs, *self.after)

        def write_body(op: OpBuilder, *values: ir.Value) -> ir.Value:
            return self.write_body(op, weight, **dict(zip(inputs, values, strict=True)))

        return Operator(f"{name}{weight.suffix}", inputs, ("Y",), self.attributes, write_body, name, weight)


_LINEAR_ATTRIBUTES = ATTRIBUTES | {"activation": ir.AttributeType.STRING}
_KINDS = {
    "MatMul": _Kind(("A",), ("bias",), _LINEAR_ATTRIBUTES, matmul_packed),
    "SwiGlu": _Kind(("A",), ("bias",), _LINEAR_ATTRIBUTES, swiglu_packed),
    "Gather": _Kind(("indices",), (), ATTRIBUTES, gather_packed),
}
_CODES = {
    "Int": INTEGER_BITS,
    "UInt": INTEGER_BITS,
    "Lut": CODEBOOK_BITS,
    **{element.code_type: (element.bits,) for element in SMALL_FLOATS},
}
_WEIGHT_TYPES = [
    WeightType(code_type, bits, scale_type)
    for code_type, widths in _CODES.items()
    for bits in widths
    for scale_type in SCALE_TYPES.values()
]
HADAMARD = "Hadamard"
SCHEME = "qxc.scheme"  # the metadata of a packed operator's node that says what its weight is
OPERATORS: dict[str, Operator] = {
    operator.name: operator
    for operator in (
        *(kind.operator(name, weight) for name, kind in _KINDS.items() for weight in _WEIGHT_TYPES),
        Operator(HADAMARD, ("X",), ("Y",), {"block_size": ir.AttributeType.INT}, hadamard),
        *(
            Operator(each.name, each.inputs, each.outputs, ATTENTION_ATTRIBUTES, each.write_body)
            for each in ATTENTION_TYPES
        ),
        *(Operator(each.name, each.inputs, each.outputs, NORM_ATTRIBUTES, each.write_body) for each in NORM_TYPES),
    )
}


def operator_name(weight: Format | WeightType, kind: str) -> str:
    """The operator that reads a weight: `MatMulUInt3`.

    Args:
        weight: its type, or its format.
        kind: `MatMul`, `SwiGlu` or `Gather`.
    """
    suffix = weight.suffix if isinstance(weight, WeightType) else weight.operator_suffix
    return OPERATORS[f"{kind}{suffix}"].name


def operator_of(node: ir.Node) -> Operator | None:
    """What a node calls; None where that is no operator of ours, or of a package that adds some."""
    if node.domain != DOMAIN:
        return None
    return find("operators", node.op_type, OPERATORS)


def function_for(name: str, opset: int) -> ir.Function:
    """The function body of an operator, to be put in a model beside the nodes that call it.

    Args:
        name: one of `OPERATORS`, or one that a package adds.
        opset: the default domain's version in the model, at least `MINIMUM_OPSET`.

    Raises:
        UsageError: there is no such operator.
        ValueError: the opset is older than the body needs.
    """
    operator = named("operators", name, OPERATORS)
    if opset < MINIMUM_OPSET:
        raise ValueError(f"{DOMAIN}::{name} needs opset {MINIMUM_OPSET}, not {opset}")
    function = build_function(
        operator.write_body,
        [ir.Value(name=each) for each in operator.inputs],
        domain=DOMAIN,
        name=name,
        attributes=[ir.Attr(each, kind, None) for each, kind in operator.attributes.items()],
        opset_imports={"": opset},
    )
    _tidy(function)
    for output, output_name in zip(function.outputs, operator.outputs, strict=True):
        output.name = output_name
    return function


def _tidy(function: ir.Function) -> None:
    """Leave out what onnxscript notes besides the nodes, and give short names: a fifth of the bytes."""
    values = [value for node in function for value in node.outputs]
    for index, node in enumerate(function):
        node.name = f"node_{index}"
        node.metadata_props.clear()
    for index, value in enumerate(values):
        value.name = f"val_{index}"
    for value in (*function.inputs, *values):
        value.type = value.shape = None
