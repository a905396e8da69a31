"""Models written in the dialects `qdq` and `contrib`: plain ONNX that stock onnxruntime runs, and the same numbers."""

from __future__ import annotations

from collections import Counter

import graph_models
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
import yaml
from graph_models import Builder
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from onnxruntime.transformers.float16 import convert_float_to_float16
from operator_models import available_isas, session_of

import qxcompiler
from qxcompiler.allocation import Plan
from qxcompiler.allocation.size import size_of_rest, size_of_weight
from qxcompiler.dialects import CONTRIB, DIALECTS
from qxcompiler.dialects.reading import quantized_node
from qxcompiler.errors import ModelError, TargetError, UnsupportedByTargetError
from qxcompiler.evaluation import verify
from qxcompiler.formats import Format, QuantizedWeight, Scheme, parse_format
from qxcompiler.graph import find_sites, normalize, raise_opset, save_model
from qxcompiler.packing import PackedWeight, pack, unpack
from qxcompiler.passes import PackSites
from qxcompiler.report import inspect
from qxcompiler.targets import load_target
from qxcompiler_runtime import session

BEST = available_isas()[-1]
FLOAT = TensorProto.FLOAT
FORMS = ("", "a", "g16", "g32a", "g128", "g32s8", "g16as8", "g32e8")
INTEGERS = [f"int{bits}{form}" for bits in (2, 4, 8) for form in FORMS] + ["mxint8"]
FLOATS = ["mxfp8e4m3", "mxfp8e5m2", "fp8e4m3", "fp8e4m3g32", "fp8e5m2g16s8"]
HELD = [("qdq", name) for name in INTEGERS + FLOATS]
HELD += [("contrib", name) for name in INTEGERS if "g" in name or name == "mxint8"]


def random_weight(fmt: Format, N: int, K: int, seed: int) -> PackedWeight:
    """A weight [N, K] of any codes and scales that a format can store."""
    random = np.random.default_rng(seed)
    G = fmt.groups(K)
    scale = 0.4 / 2**fmt.bits
    stored = {"scales": random.uniform(scale / 4, scale, (N, G)).astype(np.float16)}
    if fmt.scale_type.suffix == "s8":
        stored = {"scales": random.integers(1, 256, (N, G)), "row_scales": random.uniform(scale / 4, scale, (N, 1))}
        stored["scales"][:, 0] = 255
        stored = {"scales": stored["scales"].astype(np.uint8), "row_scales": stored["row_scales"].astype(np.float16)}
    elif fmt.scale_type.suffix == "e8":
        stored = {"scales": (random.integers(122, 126, (N, G)) - fmt.bits).astype(np.uint8)}
    if fmt.has_zero_points:
        stored["zero_points"] = random.integers(0, 2**fmt.bits, (N, G)).astype(np.uint8)
    codes = torch.from_numpy(random.integers(0, 2**fmt.bits, (N, K)).astype(np.uint8))
    if fmt.code_type in ("E4M3", "E5M2"):  # neither infinity nor NaN
        codes = torch.where(codes & 0x7C == 0x7C, codes ^ 0x40, codes)
    return pack(QuantizedWeight(fmt.grid(K, {k: torch.from_numpy(v) for k, v in stored.items()}), codes))


def matmul(K: int = 72, N: int = 20, rows: int = 3):
    b = Builder()
    y = b.op("MatMul", "x", b.weight(K, N))
    return b.model({"x": (FLOAT, ["rows", K])}, [y]), {"x": b.random.standard_normal((rows, K)).astype(np.float32)}


def layers():
    """An embedding, layers of every kind, and a head that shares the embedding's weight."""
    b, V, K = Builder(), 41, 72
    table = b.weight(V, K)
    x = b.op("Gather", table, "ids")  # [rows, 6, K]
    x = b.op("MatMul", x, b.weight(1, K, 40))
    x = b.op("Reshape", x, b.ints(-1, 40))
    x = b.op("Gemm", x, b.weight(80, 40), b.weight(80), transB=1, alpha=0.5, beta=2.0, name="gemm")
    x = b.op("Gemm", x, b.weight(80, 33))
    x = b.op("Unsqueeze", x, b.ints(2, 3))
    x = b.op("Conv", x, b.weight(48, 33, 1, 1), b.weight(48))
    x = b.op("Flatten", x)
    x = b.op("Transpose", b.op("MatMul", b.weight(K, 48), b.op("Transpose", x, perm=[1, 0])), perm=[1, 0])
    y = b.op("MatMul", x, b.op("Transpose", table, perm=[1, 0]))
    return b.model({"ids": (TensorProto.INT64, ["rows", 6])}, [y]), {"ids": b.random.integers(0, V, (2, 6))}


def emitted(proto: onnx.ModelProto, scheme: str, dialect: str) -> ir.Model:
    """All sites with random codes, the same in every dialect."""
    model = ir.from_proto(proto)
    normalize(model)
    chosen = Scheme.parse(scheme)

    def schemes():
        return {
            site: Scheme(chosen.format, None if site.kind == "embedding" else chosen.activation)
            for site in find_sites(model)
        }

    raise_opset(model, max(DIALECTS[dialect].opset(site, each) for site, each in schemes().items()))
    found = schemes()
    weights = {
        weight: random_weight(chosen.format, weight.out_features, weight.in_features, seed)
        for seed, weight in enumerate(dict.fromkeys(site.weight for site in found))
    }
    PackSites(found, weights, dialect)(model)
    return model


def checked(model: ir.Model) -> onnx.ModelProto:
    """The model, which the standard's checker accepts, and which has no operators of ours."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert not proto.functions
    assert {each.domain for each in proto.opset_import} <= {"", "com.microsoft"}
    return proto


def run_stock(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    """What onnxruntime computes without our library, all its optimizations on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # where it puts `MatMulNBits` in the place of QDQ, it rounds activations to 8 bits unless told otherwise
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def run_qxc(proto: onnx.ModelProto, scheme: str, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    return session_of(ir.to_proto(emitted(proto, scheme, "qxc")).SerializeToString(), BEST).run(None, feeds)


def far(found: np.ndarray, expected: np.ndarray) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def decoded(proto: onnx.ModelProto, name: str) -> np.ndarray:
    """Float64 [K, N]: the weight that `emitted` gives the only site."""
    model = ir.from_proto(proto)
    normalize(model)
    (site,) = find_sites(model)
    return unpack(random_weight(parse_format(name), site.out_features, site.in_features, 0)).decode().double().numpy().T


def write_target(folder, dialect: str, scheme: str = "int4g32/a32", **fields):
    fmt = scheme.partition("/")[0]
    described = {
        "name": "mine",
        "inherit": "cpu-x86",
        "dialect": dialect,
        "activations": ["a32", "a16", "a8"],
        "preferred": {"linear": scheme, "head": scheme, "embedding": fmt, "recipe": None},
    }
    path = folder / f"{dialect}.yaml"
    path.write_text(yaml.safe_dump(described | fields))
    return path


class TestNumbers:
    @pytest.mark.parametrize("name", INTEGERS + FLOATS)
    def test_every_kind_of_site_computes_what_qxc_computes(self, name):
        proto, feeds = layers()
        (expected,) = run_qxc(proto, f"{name}/a32", feeds)
        for dialect in (dialect for dialect, held in HELD if held == name):
            (found,) = run_stock(checked(emitted(proto, f"{name}/a32", dialect)), feeds)
            assert far(found, expected) < 1e-5, dialect

    @pytest.mark.parametrize(
        "attributes", [{}, {"alpha": 0.5, "beta": 2.0}, {"transB": 1}, {"transB": 1, "alpha": 3.0}]
    )
    @pytest.mark.parametrize("name", ["int2g32", "int4g32", "int8a"])
    def test_a_gemm_keeps_its_factors(self, name, attributes):
        """onnxruntime has an optimization of its own for `Gemm` after `DequantizeLinear`."""
        b = Builder()
        weight = b.weight(20, 72) if attributes.get("transB") else b.weight(72, 20)
        y = b.op("Gemm", "x", weight, b.weight(20), **attributes)
        proto = b.model({"x": (FLOAT, ["rows", 72])}, [y])
        feeds = {"x": b.random.standard_normal((3, 72)).astype(np.float32)}
        (found,) = run_stock(checked(emitted(proto, f"{name}/a32", "qdq")), feeds)
        assert far(found, run_qxc(proto, f"{name}/a32", feeds)[0]) < 1e-5

    @settings(max_examples=25, deadline=None)
    @given(held=st.sampled_from(HELD), K=st.integers(2, 150), N=st.integers(1, 37), rows=st.integers(1, 4))
    def test_any_shape(self, held, K, N, rows):
        """Against numpy: groups that K is no multiple of, groups longer than K, odd N."""
        dialect, name = held
        proto, feeds = matmul(K, N, rows)
        (found,) = run_stock(checked(emitted(proto, f"{name}/a32", dialect)), feeds)
        expected = feeds["x"].astype(np.float64) @ decoded(proto, name)
        scale = np.abs(feeds["x"]).astype(np.float64) @ np.abs(decoded(proto, name))
        assert (np.abs(found - expected) <= 2e-6 * scale + 1e-12).all()

    def test_mxfp4_by_the_standards_reference(self):
        """onnxruntime has no kernel for FLOAT4E2M1."""
        proto, feeds = matmul()
        model = checked(emitted(proto, "mxfp4/a32", "qdq"))
        codes = next(t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT4E2M1)
        assert tuple(codes.dims) == (72, 20)
        (found,) = ReferenceEvaluator(model).run(None, feeds)
        assert far(found, feeds["x"].astype(np.float64) @ decoded(proto, "mxfp4")) < 1e-6

    @pytest.mark.parametrize("name", ["int2g32", "int4g16a", "int8", "mxfp8e4m3", "fp8e5m2g16s8"])
    def test_qdq_by_the_standards_reference(self, name):
        proto, feeds = matmul()
        model = emitted(proto, f"{name}/a32", "qdq")
        model.opset_imports[""] = max(model.opset_imports[""], 21)  # it has no older DequantizeLinear than 19
        (found,) = ReferenceEvaluator(checked(model)).run(None, feeds)
        assert far(found, feeds["x"].astype(np.float64) @ decoded(proto, name)) < 1e-6

    @pytest.mark.parametrize(("dialect", "name"), [("qdq", "int4g32"), ("qdq", "int8"), ("contrib", "int4g32a")])
    def test_float16_stays_float16(self, dialect, name):
        proto, feeds = layers()
        half = convert_float_to_float16(proto, keep_io_types=False)
        model = checked(emitted(half, f"{name}/a16", dialect))
        assert not any(t.data_type == FLOAT and np.prod(t.dims) > 1 for t in model.graph.initializer)
        assert not any(node.op_type == "DequantizeLinear" and node.output[0] == "" for node in model.graph.node)
        expected = run_qxc(proto, f"{name}/a32", feeds)
        (found,) = run_stock(model, feeds)
        assert found.dtype == np.float16
        assert far(found, expected[0]) < 5e-3

    def test_contrib_rounds_activations_where_the_scheme_does(self):
        proto, feeds = matmul()
        exact = feeds["x"].astype(np.float64) @ decoded(proto, "int4g32")
        errors = {}
        for activation in ("a8", "a16", "a32"):
            (found,) = run_stock(checked(emitted(proto, f"int4g32/{activation}", "contrib")), feeds)
            errors[activation] = far(found, exact)
        assert errors["a32"] < 1e-6 and errors["a16"] < 5e-5 and 1e-4 < errors["a8"] < 3e-2

    @pytest.mark.parametrize("dialect", ["qdq", "contrib"])
    def test_a_body_reads_its_weight(self, dialect):
        b = Builder()
        body = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w"], ["yes"], name="inner")],
            "then",
            [],
            [onnx.helper.make_tensor_value_info("yes", FLOAT, ["rows", 20])],
        )
        other = onnx.helper.make_graph(
            [onnx.helper.make_node("MatMul", ["x", "w2"], ["no"], name="other")],
            "else",
            [],
            [onnx.helper.make_tensor_value_info("no", FLOAT, ["rows", 20])],
        )
        b.weight(72, 20, name="w"), b.weight(72, 20, name="w2")
        y = b.op("If", "which", then_branch=body, else_branch=other)
        proto = b.model({"x": (FLOAT, ["rows", 72]), "which": (TensorProto.BOOL, [])}, [y])
        model = checked(emitted(proto, "int4g32/a32", dialect))
        for which in (True, False):
            feeds = {"x": b.random.standard_normal((3, 72)).astype(np.float32), "which": np.array(which)}
            assert far(run_stock(model, feeds)[0], run_qxc(proto, "int4g32/a32", feeds)[0]) < 1e-5


class TestNodes:
    @pytest.mark.parametrize(
        ("name", "opset", "types"),
        [
            ("int8", 18, {TensorProto.INT8}),
            ("int8a", 18, {TensorProto.UINT8}),
            ("int8g32", 21, {TensorProto.INT8}),
            ("int4", 21, {TensorProto.INT4}),
            ("int4g32a", 21, {TensorProto.UINT4}),
            ("mxfp4", 23, {TensorProto.FLOAT4E2M1}),
            ("mxfp8e4m3", 21, {TensorProto.FLOAT8E4M3FN}),
            ("mxfp8e5m2", 21, {TensorProto.FLOAT8E5M2}),
            ("fp8e4m3", 19, {TensorProto.FLOAT8E4M3FN}),
            ("mxint8", 21, {TensorProto.INT8}),
            ("int2g16", 25, {TensorProto.INT2}),
            ("int2a", 25, {TensorProto.UINT2}),
        ],
    )
    def test_qdq_takes_the_oldest_opset_that_has_the_type(self, name, opset, types):
        proto, _ = matmul()
        model = checked(emitted(proto, f"{name}/a32", "qdq"))
        assert [each.version for each in model.opset_import] == [opset]
        assert {t.data_type for t in model.graph.initializer} == types | {FLOAT}
        assert Counter(node.op_type for node in model.graph.node) == {"DequantizeLinear": 1, "MatMul": 1}
        (attributes,) = ({a.name: a.i for a in n.attribute} for n in model.graph.node if n.op_type != "MatMul")
        fmt = parse_format(name)
        blocks = {"axis": 0, "block_size": fmt.group_length(72)}
        assert attributes == (blocks if fmt.group_size or fmt.bits == 2 else {"axis": 1})

    def test_qdq_leaves_the_nodes_that_compute(self):
        proto, _ = layers()
        model = checked(emitted(proto, "int4g32/a32", "qdq"))
        before = Counter(node.op_type for node in proto.graph.node)
        assert Counter(node.op_type for node in model.graph.node) == before + Counter({"DequantizeLinear": 7})

    def test_qdq_looks_8_bit_codes_up_before_it_decodes_them(self):
        proto, _ = layers()
        model = checked(emitted(proto, "int8g32/a32", "qdq"))
        rows = [n for n in model.graph.node if n.op_type == "Gather"]
        constants = {t.name: t.data_type for t in model.graph.initializer}
        assert [constants.get(node.input[0]) for node in rows] == [TensorProto.INT8, FLOAT]

    @pytest.mark.parametrize("dialect", ["qdq", "contrib"])
    @pytest.mark.parametrize("name", ["int8g32", "int4g32a"])
    def test_a_tied_weight_is_stored_once(self, dialect, name):
        proto, _ = layers()
        model = emitted(proto, f"{name}/a32", dialect)
        found = [each for node in model.graph if (each := quantized_node(node))]
        assert [each.kind for each in found].count("embedding") == 1 and len(found) == 7
        assert found[0].tensors == found[-1].tensors
        assert len({each.tensors[0] for each in found}) == 6

    @pytest.mark.parametrize("dialect", ["qdq", "contrib"])
    def test_compiled_sites_are_no_sites(self, dialect):
        proto, _ = layers()
        for name in ("int8g32", "int4g32"):
            model = ir.from_proto(checked(emitted(proto, f"{name}/a32", dialect)))
            normalize(model)
            assert find_sites(model) == []
            shapes = [(w.out_features, w.in_features) for node in model.graph if (w := quantized_node(node))]
            assert shapes == [(41, 72), (40, 72), (80, 40), (33, 80), (48, 33), (72, 48), (41, 72)]

    def test_an_onnx_without_the_opset_is_named(self, monkeypatch):
        proto, _ = matmul()
        monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 24)
        with pytest.raises(ModelError, match=r"opset 25 is newer than the installed onnx .* install a newer onnx"):
            emitted(proto, "int2g16/a32", "qdq")


class TestTargets:
    @pytest.mark.parametrize(
        ("dialect", "scheme", "says"),
        [
            ("qdq", "int3g128/a32", "no type in dialect qdq for weights as int3g128: choose int2, int4, int8, fp8"),
            ("qdq", "int6g32/a32", "no type in dialect qdq for weights as int6g32"),
            ("qdq", "lut4g64/a32", "no type in dialect qdq for weights as lut4g64"),
            ("qdq", "nf4g64/a32", "no type in dialect qdq for weights as nf4g64"),
            ("qdq", "ternaryg64/a32", "no type in dialect qdq for weights as ternaryg64"),
            ("qdq", "mxfp6e2m3/a32", "no type in dialect qdq for weights as mxfp6e2m3: choose .*, mxfp8 or mxint8, or"),
            ("qdq", "mxfp6e3m2/a32", "no type in dialect qdq for weights as mxfp6e3m2"),
            ("qdq", "int4g32h/a32", "rotates activations, as int4g32h needs it: leave out the h"),
            ("qdq", "int4g32/a8", "rounds activations as a8: choose a16 or a32"),
            ("contrib", "int3g32/a32", "no operator in dialect contrib for weights as int3g32: choose int2, int4 or"),
            ("contrib", "int8/a32", "no operator in dialect contrib for weights as int8: .* in groups"),
            ("contrib", "mxfp4/a32", "no operator in dialect contrib for weights as mxfp4"),
            ("contrib", "mxfp8e4m3/a32", "no operator in dialect contrib for weights as mxfp8e4m3"),
            ("contrib", "fp8e4m3g32/a32", "no operator in dialect contrib for weights as fp8e4m3g32"),
            ("contrib", "lut4g64/a32", "no operator in dialect contrib for weights as lut4g64"),
            ("contrib", "int4g32h/a8", "rotates activations, as int4g32h needs it: leave out the h"),
        ],
    )
    def test_what_a_dialect_cannot_hold_is_refused(self, tmp_path, dialect, scheme, says):
        """When the descriptor is read, or before anything is quantized."""
        target = load_target(write_target(tmp_path, dialect))
        with pytest.raises(UnsupportedByTargetError, match=says) as refused:
            target.check(Scheme.parse(scheme))
        assert refused.value.exit_status == 3
        if not scheme.endswith("h/a32") and not scheme.endswith("h/a8"):  # an embedding is never rotated
            with pytest.raises(UnsupportedByTargetError, match=says):
                load_target(write_target(tmp_path, dialect, scheme))
        proto, _ = matmul()
        weights, _, activations = scheme.partition("/")
        with pytest.raises(UnsupportedByTargetError, match=says):
            qxcompiler.compile(
                proto,
                write_target(tmp_path, dialect),
                tmp_path / "out",
                weights=weights,
                activations=activations,
                quantizer="rtn",
            )
        assert not (tmp_path / "out" / "model.onnx").exists()

    @pytest.mark.parametrize(
        ("dialect", "lacking", "refused"),
        [("qdq", "DequantizeLinear", True), ("qdq", "Gemm", True), ("contrib", "Gemm", False), ("qxc", "Gemm", False)],
    )
    def test_no_operator_that_the_target_lacks_is_written(self, tmp_path, dialect, lacking, refused):
        proto, _ = layers()
        path = write_target(tmp_path, dialect, operators={"lacking": [lacking]})
        options = {"weights": "int4g32", "quantizer": "rtn", "verification": False}
        if refused:
            with pytest.raises(UnsupportedByTargetError, match=f"lacks operators of the model: {lacking}"):
                qxcompiler.compile(proto, path, tmp_path / "out", **options)
        else:
            qxcompiler.compile(proto, path, tmp_path / "out", **options)
            model = onnx.load(tmp_path / "out" / "model.onnx")
            assert lacking not in {node.op_type for node in model.graph.node}

    def test_a_builtin_target_in_another_dialect(self, tmp_path):
        path = tmp_path / "mine.yaml"
        path.write_text("inherit: npu-int8\ndialect: contrib\n")
        target = load_target(path)
        assert target.emits is CONTRIB
        target.check(Scheme.parse("int4g32/a8"))
        path.write_text("inherit: npu-int8\ndialect: tflite\n")
        with pytest.raises(TargetError, match="field dialect: Input should be 'qxc', 'qdq' or 'contrib'"):
            load_target(path)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A decoder, and a file of samples."""
    proto, feeds = graph_models.llama(width=32, hidden=64, vocabulary=90)
    folder = tmp_path_factory.mktemp("decoder")
    onnx.save(proto, folder / "model.onnx")
    random = np.random.default_rng(1)
    samples = [feeds | {"ids": random.integers(0, 90, (2, 5))} for _ in range(4)]
    return folder / "model.onnx", samples


class TestCompile:
    @pytest.mark.parametrize(
        ("dialect", "name"), [("qdq", "int4g32"), ("qdq", "int8"), ("qdq", "mxfp8e4m3"), ("contrib", "int4g16a")]
    )
    def test_a_decoder_by_gptq(self, decoder, tmp_path, dialect, name):
        """The codes are those of `qxc`; the report and `inspect` say what the files hold."""
        path, samples = decoder
        options = {"calibration": samples, "weights": name, "head": name, "embedding": name, "quantizer": "gptq"}
        reports, results = {}, {}
        for each in ("qxc", dialect):
            target = write_target(tmp_path, each)
            reports[each] = qxcompiler.compile(path, target, tmp_path / each, activations="a32", **options)
            file = tmp_path / each / "model.onnx"
            if each == "qxc":
                results[each] = session_of(str(file), BEST).run(None, samples[0])
            else:
                onnx.checker.check_model(str(file), full_check=True)
                proto = onnx.load(file)
                assert not proto.functions and "qxc" not in {o.domain for o in proto.opset_import}
                results[each] = run_stock(proto, samples[0])
        for found, expected in zip(results[dialect], results["qxc"], strict=True):
            assert far(found, expected) < 1e-5
        report = reports[dialect]
        assert report.verification.outputs and not report.verification.without_library
        assert {site.scheme for site in report.sites} == {site.scheme for site in reports["qxc"].sites}
        assert report.not_predicted is None
        scheduled = {item.name for item in report.predicted[0].items}
        assert len(scheduled) == len(report.sites)
        found = inspect(tmp_path / dialect / "model.onnx", load_target(tmp_path / f"{dialect}.yaml"))
        assert [(site.format, site.bytes) for site in found.sites] == [
            (site.scheme, site.bytes) for site in report.sites
        ]
        assert found.site_bytes == sum(site.bytes for site in report.sites)

    def test_what_cannot_be_verified_is_said(self, tmp_path):
        proto, _ = matmul(64, 32)
        report = qxcompiler.compile(
            proto, write_target(tmp_path, "qdq", mx=["mxfp4"]), tmp_path / "out", weights="mxfp4", quantizer="rtn"
        )
        assert report.verification is None
        assert "not verified: onnxruntime cannot run mxfp4 in dialect qdq" in report.warnings

    @pytest.mark.parametrize("library", [True, False])
    def test_verification_runs_without_the_library(self, tmp_path, monkeypatch, library):
        """So that a stray operator of ours would be found."""
        proto, feeds = matmul(64, 32)
        save_model(emitted(proto, "int4g32/a32", "qdq"), tmp_path)
        asked = []
        monkeypatch.setattr(
            "qxcompiler.evaluation.running.session", lambda *_, **how: asked.append(how) or session(*_, **how)
        )
        result = verify(tmp_path / "model.onnx", tmp_path / "model.onnx", [feeds], library=library)
        assert bool(result.without_library) == library
        assert [how["library"] for how in asked] == [library]

    @pytest.mark.parametrize(("dialect", "name"), [*HELD[::9], ("qdq", "mxfp4")])
    def test_the_size_is_bounded_before_it_is_written(self, tmp_path, dialect, name):
        proto, _ = graph_models.llama(width=64, hidden=128, vocabulary=300)
        model = ir.from_proto(proto)
        normalize(model)
        raise_opset(model, 18)
        sites = find_sites(model)
        plan = Plan(
            {site.name: Scheme(parse_format(name), None if site.kind == "embedding" else "a32") for site in sites}
        )
        bound = size_of_rest(model, sites, plan, (), (), DIALECTS[dialect])
        weights = {site.weight for site in sites}
        least = sum(DIALECTS[dialect].weight_bytes(parse_format(name), weight) for weight in weights)
        save_model(emitted(proto, f"{name}/a32", dialect), tmp_path)
        size = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert least < size <= bound <= size + 2000 * len(sites)
        sums = sum(size_of_weight(DIALECTS[dialect], parse_format(name), weight) for weight in weights)
        assert least <= sums <= bound

    @pytest.mark.parametrize(("dialect", "name"), HELD)
    def test_a_weight_takes_the_bytes_that_were_counted(self, dialect, name):
        proto, _ = matmul(70, 21)
        model = emitted(proto, f"{name}/a32", dialect)
        (weight,) = (each for node in model.graph if (each := quantized_node(node)))
        stored = list(ir.to_proto(model).graph.initializer)
        assert len(stored) == len(weight.tensors)
        original = ir.from_proto(proto)
        normalize(original)
        (site,) = find_sites(original)
        assert sum(len(t.raw_data) for t in stored) == DIALECTS[dialect].weight_bytes(parse_format(name), site.weight)
