"""Hardware descriptors. A new target is one YAML file in this folder, or anywhere, named on the command line."""

from __future__ import annotations

from qxcompiler.targets.schema import Target, load_target, target_names

__all__ = ["Target", "load_target", "target_names"]
