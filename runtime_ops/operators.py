"""The operators of the domain `qxc`: their names, inputs, attributes and ONNX function bodies.

A kind of operator is a module that writes its body, and one line in `_KINDS`. The kernels in C++ are registered
under the same names by `onnxruntime/register.cpp`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from qxcompiler.formats import CODEBOOK_BITS, INTEGER_BITS, Format
from qxcompiler.runtime_ops.gather_packed import gather_packed
from qxcompiler.runtime_ops.matmul_packed import matmul_packed
from qxcompiler.runtime_ops.swiglu_packed import swiglu_packed
from qxcompiler.runtime_ops.unpack import ATTRIBUTES, Body

__all__ = ["DOMAIN", "MINIMUM_OPSET", "OPERATORS", "VERSION", "function_for", "operator_name"]

DOMAIN = "qxc"
VERSION = 1
MINIMUM_OPSET = 18  # the first with BitwiseAnd, and axes of reductions as an input


@dataclass(frozen=True)
class Kind:
    """What an operator computes with a packed weight.

    Attributes:
        before: inputs before those of the weight.
        after: inputs after them.
        attributes: names and types.
        write_body: adds the nodes of the function body, and returns its output.
    """

    before: tuple[str, ...]
    after: tuple[str, ...]
    attributes: dict[str, ir.AttributeType]
    write_body: Callable[[Body, str, int, dict[str, ir.Value]], ir.Value]


@dataclass(frozen=True)
class _Operator:
    kind: Kind
    family: str
    bits: int
    weight_inputs: tuple[str, ...]


_LINEAR_ATTRIBUTES = ATTRIBUTES | {"activation": ir.AttributeType.STRING}
_KINDS = {
    "MatMul": Kind(("A",), ("bias",), _LINEAR_ATTRIBUTES, matmul_packed),
    "SwiGlu": Kind(("A",), ("bias",), _LINEAR_ATTRIBUTES, swiglu_packed),
    "Gather": Kind(("indices",), (), ATTRIBUTES, gather_packed),
}
_FAMILIES: dict[str, tuple[tuple[int, ...], tuple[str, ...]]] = {
    "Int": (INTEGER_BITS, ("packed", "scales")),
    "UInt": (INTEGER_BITS, ("packed", "scales", "zero_points")),
    "Lut": (CODEBOOK_BITS, ("packed", "scales", "codebook")),
    "MxFp": ((4,), ("packed", "scales")),
}
_OPERATORS = {
    f"{kind_name}{family}{bits}": _Operator(kind, family, bits, inputs)
    for kind_name, kind in _KINDS.items()
    for family, (widths, inputs) in _FAMILIES.items()
    for bits in widths
}
OPERATORS = list(_OPERATORS)


def operator_name(fmt: Format, kind: str) -> str:
    """The operator that reads a format: `MatMulUInt3`.

    Args:
        fmt: the weight's format.
        kind: `MatMul`, `SwiGlu` or `Gather`.
    """
    name = f"{kind}{fmt.operator_suffix}"
    if name not in _OPERATORS:
        raise KeyError(name)
    return name


def function_for(name: str, opset: int) -> ir.Function:
    """The function body of an operator, to be put in a model beside the nodes that call it.

    Args:
        name: one of `OPERATORS`.
        opset: the default domain's version in the model, at least `MINIMUM_OPSET`.

    Raises:
        ValueError: the opset is older than the body needs.
    """
    if opset < MINIMUM_OPSET:
        raise ValueError(f"{DOMAIN}::{name} needs opset {MINIMUM_OPSET}, not {opset}")
    operator = _OPERATORS[name]
    kind = operator.kind
    inputs = {name: ir.Value(name=name) for name in (*kind.before, *operator.weight_inputs, *kind.after)}
    body = Body()
    output = kind.write_body(body, operator.family, operator.bits, inputs)
    output.name = "Y"
    graph = ir.Graph(list(inputs.values()), [output], nodes=body.nodes, opset_imports={"": opset})
    attributes = [ir.Attr(attribute, kind_of, None) for attribute, kind_of in kind.attributes.items()]
    return ir.Function(DOMAIN, name, graph=graph, attributes=attributes)
