"""Which extra of the distribution brings a library that is missing.

Enters: the error of an import. Leaves: what to install, as the distribution's own metadata has it.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, requires

_REQUIREMENT = re.compile(r"([A-Za-z0-9_.-]+)(?:.*extra == ['\"]([A-Za-z0-9_-]+))?")


def advice(error: ModuleNotFoundError) -> str:
    """What to install, in a sentence; empty if no requirement of Plaudit brings what is missing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            library = cause.name.partition(".")[0]
            if (extra := _extra_of(library)) is not None:
                what = f"'plaudit[{extra}]'" if extra else "plaudit"
                return f"this command needs {library}, which is not installed; run: pip install {what}"
        # A library that loads its parts late says what is missing in the cause of its own error.
        cause = cause.__cause__
    return ""


def _extra_of(library: str) -> str | None:
    """The extra that brings a library, empty if every installation has it; None if none does."""
    try:
        requirements = requires("plaudit") or ()
    except PackageNotFoundError:  # run from a folder
        return None
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found and library in (found[1].lower().replace("-", "_"), found[1].lower().partition("-")[0]):
            return found[2] or ""
    return None
