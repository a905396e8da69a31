"""Put the bodies of model-local functions in the place of their calls."""

from __future__ import annotations

__all__ = ["inline_functions"]

import graphlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest

import onnx.defs
import onnx_ir as ir

from qxcompiler.graph.nodes import bodies

# Functions that call each other twice make a million nodes of twenty.
MAX_NODES = 1 << 18
MAX_DEPTH = 100

Values = dict[ir.Value, ir.Value | None]
Attributes = Mapping[str, ir.Attr]


def inline_functions(model: ir.Model, criterion: Callable[[ir.Function], bool]) -> None:
    """Inline every call of a function that meets the criterion, in the main graph and in bodies, in place.

    The time it takes is proportional to the nodes it makes. Names of what it makes are those in the functions, not yet
    unique. Functions that are not inlined are left as they are, and so is what they call.

    Raises:
        ValueError: functions call each other in a circle, make more nodes than is sane, were written for another
            version of an operator than the model's, or do not fit their calls.
    """
    functions = {key: function for key, function in model.functions.items() if criterion(function)}
    if not functions:
        return
    _check_size(model, functions)
    _Inliner(model, functions).inline(model.graph)
    waiting = [key for key in model.functions if key not in functions]
    called = set(waiting)
    while waiting:
        inner = {node.op_identifier() for node in model.functions[waiting.pop()].all_nodes()}
        waiting.extend((inner & functions.keys()) - called)
        called |= inner
    for key in functions.keys() - called:
        del model.functions[key]


def _check_size(model: ir.Model, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> None:
    """Count the nodes that inlining makes, before it makes them."""

    def calls(nodes: Iterable[ir.Node]) -> Counter[ir.OperatorIdentifier]:
        return Counter(key for node in nodes if (key := node.op_identifier()) in functions)

    called = {key: calls(function.all_nodes()) for key, function in functions.items()}
    try:
        order = list(graphlib.TopologicalSorter(called).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(_name(key) for key in error.args[1])
        raise ValueError(f"its functions call each other in a circle: {circle}") from None
    size, depth = dict[ir.OperatorIdentifier, int](), dict[ir.OperatorIdentifier, int]()
    for key in order:
        own = sum(1 for _ in functions[key].all_nodes())
        size[key] = own + sum(count * size[inner] for inner, count in called[key].items())
        depth[key] = 1 + max((depth[inner] for inner in called[key]), default=0)
    main = calls(model.graph.all_nodes())
    total = sum(count * size[key] for key, count in main.items())
    if total > MAX_NODES or max((depth[key] for key in main), default=0) > MAX_DEPTH:
        raise ValueError(f"its functions would become {total} nodes, more than {MAX_NODES}, or nest too deep")


class _Inliner:
    def __init__(self, model: ir.Model, functions: Mapping[ir.OperatorIdentifier, ir.Function]) -> None:
        self._functions = functions
        self._opsets = model.opset_imports
        self._checked: set[ir.OperatorIdentifier] = set()

    def inline(self, graph: ir.Graph) -> None:
        """Replace the calls in a graph, and in the bodies of its nodes."""
        for node in list(graph):
            for body in bodies(node):
                self.inline(body)
            if node.op_identifier() in self._functions:
                made: list[ir.Node] = []
                results = self._expand(node, node.inputs, node.attributes, made)
                given = set[ir.Value]()
                for index, output in enumerate(node.outputs):
                    if output.is_graph_output():
                        results[index] = _own(results[index], made, given)
                graph.insert_before(node, made)
                for output, result in zip(node.outputs, results, strict=False):
                    _replace(output, result)
                graph.remove(node, safe=True)

    def _expand(
        self, call: ir.Node, inputs: Sequence[ir.Value | None], attributes: Attributes, made: list[ir.Node]
    ) -> list[ir.Value | None]:
        """Append to `made` what a call computes, and return its results."""
        key = call.op_identifier()
        function = self._functions[key]
        self._check_opsets(key, function)
        if len(inputs) > len(function.inputs) or len(call.outputs) > len(function.outputs):
            raise ValueError(f"a call of function {_name(key)} has more inputs or outputs than the function")
        values: Values = dict(zip_longest(function.inputs, inputs))
        defaults = {name: attribute for name, attribute in function.attributes.items() if attribute.value is not None}
        self._copy(function, values, {**defaults, **attributes}, made)
        return [values.get(output) for output in function.outputs]

    def _copy(self, nodes: Iterable[ir.Node], values: Values, attributes: Attributes, made: list[ir.Node]) -> None:
        """Append copies of nodes to `made`, and what their outputs have become to `values`."""
        for node in nodes:
            inputs = [None if value is None else values.get(value, value) for value in node.inputs]
            given = {
                name: resolved
                for name, attribute in node.attributes.items()
                if (resolved := self._resolve(name, attribute, values, attributes)) is not None
            }
            if node.op_identifier() in self._functions:
                results = self._expand(node, inputs, given, made)
            else:
                copy = ir.Node(
                    node.domain,
                    node.op_type,
                    inputs,
                    list(given.values()),
                    overload=node.overload,
                    outputs=[_copied(value) for value in node.outputs],
                    name=node.name,
                    metadata_props=dict(node.metadata_props),
                )
                made.append(copy)
                results = list(copy.outputs)
            values.update(zip(node.outputs, results, strict=False))

    def _resolve(self, name: str, attribute: ir.Attr, values: Values, attributes: Attributes) -> ir.Attr | None:
        """An attribute as it is in the place of the call; None if the call does not give it."""
        if attribute.is_ref():
            given = attributes.get(attribute.ref_attr_name or "")
            if given is None:
                return None
            if given.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                raise ValueError("a function takes a graph as an attribute, which is not supported")
            return ir.Attr(name, given.type, given.value)
        if attribute.type == ir.AttributeType.GRAPH:
            return ir.AttrGraph(name, self._copy_body(attribute.as_graph(), values, attributes))
        if attribute.type == ir.AttributeType.GRAPHS:
            return ir.AttrGraphs(name, [self._copy_body(body, values, attributes) for body in attribute.as_graphs()])
        return attribute

    def _copy_body(self, body: ir.Graph, values: Values, attributes: Attributes) -> ir.Graph:
        for value in (*body.inputs, *body.initializers.values()):
            values[value] = _copied(value)
        nodes: list[ir.Node] = []
        self._copy(body, values, attributes, nodes)
        inputs = [copy for value in body.inputs if (copy := values[value]) is not None]
        initializers = [copy for value in body.initializers.values() if (copy := values[value]) is not None]
        given = set[ir.Value]()
        outputs = [_own(values.get(value, value), nodes, given) for value in body.outputs]
        if any(value is None for value in outputs):
            raise ValueError("a function's body gives back an input that its call leaves out")
        return ir.Graph(inputs, outputs, nodes=nodes, initializers=initializers, name=body.name)  # type: ignore[arg-type]

    def _check_opsets(self, key: ir.OperatorIdentifier, function: ir.Function) -> None:
        """See that the function's operators mean the same in the model's opsets."""
        if key in self._checked:
            return
        self._checked.add(key)
        for domain, version in function.opset_imports.items():
            models = self._opsets.setdefault(domain, version)
            if models == version:
                continue
            for node in function.all_nodes():
                if node.domain == domain and not _same_operator(node.op_type, domain, version, models):
                    raise ValueError(
                        f"function {_name(key)} uses {node.op_type} of opset {version}, and the model opset {models}"
                    )


def _same_operator(name: str, domain: str, one: int, other: int) -> bool:
    try:
        versions = {onnx.defs.get_schema(name, version, domain).since_version for version in (one, other)}
    except onnx.defs.SchemaError:
        return False
    return len(versions) == 1


def _copied(value: ir.Value) -> ir.Value:
    shape = None if value.shape is None else value.shape.copy()
    return ir.Value(name=value.name, type=value.type, shape=shape, const_value=value.const_value)


def _own(value: ir.Value | None, made: list[ir.Node], given: set[ir.Value]) -> ir.Value | None:
    """A value that a graph can give out: made in it, and not given out already; an `Identity` of any other."""
    if value is None:
        return None
    if value.producer() not in made or value in given:
        made.append(ir.node("Identity", [value]))
        value = made[-1].outputs[0]
    given.add(value)
    return value


def _replace(old: ir.Value, new: ir.Value | None) -> None:
    if new is None:
        if old.is_graph_output():
            raise ValueError("a function gives out an input that its call leaves out")
        for use in list(old.uses()):
            use.node.replace_input_with(use.idx, None)
        return
    new.type, new.shape = new.type or old.type, new.shape or old.shape
    if old.is_graph_output():
        new.name = old.name
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)


def _name(key: ir.OperatorIdentifier) -> str:
    return "::".join(part for part in key if part)
