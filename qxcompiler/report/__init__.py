"""What a compile decided and why, and what a model consists of."""

from __future__ import annotations

from qxcompiler.report.inspection import InspectedSite, Inspection, inspect
from qxcompiler.report.report import Report, SiteReport, report_sites

__all__ = ["InspectedSite", "Inspection", "Report", "SiteReport", "inspect", "report_sites"]
