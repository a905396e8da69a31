"""What a compile decided and why, and what a model consists of."""

from __future__ import annotations

from qxcompiler.report.report import Report, SiteReport, report_sites

__all__ = ["Report", "SiteReport", "report_sites"]
