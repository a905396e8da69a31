"""Hardware descriptors: YAML files, the schema they follow, and what finds and reads them."""

from __future__ import annotations

from qxcompiler.targets.hardware import ComputeUnit, MemoryLevel, split_pair
from qxcompiler.targets.loading import descriptor_files, find_target, load_target, target_names
from qxcompiler.targets.schema import COST_SECTIONS, Target, target_json_schema

__all__ = [
    "COST_SECTIONS",
    "ComputeUnit",
    "MemoryLevel",
    "Target",
    "descriptor_files",
    "find_target",
    "load_target",
    "split_pair",
    "target_json_schema",
    "target_names",
]
