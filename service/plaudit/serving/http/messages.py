"""The JSON of a message of plaudit.v1, as callers of the HTTP door write it. Pure.

Enters: the JSON value of a body. Leaves: the message, or InvalidField that names the field and says what to write. What
JSON leaves out is false or 0 in a message: a thumb or a rating without its value would teach what nobody said, so the
values of `_NEEDED` must be there. Values are never repeated: they may be what people wrote.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from plaudit.errors import InvalidField

_LONGEST_NAME = 64  # characters of an unknown field's name that its refusal repeats
_NEEDED = {"plaudit.v1.Thumbs": "up", "plaudit.v1.Rating": "value", "plaudit.v1.Signal": "value"}
_TEXT, _NUMBER = "a text", "a number"
_WANTED = {
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_STRING: _TEXT,
    FieldDescriptor.TYPE_DOUBLE: _NUMBER,
}


def parsed(body: Any, message: Any) -> Any:
    """`message`, filled from its JSON, with the proto's field names or camelCase; raises InvalidField."""
    _check(body, message.DESCRIPTOR, "")
    try:
        return json_format.ParseDict(body, message)
    except (json_format.ParseError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        # The library's message may quote what people wrote.
        name = message.DESCRIPTOR.full_name
        raise InvalidField(
            f"the body is not a {name} in JSON; its fields stand in protos/plaudit/v1", field=""
        ) from error


def _check(value: Any, kind: Descriptor, path: str) -> None:
    """Raises InvalidField for the first field of an object that its message cannot hold."""
    if not isinstance(value, Mapping):
        raise InvalidField(f"{path or 'the body'} is not a JSON object; write {_example(kind)}", field=path)
    fields = {name: field for field in kind.fields for name in (field.name, field.json_name)}
    given: dict[str, Any] = {}
    for name, inner in value.items():
        if name not in fields:
            raise _unknown(name, kind, path)
        if inner is not None:  # null is a field left out
            given[fields[name].name] = inner
    for group in kind.oneofs:
        both = [field.name for field in group.fields if field.name in given]
        if len(both) > 1:
            raise InvalidField(f"{' and '.join(both)} stand in one body; send each by itself", field=both[1])
    for name, inner in given.items():
        _check_field(inner, kind.fields_by_name[name], f"{path}.{name}" if path else name)
    needed = _NEEDED.get(kind.full_name)
    if needed and needed not in given:
        wanted = _WANTED[kind.fields_by_name[needed].type]
        raise InvalidField(f"{path}.{needed} is missing; it must be {wanted}", field=f"{path}.{needed}")


def _check_field(value: Any, field: FieldDescriptor, path: str) -> None:
    if field.message_type is not None and not field.is_repeated:
        _check(value, field.message_type, path)
        return
    wanted = _WANTED.get(field.type)
    if field.is_repeated or wanted is None:
        return  # lists and maps: the library looks at them
    if not _fits(value, wanted):
        raise InvalidField(f"{path} is a {type(value).__name__}; it must be {wanted}", field=path)


def _fits(value: Any, wanted: str) -> bool:
    if wanted != _NUMBER:
        return isinstance(value, str if wanted == _TEXT else bool)
    try:
        float(value)  # JSON of a proto may write a number as a text
    except (TypeError, ValueError, OverflowError):
        return False
    return not isinstance(value, bool)


def _unknown(name: str, kind: Descriptor, path: str) -> InvalidField:
    short = name[:_LONGEST_NAME]
    known = [field.name for field in kind.fields]
    near = difflib.get_close_matches(short, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(known)}"
    return InvalidField(
        f"{path or kind.name} has no field {short!r}; {hint}", field=f"{path}.{short}" if path else short
    )


def _example(kind: Descriptor) -> str:
    needed = _NEEDED.get(kind.full_name)
    names = [needed] if needed else [field.name for field in kind.fields][:1]
    return "{" + ", ".join(f'"{name}": ...' for name in names) + "}"
