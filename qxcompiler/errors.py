"""Every failure that a user can cause is a `QxcError`: see `qxcompiler_runtime.errors`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qxcompiler_runtime.errors import ModelError, QxcError, TokenizerError, UsageError

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = [
    "CalibrationError",
    "ExportError",
    "ModelError",
    "OutputError",
    "QxcError",
    "TargetError",
    "TokenizerError",
    "UnsupportedByTargetError",
    "UsageError",
    "VerificationError",
    "first_invalid",
]


def first_invalid(error: ValidationError) -> tuple[str, str]:
    """The first field that pydantic complains of, and what is wrong with it."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


class CalibrationError(QxcError):
    """Calibration or evaluation samples that cannot be read or do not fit the model."""


class TargetError(QxcError):
    """A hardware descriptor or a plan that cannot be read."""


class ExportError(QxcError):
    """A source that cannot be exported to ONNX."""


class OutputError(QxcError):
    """An output that cannot be written."""


class VerificationError(QxcError):
    """A compile that ran, and whose result is broken."""

    exit_status = 1


class UnsupportedByTargetError(QxcError):
    """A request that the target's hardware or runtime cannot carry out."""

    exit_status = 3
