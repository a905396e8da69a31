"""Every failure that a user can cause is a `QxcError`: one line, one exit status.

The line reads `<subject>: <what is wrong>: <what to do>`, where the subject is usually a file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

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
    "first_invalid",
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
        self.subject, self.problem, self.remedy = subject, problem, remedy
        line = f"{subject}: {problem}: {remedy}"
        super().__init__(" ".join(line.split()))


def first_invalid(error: ValidationError) -> tuple[str, str]:
    """The first field that pydantic complains of, and what is wrong with it."""
    first = error.errors()[0]
    return ".".join(map(str, first["loc"])), first["msg"]


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
