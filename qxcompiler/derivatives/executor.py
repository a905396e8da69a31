"""Compute a model's values in torch, segment after segment, with derivatives."""

from __future__ import annotations

__all__ = ["LOGITS", "TorchModel", "UndifferentiableError", "compared_output"]

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from qxcompiler.derivatives.contrib import CONTRIB_OPERATORS
from qxcompiler.derivatives.operators import OPERATORS
from qxcompiler.errors import ModelError
from qxcompiler.graph import Segment, Site, extract_segment, find_segments
from qxcompiler.graph.nodes import is_standard

# From a site to its weight as a matrix [N, K].
Weights = Callable[[Site], Tensor]
# Takes a linear site and its output, and gives the output to go on with.
Observe = Callable[[Site, Tensor], Tensor]
# Takes the rows of an attention [.., heads, L, T], and gives those to go on with.
Attend = Callable[[Tensor], Tensor]

LOGITS = "logits"
_REMEDY = "compile without what needs derivatives: --tune, --bpw, --quantizer guided"


def compared_output(model: ir.Model) -> str:
    """The output that a model is judged by: the logits, or else the first that holds floats.

    Raises:
        UndifferentiableError: there is none.
    """
    outputs = {value.name or "": value.dtype for value in model.graph.outputs}
    if LOGITS in outputs:
        return LOGITS
    floats = [name for name, dtype in outputs.items() if dtype is None or dtype.is_floating_point()]
    if not floats:
        raise UndifferentiableError("the model", f"has no output of floats among {', '.join(outputs)}", _REMEDY)
    return floats[0]


class UndifferentiableError(ModelError):
    """A model has an operator that torch is not taught here."""


class TorchModel:
    """A model's main graph as torch functions, one for each segment.

    Memory holds the constants that no site reads. What a segment computes on the way is forgotten, and computed again
    for the derivative (Chen et al. 2016, "Training deep nets with sublinear memory cost").

    Args:
        model: normalized.
        sites: its sites.
        output: the name of the output to compute.
        device: where to compute.

    Raises:
        UndifferentiableError: an operator is unknown, or the output does not depend on the last sites.
    """

    def __init__(self, model: ir.Model, sites: Sequence[Site], output: str, device: torch.device) -> None:
        self.device = device
        self.output = output
        attention = _attention_rows(model)
        segments = find_segments(model, sites)
        fed = {value.name or "" for value in model.graph.inputs}
        self._stages = []
        for index, segment in enumerate(segments):
            later = {value.name or "" for other in segments[index + 1 :] for value in other.inputs}
            outputs = segment.outputs
            if segment is segments[-1]:
                outputs = [value for value in model.graph.outputs if value.name == output]
            if outputs:  # others serve only other outputs of the model
                extracted = extract_segment(model, segment, outputs)
                self._stages.append(_Stage(extracted, segment, fed | later, attention, device))
        operands = {site.operand.name for site in sites if site.kind == "linear"}
        if operands & self._stages[-1].constants.keys():
            raise UndifferentiableError(f"output {output}", "comes before the last layers", _REMEDY)

    def __call__(
        self,
        inputs: Mapping[str, np.ndarray],
        weights: Weights,
        observe: Observe | None = None,
        attend: Attend | None = None,
    ) -> Tensor:
        """The output for one sample.

        Args:
            inputs: of the model.
            weights: gives the matrix of a site; asked again for the derivative.
            observe: called with every linear site's output; called again for the derivative.
            attend: likewise, with the rows of every attention: the softmax that weighs values.
        """
        values = {name: torch.from_numpy(_plain(array)).to(self.device) for name, array in inputs.items()}
        for stage in self._stages:
            names = sorted(stage.reads & values.keys())
            run = partial(stage, names, weights, observe, attend)
            tensors = [values[name] for name in names]
            if torch.is_grad_enabled():
                computed = checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=False)
            else:
                computed = run(*tensors)
            values = {name: value for name, value in values.items() if name in stage.read_later}
            values |= dict(zip(stage.gives, computed, strict=True))
        return values[self.output]


class _Stage:
    """One segment: from the graph's inputs, and what earlier segments pass on, to what it passes on."""

    def __init__(
        self, extracted: ir.Model, segment: Segment, read_later: set[str], attention: set[str], device: torch.device
    ) -> None:
        graph = extracted.graph
        self._attention = attention
        self._sites = {site.operand.name or "": site for site in (*segment.others, *segment.sites)}
        self._computed = {site.node.outputs[0].name or "": site for site in segment.sites}
        self.reads = {value.name or "" for value in graph.inputs} - set(self._sites)
        self.gives = [value.name or "" for value in graph.outputs]
        self.read_later = read_later
        self.constants = {
            # what is a single number may be a size, which the CPU has to know
            name: torch.from_numpy(_plain(value.const_value.numpy())).to(
                device if value.const_value.size > 1 else "cpu"
            )
            for name, value in graph.initializers.items()
            if value.const_value is not None
        }
        self._nodes = [_Node(node) for node in graph]
        last = {name: node for node in self._nodes for name in node.inputs}
        for name, node in last.items():
            if name and name not in self.constants and name not in self.gives:
                node.forgets.append(name)

    def __call__(
        self,
        names: Sequence[str],
        weights: Weights,
        observe: Observe | None,
        attend: Attend | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        values = dict(self.constants) | dict(zip(names, tensors, strict=True))
        for node in self._nodes:
            for name in node.inputs:
                if name in self._sites and name not in values:
                    values[name] = _as_operand(self._sites[name], weights(self._sites[name]))
            computed = node([values[name] if name else None for name in node.inputs])
            results = computed if isinstance(computed, tuple) else (computed,)
            if observe and (site := self._computed.get(node.outputs[0])):
                results = (observe(site, results[0]),)
            if attend and node.outputs[0] in self._attention:
                results = (attend(results[0]),)
            values.update(zip(node.outputs, results, strict=False))  # optional outputs may be left out
            for name in node.forgets:
                del values[name]
        return tuple(values[name] for name in self.gives)


class _Node:
    def __init__(self, node: ir.Node) -> None:
        known = {"": OPERATORS, "com.microsoft": CONTRIB_OPERATORS}.get(node.domain, {})
        if node.op_type not in known:
            name = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
            raise UndifferentiableError(f"node '{node.name}'", f"is a {name}, of which no derivative is known", _REMEDY)
        self.name = node.name or node.outputs[0].name
        self.inputs = [value.name or "" if value is not None else "" for value in node.inputs]  # "" for none
        self.outputs = [value.name or "" for value in node.outputs]
        attributes: dict[str, Any] = {name: each.value for name, each in node.attributes.items()}
        self.function = partial(known[node.op_type], **attributes)
        self.forgets: list[str] = []

    def __call__(self, inputs: Sequence[Tensor | None]) -> Any:
        try:
            return self.function(*inputs)
        except torch.OutOfMemoryError:
            raise
        except NotImplementedError as error:
            problem = f"has {error}, of which no derivative is known"
            raise UndifferentiableError(f"node '{self.name}'", problem, _REMEDY) from error
        except (IndexError, RuntimeError, ValueError) as error:
            problem = f"fails on the calibration samples ({error})"
            raise ModelError(f"node '{self.name}'", problem, "check that the model runs on them") from error


def _attention_rows(model: ir.Model) -> set[str]:
    """The names of what a softmax over the last axis gives to a product with activations."""
    softmax = (node for node in model.graph if is_standard(node, ("Softmax",)))
    over_last = (node.outputs[0] for node in softmax if node.attributes.get_int("axis", -1) in (-1, 3))
    return {rows.name or "" for rows in over_last if _weighs(rows)}


def _weighs(rows: ir.Value) -> bool:
    for node in rows.consumers():
        if is_standard(node, ("MatMul",)) and node.inputs[0] is rows:
            return node.inputs[1] is not None and node.inputs[1].const_value is None
        if is_standard(node, ("Cast", "Dropout", "Identity", "Where", "Reshape")) and _weighs(node.outputs[0]):
            return True
    return False


def _plain(array: np.ndarray) -> np.ndarray:
    """A copy; floats of 16 bits, and of types that numpy has not, as float32."""
    is_small = array.dtype == np.float16 or array.dtype.isbuiltin == 2
    return array.astype(np.float32) if is_small else np.array(array)


def _as_operand(site: Site, matrix: Tensor) -> Tensor:
    """A matrix [N, K] as the site's node reads it, but for its type, which stays float32."""
    return (matrix.T if site.operand_transposed else matrix).reshape(site.operand_shape)
