"""Where settings come from: file < environment < flags.

The rules are in the docstring of `plaudit.settings`. All problems are gathered, each with the source of its value, and
reported at once.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from plaudit.errors import Misconfigured
from plaudit.settings.channels import ChannelSettings
from plaudit.settings.root import Settings, fields, quoted

DEFAULT_CONFIG = Path("plaudit.toml")
ENV_PREFIX = "PLAUDIT_"
# Variables with the prefix that are not settings; a name that ends in "_" stands for all that begin with it.
ENV_OTHER = (
    *("PLAUDIT_CONFIG", "PLAUDIT_DATA", "PLAUDIT_CACHE", "PLAUDIT_TEST_", "PLAUDIT_FAIL_POINT"),
    *("PLAUDIT_KEY", "PLAUDIT_ROOT_CERTIFICATES", "PLAUDIT_CLIENT_"),  # of clients: plaudit.access.credentials
)
# Kubernetes puts such variables into every pod beside a service called plaudit or plaudit-...
_SERVICE_LINK = re.compile(r"PLAUDIT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP)(_\w+)?)?)")
_BOUNDS = {
    "greater_than_equal": ("ge", "too small; the smallest is"),
    "less_than_equal": ("le", "too large; the largest is"),
}


def load_settings(
    config: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Settings in force: file < environment < `overrides` ("key=value"); raises one Misconfigured for all problems.

    Without `config` the file is what PLAUDIT_CONFIG names, else plaudit.toml if there is one. `environ` is
    the process's environment if None.
    """
    environ = os.environ if environ is None else environ
    sources = _Sources()
    _read_file(sources, config, environ)
    for name in sorted(environ):
        if _is_setting(name, environ[name]):
            path = tuple(name.removeprefix(ENV_PREFIX).lower().split("__"))
            sources.put_text(path, environ[name], f"environment variable {name}")
    for item in overrides:
        key, equals, text = item.partition("=")
        if equals:
            sources.put_text(_path(key.strip()), text, f"--set {key.strip()}")
        else:
            sources.problems.append(f"--set {item}: write it as key=value, such as serve.port=50051")
    settings = None
    try:
        settings = Settings.model_validate(sources.values)
    except ValidationError as error:
        sources.problems += [_words(problem, sources) for problem in error.errors(include_url=False)]
    if settings is None or sources.problems:
        count = f"{len(sources.problems)} problem{'s' * (len(sources.problems) != 1)} with the settings"
        raise Misconfigured("\n".join([f"{count}:", *(f"- {line}" for line in sources.problems)]), setting="settings")
    return settings


class _Sources:
    """Values of all sources by path, the last source winning, and every problem met on the way."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.problems: list[str] = []
        self._origins: dict[str, str] = {}

    def put(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Take one value; a path that no setting has becomes a problem."""
        known = dict(fields())
        if len(path) == 4 and path[0] == "channels":
            self._put_channel(path, value, origin)
            return
        name = ".".join(path)
        if name not in known:
            self.problems.append(f"{origin}: unknown key {name!r}{_nearest(name, known)}")
            return
        here = self.values
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        self._origins[name] = origin

    def _put_channel(self, path: tuple[str, ...], value: Any, origin: str) -> None:
        """Take one value of one channel; pydantic knows whether there is such a key."""
        here = self.values
        for part in path[:-1]:
            here = here.setdefault(part, {})
        here[path[-1]] = value
        self._origins[".".join(path)] = origin

    def put_text(self, path: tuple[str, ...], text: str, origin: str) -> None:
        """Take a value written as text: JSON for lists and tables, else as it stands."""
        if len(path) == 4 and path[0] == "channels":
            annotation = dict(fields(ChannelSettings)).get(".".join(path[2:]))
        else:
            annotation = dict(fields()).get(".".join(path))
        if annotation is None or not _is_compound(annotation):
            self.put(path, text, origin)
            return
        try:
            self.put(path, json.loads(text), origin)
        except ValueError:
            # The text is not shown: it may be a table of keys.
            self.problems.append(f'{origin}: {".".join(path)} must be JSON, such as [4, 16] or {{"name": "value"}}')

    def origin(self, path: tuple[object, ...]) -> str:
        """Where the value at `path` came from, or one above it, or those of the section that is there."""
        for end in range(len(path), 0, -1):
            found = self._origins.get(".".join(str(part) for part in path[:end]))
            if found:
                return found
        if not path:
            return "settings that stand together"
        section = "".join(f"{part}." for part in path)
        below = dict.fromkeys(origin for name, origin in self._origins.items() if name.startswith(section))
        return ", ".join(below) or "defaults"


def _path(key: str) -> tuple[str, ...]:
    """Parts of a dotted key; a part in quotation marks may hold dots, as in channels."a/b.c".policy.lr."""
    return tuple(quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|([^."]+)', key)) or (key,)


def _read_file(sources: _Sources, config: Path | None, environ: Mapping[str, str]) -> None:
    named = config or (Path(environ["PLAUDIT_CONFIG"]) if environ.get("PLAUDIT_CONFIG") else None)
    path = named or DEFAULT_CONFIG
    if named is None and not path.exists():
        return
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        sources.problems.append(f"{path}: cannot be read ({error.strerror}); check --config and PLAUDIT_CONFIG")
        return
    except ValueError as error:
        sources.problems.append(f"{path}: is not TOML: {error}")
        return
    for keys, value in _leaves(content):
        sources.put(keys, value, str(path))


def _leaves(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Paths and values of a TOML document; a table that is itself a setting stays whole."""
    known = dict(fields())
    for key, value in table.items():
        path = (*above, key)
        if isinstance(value, dict) and ".".join(path) not in known:
            yield from _leaves(value, path)
        else:
            yield path, value


def _is_setting(name: str, value: str) -> bool:
    if not name.startswith(ENV_PREFIX):
        return False
    if any(name.startswith(other) if other.endswith("_") else name == other for other in ENV_OTHER):
        return False
    # A person's typo such as PLAUDIT_PORT=50051 must still be reported; a service link's port is a URL.
    link = _SERVICE_LINK.fullmatch(name)
    return not (link and ("SERVICE_" in name or value.startswith(("tcp://", "udp://")) or "_TCP_" in name))


def _is_compound(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (tuple, list, dict):
        return True
    return any(_is_compound(part) for part in typing.get_args(annotation)) if origin is not Literal else False


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint: the known path nearest to `name`, or the one whose last part is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if not near:
        last = name.rpartition(".")[2]
        ends = {path.rpartition(".")[2]: path for path in known}
        near = [ends[end] for end in difflib.get_close_matches(last, ends, n=1, cutoff=0.6)]
    return f"; did you mean {near[0]!r}?" if near else "; `plaudit settings show` lists all keys"


def _words(problem: Any, sources: _Sources) -> str:
    """One problem: where the value came from, the key, what is wrong, the value, and what would do."""
    path = tuple(problem["loc"])
    name = ".".join(quoted(str(part)) if "/" in str(part) else str(part) for part in path)
    origin, kind = sources.origin(path), problem["type"]
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"{origin}: {name}={problem['input']!r} is {words} {problem['ctx'][bound]}"
    if kind == "value_error":
        return f"{origin}: {name}: {problem['ctx']['error']}".replace(": : ", ": ")
    if kind == "extra_forbidden":
        section = ".".join(str(part) for part in path[2:]) if path[0] == "channels" else name
        known = {key: None for key, _ in fields(ChannelSettings)} if path[0] == "channels" else dict(fields())
        return f"{origin}: unknown key {name}{_nearest(section, known)}"
    secret = "key" in name or name == "store.url"
    shown = "" if secret else f"; it is {problem.get('input')!r}"
    return f"{origin}: {name}: {problem['msg']}{shown}"
