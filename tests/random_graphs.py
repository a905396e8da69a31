"""Hypothesis strategies of small graphs made of the operators that carry sites, with bodies and functions.

Every weight holds numbers that eight bits in groups of 16 say exactly, in either orientation, so that a compiled model
has to give the original's outputs but for the order of sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Case", "graphs"]

_DTYPES = {np.float32: TensorProto.FLOAT, np.float16: TensorProto.FLOAT16, np.float64: TensorProto.DOUBLE}
_FUNCTIONS = "local.functions"


@dataclass(repr=False)
class Case:
    """A model and three runs' inputs."""

    model: onnx.ModelProto
    feeds: list[dict[str, np.ndarray]]

    def __repr__(self) -> str:
        return onnx.printer.to_text(self.model)


@dataclass(frozen=True)
class _Value:
    name: str
    shape: tuple[int, ...]


@dataclass
class _Scope:
    """A graph under construction: the main one, a body or a function."""

    outer: _Scope | None = None
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    values: list[_Value] = field(default_factory=list)
    in_function: bool = False

    def visible(self) -> list[_Value]:
        """The values that a node here can read."""
        return self.values + (self.outer.visible() if self.outer and not self.in_function else [])


def _exact(rows: int, columns: int, seed: int) -> np.ndarray:
    """A matrix of codes over 512, with the largest code in every group of 16 of a row and of a column."""
    i, j = np.mgrid[:rows, :columns]
    codes = (seed * (3 * i + 7 * j + 1) * (i + 2)) % 255 - 127
    largest = (i + j) % max(1, min(4, rows, columns)) == 0
    for index, size in ((i, rows), (j, columns)):
        if size % 16 < 4:
            largest |= index >= size - size % 16
    return np.where(largest, 127, codes) / 512


class _Maker:
    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.opset = draw(st.sampled_from((18, 11, 13, 17, 21, 22)), label="opset")
        self.domain = draw(st.sampled_from(("", "", "ai.onnx")), label="domain")
        self.dtype = draw(st.sampled_from((np.float32, np.float32, np.float16, np.float64)), label="dtype")
        self.functions: list[onnx.FunctionProto] = []
        self.matrices: dict[tuple[int, int], tuple[str, _Scope, np.ndarray]] = {}
        self.count = 0
        self.named = draw(st.booleans(), label="nodes have names")

    def fresh(self, scope: _Scope) -> str:
        """A name: unique, but that bodies and functions use the same names as their siblings do."""
        self.count += 1
        depth, above = 0, scope.outer
        while above:
            depth, above = depth + 1, above.outer
        return f"v{self.count}" if scope.outer is None else f"b{depth}_{len(scope.nodes) + len(scope.weights)}"

    def spelled(self, scope: _Scope) -> str:
        """The standard domain; onnxruntime knows its long name in a main graph only."""
        return "" if scope.outer or scope.in_function else self.domain

    def node(
        self,
        scope: _Scope,
        op: str,
        inputs: list[str],
        outputs: int | list[str] = 1,
        domain: str | None = None,
        **attributes,
    ) -> list[str]:
        names = [f"{self.fresh(scope)}_{i}" for i in range(outputs)] if isinstance(outputs, int) else outputs
        scope.nodes.append(
            helper.make_node(
                op, inputs, names, name=f"n{len(scope.nodes)}" if self.named else "",
                domain=self.spelled(scope) if domain is None else domain, **attributes,
            )
        )  # fmt: skip
        return names

    def constant(self, scope: _Scope, array: np.ndarray) -> str:
        """A constant: an initializer where the scope can hold one, else a node."""
        name = f"{self.fresh(scope)}_c"
        tensor = numpy_helper.from_array(array, name)
        if scope.in_function or self.draw(st.sampled_from((False, False, True)), label="as a Constant node"):
            scope.nodes.append(helper.make_node("Constant", [], [name], value=tensor, domain=self.spelled(scope)))
        else:
            scope.weights.append(tensor)
        return name

    def matrix(self, scope: _Scope, rows: int, columns: int) -> tuple[str, bool]:
        """A weight `[rows, columns]`, maybe one that other layers read; and whether it is stored transposed."""
        for shape, turned in (((rows, columns), False), ((columns, rows), True)):
            if shape in self.matrices and self.draw(st.booleans(), label="share a weight"):
                name, home, array = self.matrices[shape]
                above: _Scope | None = scope
                while above and above is not home:
                    above = None if above.in_function else above.outer
                if above is home:
                    return name, turned
        array = _exact(rows, columns, self.draw(st.integers(1, 126), label="weights")).astype(self.dtype)
        name = self.constant(scope, array)
        self.matrices[rows, columns] = name, scope, array
        return name, False

    def operand(self, scope: _Scope, rows: int, columns: int, rank: int = 2) -> str:
        """A value that holds a weight `[1, ..., rows, columns]`, behind `Transpose`, `Cast` or `Identity`."""
        name, turned = self.matrix(scope, rows, columns)
        if turned:
            (name,) = self.node(scope, "Transpose", [name], perm=[1, 0])
        for step in self.draw(st.lists(st.sampled_from(("Identity", "Transpose", "Cast")), max_size=2), label="chain"):
            if step == "Identity":
                (name,) = self.node(scope, "Identity", [name])
            elif step == "Cast":
                (name,) = self.node(scope, "Cast", [name], to=int(TensorProto.DOUBLE))
                (name,) = self.node(scope, "Cast", [name], to=int(_DTYPES[self.dtype]))
            else:
                (name,) = self.node(scope, "Transpose", [name], **({} if rank == 2 else {"perm": [1, 0]}))
                (name,) = self.node(scope, "Transpose", [name], perm=[1, 0])
        return name

    # Every method below adds nodes to a scope that compute a new value from old ones.

    def pick(self, scope: _Scope, minimum_rank: int = 1) -> _Value | None:
        found = [v for v in scope.visible() if len(v.shape) >= minimum_rank]
        return self.draw(st.sampled_from(found), label="input") if found else None

    def add(self, scope: _Scope, name: str, *shape: int) -> _Value:
        value = _Value(name, shape)
        scope.values.append(value)
        return value

    def features(self) -> int:
        return self.draw(st.sampled_from((16, 4, 5, 20, 35)), label="features")

    def matmul(self, scope: _Scope) -> None:
        if x := self.pick(scope):
            n = self.features()
            (y,) = self.node(scope, "MatMul", [x.name, self.operand(scope, x.shape[-1], n)])
            if self.draw(st.booleans(), label="bias"):
                bias = self.constant(scope, (np.arange(n) / 8 - 1).astype(self.dtype))
                (y,) = self.node(scope, "Add", [y, bias] if self.draw(st.booleans()) else [bias, y])
            self.add(scope, y, *x.shape[:-1], n)

    def left_matmul(self, scope: _Scope) -> None:
        if x := self.pick(scope, 2):
            n = self.features()
            (y,) = self.node(scope, "MatMul", [self.operand(scope, n, x.shape[-2]), x.name])
            self.add(scope, y, *x.shape[:-2], n, x.shape[-1])

    def wide_matmul(self, scope: _Scope) -> None:
        """A weight with leading dimensions of 1, which may add to the output's."""
        if x := self.pick(scope, 2):
            n, rank = self.features(), self.draw(st.integers(3, 4))
            array = _exact(x.shape[-1], n, 5).astype(self.dtype)
            weight = self.constant(scope, array.reshape((1,) * (rank - 2) + array.shape))
            (y,) = self.node(scope, "MatMul", [x.name, weight])
            self.add(scope, y, *(1,) * (rank - len(x.shape)), *x.shape[:-1], n)

    def gemm(self, scope: _Scope) -> None:
        x = self.pick(scope)
        if x is None:
            return
        k = x.shape[-1]
        flat = self.constant(scope, np.array([-1, k], np.int64))
        (rows,) = self.node(scope, "Reshape", [x.name, flat])
        m = int(np.prod(x.shape[:-1], dtype=int))
        attributes: dict[str, int | float] = {}
        if self.draw(st.booleans(), label="transA"):
            attributes["transA"] = 1
            (rows,) = self.node(scope, "Transpose", [rows], perm=[1, 0])
        n = self.features()
        if self.draw(st.booleans(), label="transB"):
            attributes["transB"] = 1
        shape = (n, k) if "transB" in attributes else (k, n)
        inputs = [rows, self.operand(scope, *shape)]
        for name in ("alpha", "beta"):
            if (factor := self.draw(st.sampled_from((1.0, 0.5, -2.0)), label=name)) != 1:
                attributes[name] = factor
        bias = self.draw(st.sampled_from((None, (n,), (1, n), (1,), (m, 1), (m, n), "value")), label="bias")
        if bias == "value":
            others = [v for v in scope.visible() if v.shape in ((n,), (m, n), (1, n))]
            inputs += [self.draw(st.sampled_from(others)).name] if others else []
        elif bias is not None:
            inputs.append(self.constant(scope, np.linspace(-1, 1, int(np.prod(bias))).astype(self.dtype).reshape(bias)))
        (y,) = self.node(scope, "Gemm", inputs, **attributes)
        self.add(scope, y, m, n)

    def conv(self, scope: _Scope) -> None:
        x = self.pick(scope, 3)
        if x is None or len(x.shape) > 5 or self.dtype != np.float32:  # onnxruntime has no other on the CPU
            return
        c, spatial = x.shape[1], x.shape[2:]
        n = self.features()
        kind = self.draw(st.sampled_from(("plain", "plain", "strides", "pads", "group", "dilations")), label="conv")
        attributes: dict[str, int | list[int]] = {}
        size = spatial
        if self.draw(st.booleans(), label="kernel_shape"):
            attributes["kernel_shape"] = [1] * len(spatial)
        if kind == "strides":
            attributes["strides"] = [2] * len(spatial)
            size = tuple(-(-s // 2) for s in spatial)
        elif kind == "pads":
            attributes["pads"] = [1] * 2 * len(spatial)
            size = tuple(s + 2 for s in spatial)
        elif kind == "dilations":
            attributes["dilations"] = [2] * len(spatial)
        elif kind == "group":
            attributes["group"], n = c, 2 * c
        array = _exact(n, 1 if kind == "group" else c, 7).astype(self.dtype)
        weight = self.constant(scope, array.reshape(*array.shape, *(1 for _ in spatial)))
        bias = [self.constant(scope, np.linspace(-1, 1, n).astype(self.dtype))] if self.draw(st.booleans()) else []
        (y,) = self.node(scope, "Conv", [x.name, weight, *bias], **attributes)
        self.add(scope, y, x.shape[0], n, *size)

    def gather(self, scope: _Scope) -> None:
        k = self.features()
        weight = self.operand(scope, 12, k)
        (y,) = self.node(scope, "Gather", [weight, "ids"], **({"axis": 0} if self.draw(st.booleans()) else {}))
        self.add(scope, y, 2, 3, k)

    def residual(self, scope: _Scope) -> None:
        if x := self.pick(scope):
            same = [v for v in scope.visible() if v.shape == x.shape]
            (y,) = self.node(scope, "Add", [x.name, self.draw(st.sampled_from(same)).name])
            self.add(scope, y, *x.shape)

    def activation(self, scope: _Scope) -> None:
        if x := self.pick(scope):
            op = self.draw(st.sampled_from(("Tanh", "Relu", "Sigmoid", "Identity")))
            (y,) = self.node(scope, op, [x.name])
            self.add(scope, y, *x.shape)

    def transpose(self, scope: _Scope) -> None:
        if x := self.pick(scope, 2):
            perm = self.draw(st.permutations(range(len(x.shape))))
            (y,) = self.node(scope, "Transpose", [x.name], perm=perm)
            self.add(scope, y, *(x.shape[axis] for axis in perm))

    def reshape(self, scope: _Scope) -> None:
        if x := self.pick(scope):
            shape = self.draw(st.sampled_from(((-1,), (1, *x.shape), (*x.shape, 1), (-1, x.shape[-1]))))
            if len(shape) <= 5:
                (y,) = self.node(scope, "Reshape", [x.name, self.constant(scope, np.array(shape, np.int64))])
                known = int(np.prod([s for s in shape if s > 0], dtype=int))
                self.add(scope, y, *(int(np.prod(x.shape)) // known if s < 0 else s for s in shape))

    def shared_input(self, scope: _Scope) -> None:
        """Two or three layers that read one value, as gate and up of a SwiGLU or as query, key and value do."""
        x = self.pick(scope)
        if x is None:
            return
        n = self.features()
        gate, up = (self.node(scope, "MatMul", [x.name, self.operand(scope, x.shape[-1], n)])[0] for _ in range(2))
        kind = self.draw(st.sampled_from(("swiglu", "three", "gated")), label="shared input")
        if kind == "three":
            m = self.features()
            (third,) = self.node(scope, "MatMul", [x.name, self.operand(scope, x.shape[-1], m)])
            self.add(scope, third, *x.shape[:-1], m)
        (sigmoid,) = self.node(scope, "Sigmoid", [gate])
        silu = self.node(scope, "Mul", [gate, sigmoid])[0] if kind == "swiglu" else sigmoid
        (y,) = self.node(scope, "Mul", [silu, up] if self.draw(st.booleans()) else [up, silu])
        self.add(scope, y, *x.shape[:-1], n)
        if self.draw(st.sampled_from((False, False, True)), label="gate read elsewhere"):
            self.add(scope, self.draw(st.sampled_from((gate, up, sigmoid))), *x.shape[:-1], n)

    def graph(
        self, scope: _Scope, name: str, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        return helper.make_graph(scope.nodes, name, inputs, outputs, scope.weights)

    def value_info(self, value: _Value, known: bool) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(value.name, int(_DTYPES[self.dtype]), value.shape if known else None)

    def branch(self, scope: _Scope, depth: int) -> None:
        """`If` whose branches end with a layer each, to one shape."""
        x = self.pick(scope)
        if x is None:
            return
        n, bodies = self.features(), []
        for name in ("then", "else"):
            inner = _Scope(scope)
            self.steps(inner, depth + 1, self.draw(st.integers(0, 2), label="steps of a branch"))
            same = [v for v in inner.visible() if v.shape == x.shape]
            source = self.draw(st.sampled_from(same), label="source")
            (y,) = self.node(inner, "MatMul", [source.name, self.operand(inner, x.shape[-1], n)])
            result = self.value_info(_Value(y, (*x.shape[:-1], n)), self.draw(st.booleans()))
            bodies.append(self.graph(inner, name, [], [result]))
        (y,) = self.node(scope, "If", ["flag"], then_branch=bodies[0], else_branch=bodies[1])
        self.add(scope, y, *x.shape[:-1], n)

    def loop(self, scope: _Scope, depth: int) -> None:
        """`Loop` that carries a value through a layer twice and stacks another."""
        x = self.pick(scope)
        if x is None:
            return
        inner = _Scope(scope)
        carried = _Value(f"carried{depth}", x.shape)
        inner.values.append(carried)
        self.steps(inner, depth + 1, self.draw(st.integers(0, 2), label="steps of a loop"))
        source = self.draw(st.sampled_from([v for v in inner.values if v.shape == x.shape]), label="source")
        (y,) = self.node(inner, "MatMul", [source.name, self.operand(inner, x.shape[-1], x.shape[-1])])
        (y,) = self.node(inner, "Tanh", [y])
        (going,) = self.node(inner, "Identity", [f"going{depth}"])
        stacked = self.draw(st.sampled_from(inner.values), label="stacked")
        (again,) = self.node(inner, "Identity", [stacked.name])
        inputs = [
            helper.make_tensor_value_info(f"turn{depth}", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"going{depth}", TensorProto.BOOL, []),
            self.value_info(carried, True),
        ]
        outputs = [
            helper.make_tensor_value_info(going, TensorProto.BOOL, []),
            self.value_info(_Value(y, x.shape), self.draw(st.booleans())),
            self.value_info(_Value(again, stacked.shape), True),
        ]
        turns = self.constant(scope, np.array(2, np.int64))
        last, stack = self.node(scope, "Loop", [turns, "", x.name], 2, body=self.graph(inner, "body", inputs, outputs))
        self.add(scope, last, *x.shape)
        if len(stacked.shape) < 4:
            self.add(scope, stack, 2, *stacked.shape)

    def scan(self, scope: _Scope, depth: int) -> None:
        """`Scan` over the first axis, a layer a step."""
        x = self.pick(scope, 2)
        if x is None:
            return
        inner = _Scope(scope)
        step = _Value(f"step{depth}", x.shape[1:])
        inner.values.append(step)
        self.steps(inner, depth + 1, self.draw(st.integers(0, 2), label="steps of a scan"))
        source = self.draw(st.sampled_from([v for v in inner.values if v.shape == step.shape]), label="source")
        n = self.features()
        (y,) = self.node(inner, "MatMul", [source.name, self.operand(inner, step.shape[-1], n)])
        result = self.value_info(_Value(y, (*step.shape[:-1], n)), True)
        graph = self.graph(inner, "body", [self.value_info(step, True)], [result])
        (y,) = self.node(scope, "Scan", [x.name], body=graph, num_scan_inputs=1)
        self.add(scope, y, x.shape[0], *step.shape[:-1], n)

    def call(self, scope: _Scope, depth: int) -> None:
        """A model function: a layer whose weight is its own or handed in, and an attribute that the call may give."""
        x = self.pick(scope, 2)
        if x is None:
            return
        k, n = x.shape[-1], self.features()
        inner = _Scope(None, in_function=True)
        given = self.draw(st.booleans(), label="weight handed in")
        inner.values.append(_Value("fx", x.shape))
        names, inputs = ["fx"], [x.name]
        if given:
            names.append("fw")
            inputs.append(self.operand(scope, k, n))
        saved, self.matrices = self.matrices, {}
        weight = "fw" if given else self.operand(inner, k, n)
        (y,) = self.node(inner, "MatMul", ["fx", weight])
        shape = (*x.shape[:-1], n)
        inner.values.append(_Value(y, shape))
        if depth < 2:
            self.steps(inner, depth + 2, self.draw(st.integers(0, 2), label="steps of a function"))
        attributes = []
        call_attributes: dict[str, list[int]] = {}
        if self.draw(st.booleans(), label="attribute reference"):
            (y,) = self.node(inner, "Transpose", [y])
            inner.nodes[-1].attribute.append(
                onnx.AttributeProto(name="perm", ref_attr_name="order", type=onnx.AttributeProto.INTS)
            )
            order = self.draw(st.permutations(range(len(shape))))
            attributes, call_attributes = ["order"], {"order": list(order)}
            shape = tuple(shape[axis] for axis in order)
        self.matrices = saved
        name = f"Function{len(self.functions)}"
        self.functions.append(
            helper.make_function(_FUNCTIONS, name, names, [y], inner.nodes, self.imports(""), attributes)
        )
        (y,) = self.node(scope, name, inputs, domain=_FUNCTIONS, **call_attributes)
        self.add(scope, y, *shape)
        if self.draw(st.booleans(), label="called twice"):
            (y,) = self.node(scope, name, inputs, domain=_FUNCTIONS, **call_attributes)
            self.add(scope, y, *shape)

    def steps(self, scope: _Scope, depth: int, count: int) -> None:
        simple = [
            self.matmul, self.left_matmul, self.wide_matmul, self.gemm, self.conv, self.residual, self.activation,
            self.transpose, self.reshape, self.shared_input,
        ]  # fmt: skip
        bodies = [self.branch, self.loop, self.scan, self.call]
        reads_inputs = not scope.in_function and not self._below_function(scope)
        if reads_inputs:
            simple.append(self.gather)
        else:
            bodies.remove(self.branch)
        for _ in range(count):
            if depth < 2 and self.draw(st.integers(0, 2), label="body") == 2:
                self.draw(st.sampled_from(bodies))(scope, depth)
            else:
                self.draw(st.sampled_from(simple))(scope)

    def _below_function(self, scope: _Scope) -> bool:
        return scope.in_function or (scope.outer is not None and self._below_function(scope.outer))

    def imports(self, domain: str) -> list[onnx.OperatorSetIdProto]:
        return [helper.make_opsetid(domain, self.opset), helper.make_opsetid(_FUNCTIONS, 1)]

    def case(self) -> Case:
        main = _Scope()
        x = _Value("x", self.draw(st.sampled_from(((2, 3, 16), (16,), (3, 16), (1, 5, 4, 4), (2, 4, 2, 2, 3)))))
        main.values.append(x)
        self.steps(main, 0, self.draw(st.integers(1, 6), label="steps"))
        made = main.values[1:] or main.values
        results = self.draw(st.lists(st.sampled_from(made), min_size=1, max_size=3, unique=True), label="outputs")
        outputs = []
        for value in {made[-1].name: made[-1], **{r.name: r for r in results}}.values():
            if value.name == "x":
                self.node(main, "Identity", ["x"], outputs=["same"])
                value = _Value("same", value.shape)
            outputs.append(self.value_info(value, self.draw(st.booleans(), label="output's shape")))
        declared = self.draw(st.sampled_from(("sizes", "symbols", "none")), label="input's shape")
        shape = {"sizes": x.shape, "symbols": [f"d{i}" for i in range(len(x.shape))], "none": None}[declared]
        inputs = [helper.make_tensor_value_info("x", int(_DTYPES[self.dtype]), shape)]
        read = _read(main.nodes)
        if "ids" in read:
            inputs.append(helper.make_tensor_value_info("ids", TensorProto.INT64, [2, 3]))
        if "flag" in read:
            inputs.append(helper.make_tensor_value_info("flag", TensorProto.BOOL, []))
        if self.draw(st.sampled_from((False, False, True)), label="weights are inputs as well"):
            inputs += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in main.weights]
        graph = helper.make_graph(main.nodes, "main", inputs, outputs, main.weights)
        model = helper.make_model(
            graph, opset_imports=self.imports(self.domain), functions=self.functions, ir_version=8
        )
        if self.draw(st.booleans(), label="inferred shapes"):
            model = onnx.shape_inference.infer_shapes(model)
        feeds = []
        for run in range(3):
            draws = np.random.default_rng(run)
            feed = {
                "x": draws.standard_normal(x.shape).astype(self.dtype),
                "ids": draws.integers(0, 12, (2, 3)),
                "flag": np.array(run % 2 == 0),
            }
            feeds.append({name: feed[name] for name in feed if any(i.name == name for i in inputs)})
        return Case(model, feeds)


def _read(nodes: list[onnx.NodeProto]) -> set[str]:
    """What nodes read, in bodies too."""
    found = {name for node in nodes for name in node.input}
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found |= _read(list(attribute.g.node))
    return found


@st.composite
def graphs(draw: st.DrawFn) -> Case:
    """Small graphs that onnxruntime may run; not all of them do."""
    return _Maker(draw).case()
