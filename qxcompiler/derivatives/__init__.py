"""A model in torch, with derivatives through the whole of it."""

from __future__ import annotations

from qxcompiler.derivatives.executor import LOGITS, TorchModel, UndifferentiableError, compared_output
from qxcompiler.derivatives.guidance import attention_weights, token_weights

__all__ = ["LOGITS", "TorchModel", "UndifferentiableError", "attention_weights", "compared_output", "token_weights"]
