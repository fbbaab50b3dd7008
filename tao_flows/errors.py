"""One tree of exceptions.

    TaoError                     anything tao-flows raises on purpose
    ├── InputError (ValueError)  a value given by a person or a file is wrong
    ├── ConfigError (ValueError) a setting is wrong
    ├── MissingExtraError (ImportError)  an optional dependency is not installed
    ├── SourceError              a telemetry source cannot be opened or read
    ├── LedgerError              the ledger cannot be opened, read or written
    ├── BundleError              a bundle cannot be written, or a part of one does not hold
    └── DeniedError              a decision denied the task in mode ``enforce``

Each carries a stable ``code``, a one-line ``summary`` and the ``remedy``. Only InputError, ConfigError,
MissingExtraError and DeniedError ever reach a user's flow, and those only where the user asked for them.
"""

from __future__ import annotations


class TaoError(Exception):
    """Base of every error tao-flows raises on purpose.

    Args:
        code: a stable, upper-case identifier, such as ``RAPL_PERMISSION``.
        summary: what is wrong, on one line.
        remedy: what to do about it, on one line; may be empty.
    """

    def __init__(self, code: str, summary: str, remedy: str = "") -> None:
        # All three go to Exception so that the error survives pickling between processes.
        super().__init__(code, summary, remedy)
        self.code = code
        self.summary = summary
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.code}: {self.summary}" + (f" ({self.remedy})" if self.remedy else "")


class InputError(TaoError, ValueError):
    """A value given by a person, a file or a caller is wrong."""


class ConfigError(TaoError, ValueError):
    """A setting is wrong."""


class MissingExtraError(TaoError, ImportError):
    """An optional dependency is not installed.

    Args:
        extra: the name of the extra that brings it.
        needs: what cannot be done without it.
    """

    def __init__(self, extra: str, needs: str) -> None:
        super().__init__("MISSING_EXTRA", f"{needs} needs the extra {extra!r}", f"pip install 'tao-flows[{extra}]'")
        self.extra = extra
        self.needs = needs

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return (type(self), (self.extra, self.needs))


class SourceError(TaoError):
    """A telemetry source cannot be opened or read."""


class LedgerError(TaoError):
    """The ledger cannot be opened, read or written."""


class BundleError(TaoError):
    """A bundle cannot be written, or a part of one does not hold."""


class DeniedError(TaoError):
    """A decision denied the task, and the mode is ``enforce``."""
