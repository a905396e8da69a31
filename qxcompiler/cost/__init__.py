"""What a product or a whole model costs on a target: time, bytes, energy, and what bounds them."""

from __future__ import annotations

from qxcompiler.cost.estimate import Estimate, ItemEstimate, estimate, item_cost
from qxcompiler.cost.prediction import CONTEXT, phases, predict, untold_sizes
from qxcompiler.cost.product import Cost, Traffic, cost_of_product
from qxcompiler.cost.workload import Item, Phase, Product, Workload, workload

__all__ = [
    "CONTEXT",
    "Cost",
    "Estimate",
    "Item",
    "ItemEstimate",
    "Phase",
    "Product",
    "Traffic",
    "Workload",
    "cost_of_product",
    "estimate",
    "item_cost",
    "phases",
    "predict",
    "untold_sizes",
    "workload",
]
