"""Mixtures of experts that optimum's table lacks, though it exports their like."""

from __future__ import annotations

__all__ = ["register_mixtures"]

import torch

_TASKS = ["feature-extraction", "text-generation"]


def register_mixtures() -> None:
    """Add them to optimum's table, where it has no entry of its own."""
    from optimum.exporters.onnx.model_configs import MistralOnnxConfig, Qwen2OnnxConfig
    from optimum.exporters.onnx.model_patcher import PatchingSpec
    from optimum.exporters.tasks import TasksManager

    # Transformers runs the experts that are hit, which a traced graph would fix to those of its example: run all.
    def every_expert(hits: torch.Tensor, _: int) -> torch.Tensor:
        return torch.ones_like(hits, dtype=torch.bool)

    for model_type, alike in (
        ("mixtral", MistralOnnxConfig),
        ("qwen2_moe", Qwen2OnnxConfig),
        ("olmoe", Qwen2OnnxConfig),
    ):
        patches = [PatchingSpec(torch, "greater", every_expert, torch.greater)]
        config = type(f"{model_type}OnnxConfig", (alike,), {"PATCHING_SPECS": patches})
        tasks = [task + past for task in _TASKS for past in ("", "-with-past")]
        TasksManager.create_register("onnx")(model_type, *tasks)(config)
