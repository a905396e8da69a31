"""The test models of the `onnx` package through the compiler: none may differ, and every refusal must be true.

    python benchmarks/corpus_onnx.py

Most of those models are one operator whose operands are all inputs, so that none of them is a weight. Each is
therefore tried three times: as it is; with all inputs but one made constant, those of the `light` ones, which are
large networks whose weights are one number repeated, random; and with a linear layer grafted beside it, which the
compiler quantizes while everything else must stay what it was.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnx.backend.test
import onnxruntime as ort
import yaml
from onnx import numpy_helper

import qxcompiler
from qxcompiler.errors import QxcError
from qxcompiler.graph import find_sites, load_model, normalize, raise_opset

__all__ = ["SCHEMES", "VARIANTS", "Case", "Result", "cases", "check", "write_plan"]

Variant = Literal["as it is", "constant", "grafted"]
VARIANTS: tuple[Variant, ...] = ("as it is", "constant", "grafted")
# schemes, and the relative L2 error that rounding alone may cause in a layer or two
SCHEMES = {"int8g16/a32": 0.03, "int3g16/a16": 0.5}
_NO_SITES = "has no linear layer"
_GRAFT = "qxc_test_graft"
_MOST_WEIGHTS = 30e6
# in dozens of random layers one after another, errors add up: what is left to see is whether they are related
_DEEP = {"int8g16/a32": 0.2, "int3g16/a16": 1.2}


@dataclass
class Case:
    """A model and inputs for it.

    Attributes:
        kind: the folder of the package that it is from.
        name: unique within its kind.
        model: the model.
        feeds: inputs by name; None where the package has none that fit.
        folder: where its external data is, if it has any.
    """

    kind: str
    name: str
    model: onnx.ModelProto
    feeds: dict[str, Any] | None
    folder: Path | None = None


@dataclass
class Result:
    """What became of a case in one variant and format.

    Attributes:
        outcome: `equal`, `differs`, `refused`, `false refusal`, `bug`, or what kept it from being compared.
        detail: the error, or the output that differs.
        sites: how many sites were quantized.
    """

    outcome: str
    detail: str = ""
    sites: int = 0


def cases() -> Iterator[Case]:
    """All test models that the `onnx` package carries or makes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some cases divide by zero on purpose
        from onnx.backend.test.loader import load_model_tests

        nodes = load_model_tests(kind="node")
    for test in nodes:
        names = [value.name for value in test.model.graph.input]
        yield Case("node", test.name, test.model, dict(zip(names, test.data_sets[0][0], strict=False)))
    data = Path(onnx.backend.test.__file__).parent / "data"
    for kind in ("simple", "pytorch-operator", "pytorch-converted"):
        for path in sorted((data / kind).glob("*/model.onnx")):
            model = onnx.load(path)
            yield Case(kind, path.parent.name, model, _stored_inputs(model, path.parent / "test_data_set_0"))
    for path in sorted((data / "light").glob("*.onnx")):
        model = onnx.load(path)
        yield Case("light", path.stem, model, _random_inputs(model))


def _stored_inputs(model: onnx.ModelProto, folder: Path) -> dict[str, Any] | None:
    feeds: dict[str, Any] = {}
    for index, value in enumerate(model.graph.input):
        path = folder / f"input_{index}.pb"
        if not path.is_file():
            break
        data = path.read_bytes()
        if value.type.HasField("sequence_type"):
            feeds[value.name] = numpy_helper.to_list(onnx.SequenceProto.FromString(data))
        elif value.type.HasField("optional_type"):
            feeds[value.name] = numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
        else:
            feeds[value.name] = numpy_helper.to_array(onnx.TensorProto.FromString(data))
    return feeds


def _random_inputs(model: onnx.ModelProto) -> dict[str, Any]:
    constants = {tensor.name for tensor in model.graph.initializer}
    draws = np.random.default_rng(0)
    return {
        value.name: draws.standard_normal([d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in model.graph.input
        if value.name not in constants
    }


def vary(case: Case, variant: Variant) -> Case | None:
    """The case in one variant, or None where that is no different from the case itself."""
    if variant == "as it is":
        return case
    if case.feeds is None:
        return None
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    feeds = dict(case.feeds)
    if variant == "constant" and case.kind == "light":
        if not _fill(model.graph):
            return None
    elif variant == "constant":
        kept = []
        # the one input that stays is what a layer reads, not its weight
        if model.graph.node[0].op_type == "Gather" and len(model.graph.input) > 1:
            inputs = list(model.graph.input)
            del model.graph.input[:]
            model.graph.input.extend([inputs[1], inputs[0], *inputs[2:]])
        for value in model.graph.input:
            array = feeds.get(value.name)
            if kept and isinstance(array, np.ndarray) and array.dtype.kind != "O":
                model.graph.initializer.append(numpy_helper.from_array(feeds.pop(value.name), value.name))
            else:
                kept.append(value)
        if len(kept) == len(model.graph.input):
            return None
        del model.graph.input[:]
        model.graph.input.extend(kept)
    else:
        draws = np.random.default_rng(1)
        weight = draws.standard_normal((32, 8)).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(weight, f"{_GRAFT}_w"))
        domain = next((o.domain for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
        if domain is None:
            model.opset_import.append(onnx.helper.make_opsetid("", 18))
        model.graph.node.append(
            onnx.helper.make_node(
                "MatMul", [f"{_GRAFT}_x", f"{_GRAFT}_w"], [f"{_GRAFT}_y"], name=_GRAFT, domain=domain or ""
            )
        )
        for values, name, shape in ((model.graph.input, "x", (3, 32)), (model.graph.output, "y", (3, 8))):
            values.append(onnx.helper.make_tensor_value_info(f"{_GRAFT}_{name}", onnx.TensorProto.FLOAT, shape))
        feeds[f"{_GRAFT}_x"] = draws.standard_normal((3, 32)).astype(np.float32)
    return Case(case.kind, case.name, model, feeds, case.folder)


def _fill(graph: onnx.GraphProto) -> bool:
    """Put random weights where a network repeats a number; False where they are too many to try."""
    shapes = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    draws = np.random.default_rng(2)
    weights = []
    for node in graph.node:
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            shape = shapes[node.input[0]].tolist()
            fan_in = np.prod(shape[1:]) if len(shape) > 1 else None
            array = draws.standard_normal(shape) * np.sqrt(2 / fan_in) if fan_in else draws.uniform(0.5, 1, shape)
            weights.append(numpy_helper.from_array(array.astype(np.float32), node.output[0]))
            if sum(np.prod(tensor.dims) for tensor in weights) > _MOST_WEIGHTS:
                return False
    filled = {tensor.name for tensor in weights}
    nodes = [node for node in graph.node if node.output[0] not in filled]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)
    return True


def write_plan(model: Path, scheme: str, plan: Path) -> None:
    """A plan that quantizes every site of a model, those too that packing does not shrink."""
    graph = load_model(model)
    normalize(graph)
    raise_opset(graph)
    lookup = scheme.partition("/")[0]
    schemes = {site.name: lookup if site.kind == "embedding" else scheme for site in find_sites(graph)}
    plan.write_text(yaml.safe_dump({"target": "cpu-x86", "sites": schemes}))


def check(case: Case, variant: Variant, scheme: str, folder: Path) -> Result | None:
    """Compile one variant of a case and compare it with itself, with the library and without.

    Args:
        case: the model.
        variant: see the module.
        scheme: of all sites, one of `SCHEMES`.
        folder: an empty folder to write to.

    Returns:
        None where the variant is no different from the model itself.
    """
    varied = vary(case, variant)
    if varied is None:
        return None
    path = folder / "source.onnx"
    onnx.save(varied.model, path)
    feeds = varied.feeds
    try:
        original = _session(path)
        outputs = [value.name for value in original.get_outputs()]
        known = {value.name for value in original.get_inputs()}
        feeds = {name: value for name, value in (feeds or {}).items() if name in known and value is not None}
        expected = original.run(outputs, feeds)
        again = original.run(outputs, feeds)
    except Exception as error:
        return Result("onnxruntime cannot run it", str(error))
    if any(_difference(a, b) for a, b in zip(expected, again, strict=True)):
        return Result("not deterministic")
    try:
        write_plan(path, scheme, folder / "plan.yaml")
        report = qxcompiler.compile(path, "cpu-x86", folder / "out", plan=folder / "plan.yaml", quantizer="rtn")
    except QxcError as error:
        true = _NO_SITES not in str(error) or not _constant_layers(varied.model.graph)
        return Result("refused" if true else "false refusal", str(error).removeprefix(f"{path}: "))
    except Exception:
        return Result("bug", traceback.format_exc())
    sites = sum(site.quantizer is not None for site in report.sites)
    for name, library in (("the library", True), ("function bodies", False)):
        try:
            compiled = folder / "out" / "model.onnx"
            session = qxcompiler.session(compiled) if library else _session(compiled)
            found = session.run(outputs, feeds)
        except Exception as error:
            return Result("bug", f"with {name}: {error}", sites)
        for output, y, y_ref in zip(outputs, found, expected, strict=True):
            # What does not read a quantized weight stays as it was, but for the order of sums.
            bound = (_DEEP if case.kind == "light" else SCHEMES)[scheme]
            if sites == 1 and variant == "grafted" and not output.startswith(_GRAFT):
                bound = 1e-3 if getattr(y_ref, "dtype", None) == np.float16 else 1e-5
            if problem := _difference(y, y_ref, bound):
                return Result("differs", f"with {name}: output {output} {problem}", sites)
    return Result("equal", sites=sites)


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _difference(y: Any, y_ref: Any, bound: float = 0.0) -> str:
    """How two outputs differ by more than a relative L2 error, or nothing."""
    if isinstance(y, Sequence) and isinstance(y_ref, Sequence) and not isinstance(y, str):
        if len(y) != len(y_ref):
            return f"has {len(y)} elements for {len(y_ref)}"
        return next((p for a, b in zip(y, y_ref, strict=True) if (p := _difference(a, b, bound))), "")
    if isinstance(y, Mapping) or not isinstance(y, np.ndarray) or not isinstance(y_ref, np.ndarray):
        return "" if type(y) is type(y_ref) and y == y_ref else f"is {y!r} for {y_ref!r}"
    if y.shape != y_ref.shape or y.dtype != y_ref.dtype:
        return f"is {y.dtype} {y.shape} for {y_ref.dtype} {y_ref.shape}"
    if y.dtype.kind not in "fcV":
        return "" if (y == y_ref).all() else f"differs in {(y != y_ref).mean():.0%} of its elements"
    complex_or_real = np.complex128 if y.dtype.kind == "c" else np.float64
    a, b = (np.atleast_1d(array).astype(complex_or_real).ravel() for array in (y, y_ref))
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return "has other infinities or NaN"
    error, norm = np.linalg.norm(a[finite] - b[finite]), np.linalg.norm(b[finite])
    return "" if error <= bound * norm + (1e-6 if bound else 0) else f"has a relative error of {error / norm:.2g}"


def _constant_layers(graph: onnx.GraphProto, outer: frozenset[str] = frozenset()) -> list[str]:
    """The nodes that read a constant matrix of at least 2x2 in plain sight, which no refusal may overlook."""
    matrices = outer | {
        tensor.name
        for tensor in graph.initializer
        if len(tensor.dims) == 2 and min(tensor.dims) > 1 and tensor.data_type == onnx.TensorProto.FLOAT
    } - {value.name for value in graph.input}
    constants = {tensor.name for tensor in graph.initializer}
    found = []
    for node in graph.node:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        inputs = [*node.input, "", ""]
        if node.domain not in ("", "ai.onnx"):
            continue
        matmul = node.op_type == "MatMul" and inputs[1] in matrices and inputs[0] not in constants
        gemm = node.op_type == "Gemm" and inputs[1] in matrices and inputs[0] not in constants
        if matmul or (gemm and not ("transA" in attributes and attributes["transA"].i)):
            found.append(node.name or node.output[0])
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _constant_layers(attribute.g, matrices)
    return found


def main() -> None:
    """Run all of it, print what does not agree and a table of counts."""
    parser = argparse.ArgumentParser(description="Run the test models of the onnx package through the compiler.")
    parser.add_argument("--only", default="", help="run the models whose name holds this")
    arguments = parser.parse_args()
    counts: Counter[tuple[str, str, str]] = Counter()
    reasons: Counter[str] = Counter()
    models = sites = failed = 0
    with_sites: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        for number, case in enumerate(case for case in cases() if arguments.only in case.name):
            models += 1
            for variant in VARIANTS:
                for scheme in list(SCHEMES)[: 1 if variant == "grafted" else None]:
                    folder = Path(scratch, f"{number}-{variant}-{scheme}".replace("/", "-"))
                    folder.mkdir()
                    result = check(case, variant, scheme, folder)
                    if result is None:
                        continue
                    counts[variant, scheme, result.outcome] += 1
                    sites += result.sites
                    if result.sites and variant != "grafted":
                        with_sites.add(case.name)
                    if result.outcome == "refused":
                        reasons[re.sub(r" \(.*", "", result.detail)] += 1
                    elif result.outcome not in ("equal", "onnxruntime cannot run it", "not deterministic"):
                        failed += 1
                        last = (result.detail.strip().splitlines() or [""])[-1]
                        print(f"- {case.kind}/{case.name} ({variant}, {scheme}) {result.outcome}: {last}", flush=True)
    print(f"\n{models} models of onnx {onnx.__version__}, {len(with_sites)} with sites of their own, all in all")
    print(f"{sites} sites quantized in {counts.total()} compiles, of which {failed} failed or differ\n")
    print("| variant | scheme | outcome | models |\n|---|---|---|---|")
    for (variant, scheme, outcome), count in sorted(counts.items()):
        print(f"| {variant} | {scheme} | {outcome} | {count} |")
    print("\n| refused because | times |\n|---|---|")
    for reason, count in reasons.most_common():
        print(f"| {reason} | {count} |")
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
