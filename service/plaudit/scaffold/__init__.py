"""Writes a new plugin: a distribution that keeps the contract, with simulated people and tests, ready to be changed.

Enters: a domain's name and its kind of action. Leaves: a folder. The files are templates (`string.Template`) beside
this module: those of `common`, and those of the action.
"""

from __future__ import annotations

import keyword
import re
import string
from collections.abc import Sequence
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
    sources = [files("plaudit.scaffold") / part for part in ("common", action.value)]
    words = {"name": name, "package": f"plaudit_{name.replace('-', '_')}", "kind": _class_name(name, sources)}
    for source in sources:
        _write(source, folder, words)
    return folder


def _class_name(name: str, sources: Sequence[Traversable]) -> str:
    """The domain in capitals: FooBar of foo-bar, and ChoiceDomain of choice, if a template has a use for Choice."""
    kind = "".join(part.capitalize() for part in name.split("-"))
    used = any(
        re.search(rf"\b{kind}\b", entry.read_text(encoding="utf-8")) for source in sources for entry in source.iterdir()
    )
    return f"{kind}Domain" if used or keyword.iskeyword(kind) else kind


def _write(source: Traversable, target: Path, words: dict[str, str]) -> None:
    for entry in source.iterdir():
        # Words stand in names as in texts, and "@" for "/".
        *folders, name = string.Template(entry.name.removesuffix(_SUFFIX)).substitute(words).split("@")
        place = target.joinpath(*folders, name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(string.Template(entry.read_text(encoding="utf-8")).substitute(words), encoding="utf-8")
