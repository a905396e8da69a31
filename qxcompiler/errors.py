"""Every failure that a user can cause is a `QxcError`: one line, one exit status.

The line reads `<subject>: <what is wrong>: <what to do>`, where the subject is usually a file.
"""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "ExportError",
    "ModelError",
    "OutputError",
    "QxcError",
    "TargetError",
    "UnsupportedByTargetError",
    "UsageError",
    "VerificationError",
]


class QxcError(Exception):
    """Base of all errors that a user can cause.

    Args:
        subject: what the error is about, usually a file's path.
        problem: what is wrong with it.
        remedy: what the user can do.
    """

    exit_status = 2

    def __init__(self, subject: object, problem: str, remedy: str) -> None:
        line = f"{subject}: {problem}: {remedy}"
        super().__init__(" ".join(line.split()))


class UsageError(QxcError):
    """An argument, or a combination of arguments, that makes no sense."""


class ModelError(QxcError):
    """A model file that cannot be read, or that holds nothing to work on."""


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
