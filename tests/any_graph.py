"""A model in memory, compiled by all passes and run with and without the library beside the original."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch
from operator_models import available_isas, session_of

from qxcompiler.formats import Scheme
from qxcompiler.graph import find_sites, load_model, normalize, raise_opset
from qxcompiler.passes import PackSites, pipelines
from qxcompiler.quantizers import quantize_without_statistics

BEST = available_isas()[-1]


def compiled(proto: onnx.ModelProto, scheme: str = "int8g16/a32") -> ir.Model:
    """What `compile` makes of a model, rounded to nearest."""
    model = load_model(proto)
    normalize(model)
    raise_opset(model)
    sites = find_sites(model)
    chosen = Scheme.parse(scheme)
    weights = {
        site.weight: quantize_without_statistics([site.weight], chosen.format, torch.device("cpu"))[0].packed
        for site in sites
    }
    schemes = {site: Scheme.parse(chosen.format.name) if site.kind == "embedding" else chosen for site in sites}
    PackSites(schemes, weights)(model)
    pipelines.run(pipelines.after_packing(), model)
    return model


def packed_operators(model: ir.Model) -> list[str]:
    """The packed operators of the main graph and its bodies."""
    return [node.op_type for node in model.graph.all_nodes() if node.domain == "qxc"]


def outputs(model: bytes, feeds: dict[str, np.ndarray], isa: str | None = None) -> list[np.ndarray]:
    session = session_of(model, isa)
    wanted = {value.name for value in session.get_inputs()}
    return session.run(None, {name: array for name, array in feeds.items() if name in wanted})


def check_equal(proto: onnx.ModelProto, model: ir.Model, *feeds: dict[str, np.ndarray], error: float = 0.02) -> None:
    """See that the compiled model gives what the original gives, by its kernels and by its function bodies."""
    original, result = proto.SerializeToString(), ir.to_proto(model).SerializeToString()
    for feed in feeds:
        expected = outputs(original, feed)
        for isa in (BEST, None):
            for found, wanted in zip(outputs(result, feed, isa), expected, strict=True):
                assert found.dtype == wanted.dtype
                assert found.shape == wanted.shape
                if wanted.size and wanted.dtype.kind == "f":
                    found, wanted = found.astype(np.float64), wanted.astype(np.float64)
                    assert np.linalg.norm(found - wanted) <= error * np.linalg.norm(wanted) + 1e-6
                else:
                    np.testing.assert_array_equal(found, wanted)
