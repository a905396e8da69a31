"""Hardware descriptors. A new target is one YAML file in this folder, or anywhere, named on the command line."""

from __future__ import annotations

from qxcompiler.targets.schema import Target, find_target, load_target, target_names

__all__ = ["Target", "find_target", "load_target", "target_names"]
