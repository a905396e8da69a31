"""What can go wrong in a way that a user can mend: one line, one exit status.

The line reads `<subject>: <what is wrong>: <what to do>`, where the subject is usually a file.
"""

from __future__ import annotations

__all__ = ["ModelError", "QxcError", "TokenizerError", "UsageError"]


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


class UsageError(QxcError):
    """An argument, or a combination of arguments, that makes no sense."""


class ModelError(QxcError):
    """A model file that cannot be read, or that holds nothing to work on."""


class TokenizerError(QxcError):
    """A tokenizer or a chat template that cannot be read, or that does not fit a text."""
