"""Settings as text: a TOML document, and the table of docs/settings.md.

Enters: a mapping of plain JSON types (`resolved`, or a part of it) or nothing. Leaves: text. Never reads a
file or the environment.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from plaudit.settings.channels import ChannelSettings
from plaudit.settings.root import Settings
from plaudit.settings.section import Section

HEADER = """# Settings

Made from `service/plaudit/settings/` by `plaudit settings table > docs/settings.md`.

A file (`plaudit.toml`, or what `--config` or `PLAUDIT_CONFIG` names) < environment < `--set key=value`. In the
environment a key is `PLAUDIT_` and its path in capitals with two underscores for a dot: `serve.port` is
`PLAUDIT_SERVE__PORT`. Lists and tables are JSON there and in `--set`. `plaudit settings show` prints what is in force.

A number outside its range is refused with the nearest one that is allowed.

## Settings of one channel

What may differ by channel (`domain/tenant`):

{of_channels}

```toml
[policy]
kl_target = 10

[channels."support/*".policy]
kl_target = 4

[channels."support/acme"]
policy.kl_target = 6
gate.prompts = 200
```

Every pattern that matches adds what it sets; `*` stands for any characters, `?` for one, `[ab]` for one of some. Where
two set the same key, the pattern with more characters that are not wildcards wins, and a name without wildcards over
all; the order in the file does not matter. On the command line it is
`--set 'channels."support/acme".policy.kl_target=6'`.
`plaudit settings show --channel support/acme` prints what is in force for a channel, and each release's manifest
holds it.
"""


def toml(values: Mapping[str, Any]) -> str:
    """A TOML document of nested plain values; `None` is left out, since TOML has no word for it."""
    return "\n".join(_lines(values, ())).strip() + "\n"


def table() -> str:
    """The page docs/settings.md: every key with its type, default and meaning."""
    lines = [HEADER.replace("{of_channels}", "\n".join(_of_channels()))]
    for name, section, doc in _sections(Settings, ""):
        lines += [
            f"## {name or 'Common'}",
            "",
            doc,
            "",
            "| key | type | default | range | meaning |",
            "|---|---|---|---|---|",
        ]
        for key, field in section.model_fields.items():
            if not _is_section(field.annotation):
                path = f"{name}.{key}" if name else key
                meaning = (field.description or "").replace("|", "\\|").replace("\n", " ")
                lines.append(
                    f"| `{path}` | {_type(field.annotation)} | {_default(field)} | {_range(field)} | {meaning} |"
                )
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _of_channels() -> Iterator[str]:
    """A line for each section: all of it, or the settings of it that a channel may have otherwise."""
    for name, field in ChannelSettings.model_fields.items():
        section, whole = field.annotation, Settings.model_fields[name].annotation
        assert isinstance(section, type)
        assert issubclass(section, Section)
        keys = ", ".join(f"`{key}`" for key in section.model_fields)
        yield f"- `{name}`" if section is whole else f"- of `{name}`: {keys}"


def _lines(values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    # A JSON string, number, boolean or list is TOML as it stands; tables come after the plain keys of their parent.
    for key, value in values.items():
        if not isinstance(value, Mapping) and value is not None:
            yield f"{_key(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in values.items():
        if isinstance(value, Mapping):
            inner = list(_lines(value, (*path, key)))
            if inner:
                if inner[0] and not inner[0].startswith("\n["):
                    yield f"\n[{'.'.join(_key(part) for part in (*path, key))}]"
                yield from inner


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else json.dumps(key)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _sections(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel], str]]:
    yield prefix, section, " ".join((section.__doc__ or "").split())
    for key, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from _sections(annotation, f"{prefix}.{key}" if prefix else key)


def _type(annotation: Any) -> str:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return f"table of {_type(arguments[1])}"
    if annotation is ChannelSettings:
        return "settings"
    if arguments:
        return " or ".join(_type(argument) for argument in arguments if argument is not type(None))
    names = {str: "text", int: "integer", float: "number", bool: "true or false", Path: "path", SecretStr: "secret"}
    return names[annotation]


def _range(field: Any) -> str:
    """Smallest and largest value; empty for what is no number."""
    bounds = {
        name: value
        for part in field.metadata
        for name in ("ge", "le")
        if (value := getattr(part, name, None)) is not None
    }
    return f"{bounds['ge']:,} to {bounds['le']:,}" if {"ge", "le"} <= bounds.keys() else ""


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, Path):
        value = str(value)
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"
