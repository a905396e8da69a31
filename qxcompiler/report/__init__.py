"""What a compile decided and why, and what a model consists of."""

from __future__ import annotations

from qxcompiler.report.coverage import Coverage, Unquantized, coverage
from qxcompiler.report.explanation import ExplainedChoice, Explanation, explain
from qxcompiler.report.inspection import InspectedSite, Inspection, inspect
from qxcompiler.report.pareto import CSV, PICTURE, Front, find_front, parse_budgets, plan_file
from qxcompiler.report.report import Report, SiteReport, SitesReport, report_cache, report_costs, report_sites

__all__ = [
    "CSV",
    "PICTURE",
    "Coverage",
    "ExplainedChoice",
    "Explanation",
    "Front",
    "InspectedSite",
    "Inspection",
    "Report",
    "SiteReport",
    "SitesReport",
    "Unquantized",
    "coverage",
    "explain",
    "find_front",
    "inspect",
    "parse_budgets",
    "plan_file",
    "report_cache",
    "report_costs",
    "report_sites",
]
