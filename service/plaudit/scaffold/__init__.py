"""Writes a new plugin: a distribution that keeps the contract, with simulated people and tests, ready to be changed.

Enters: a domain's name and its kind of action. Leaves: a folder. The files are templates (`string.Template`) beside
this module: those of `common`, and those of the action.
"""

from __future__ import annotations

import string
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from plaudit.domain import NAME
from plaudit.errors import Misconfigured
from plaudit.types import Action

_SUFFIX = ".txt"


def write_plugin(name: str, action: Action, folder: Path | None = None) -> Path:
    """Writes the distribution `plaudit-NAME` to `folder` (its name in the current one if None); returns the folder.

    Raises Misconfigured if the name cannot be a domain's, or if something is in the folder already.
    """
    if not NAME.fullmatch(name):
        raise Misconfigured(
            f"{name!r} cannot name a domain; a name is a letter of a-z and up to 62 more of a-z, 0-9 and -, such as "
            "haiku or code-review"
        )
    folder = folder or Path(f"plaudit-{name}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Misconfigured(f"{folder} is there already; remove it, or name another folder with --folder")
    words = {
        "name": name,
        "package": f"plaudit_{name.replace('-', '_')}",
        "kind": "".join(part.capitalize() for part in name.split("-")),
    }
    for part in ("common", action.value):
        _write(files("plaudit.scaffold") / part, folder, words)
    return folder


def _write(source: Traversable, target: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        # Words stand in names as in texts, and "@" for "/".
        *folders, name = string.Template(entry.name.removesuffix(_SUFFIX)).substitute(words).split("@")
        place = target.joinpath(*folders, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(string.Template(entry.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
