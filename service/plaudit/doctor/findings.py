"""What one check of `plaudit doctor` found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

Status = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. `remedy` is empty if nothing is to be done."""

    check: str
    status: Status
    message: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The finding in plain JSON types."""
        return asdict(self)
