"""Load and save ONNX models, find their sites, the sites' roles and groups, split the graph into segments."""

from __future__ import annotations

__all__ = [
    "FLOAT_TYPES",
    "Exchange",
    "FileTensor",
    "Input",
    "Names",
    "Segment",
    "Site",
    "Weight",
    "assign_roles",
    "by_operator",
    "by_value",
    "check_unchanged",
    "extract_segment",
    "find_exchange",
    "find_segments",
    "find_sites",
    "has_own_weights",
    "inputs_of_weights",
    "load_model",
    "make_names_unique",
    "model_files",
    "normalize",
    "not_finite",
    "overridable_inputs",
    "raise_opset",
    "readers",
    "save_model",
    "shape_of_channels",
]

from qxcompiler.graph.exchange import Exchange, find_exchange, has_own_weights, shape_of_channels
from qxcompiler.graph.external_data import FileTensor, check_unchanged
from qxcompiler.graph.groups import Input, by_operator, by_value, inputs_of_weights
from qxcompiler.graph.model_file import load_model, model_files, save_model
from qxcompiler.graph.names import Names, make_names_unique
from qxcompiler.graph.normal_form import normalize, overridable_inputs, raise_opset
from qxcompiler.graph.readers import readers
from qxcompiler.graph.roles import assign_roles, find_sites
from qxcompiler.graph.segments import Segment, extract_segment, find_segments
from qxcompiler.graph.sites import FLOAT_TYPES, Site, Weight, not_finite
