"""Tell the weights that a checkpoint lacks and the graph needs from those that only other tasks need."""

from __future__ import annotations

__all__ = ["MissingWeights"]

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from qxcompiler.errors import ExportError

_QUIET_NAN = 0x7FC00000  # float32; its low 22 bits are free, and hold the number of the weight


class MissingWeights:
    """Weights that no one gave: marked in the model, and looked for in what is exported.

    A BERT without its pooler still gives hidden states, and a speech recogniser needs no vector for masked frames.
    Whether a graph needs a weight shows when it is exported: torch leaves out what no output depends on. So every
    missing weight becomes NaN, with its number in the NaN's bits, which transposing and slicing keep.

    Args:
        model: a model of transformers in float32.
        names: of its parameters that the checkpoint lacks.
    """

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        tensors = model.state_dict()
        self.names = sorted(name for name in names if tensors[name].dtype == torch.float32)
        for number, name in enumerate(self.names, start=1):
            tensors[name].view(torch.int32).fill_(_QUIET_NAN + number)

    def check(self, model: ir.Model, source: object) -> None:
        """Look for the missing weights in an exported graph.

        Raises:
            ExportError: it holds one.
        """
        for value in model.graph.initializers.values() if self.names else ():
            if value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
                continue
            array = value.const_value.numpy()
            numbers = array[np.isnan(array)].view(np.int32) - _QUIET_NAN
            found = numbers[(numbers > 0) & (numbers <= len(self.names))]
            if found.size:
                name = self.names[found[0] - 1]
                raise ExportError(
                    source, f"has no weight {name} ({len(self.names)} missing)", "give a complete checkpoint"
                )
