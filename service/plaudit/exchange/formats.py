"""One line of a preference file, and what it says. Pure.

Columns are those of TRL's dataset types, https://huggingface.co/docs/trl/dataset_formats, "standard" (texts) or
"conversational" (lists of messages):

- `dpo`, "preference": prompt, chosen, rejected; the prompt may be left out if both are conversations that begin alike;
- `kto`, "unpaired preference": prompt, completion, label (true or false);
- `ranked`, which TRL has no type for: prompt, completions (best first; or in any order, with ranks, 1 the best).

Further columns are ignored, but for `rater` (who judged) if its name is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from plaudit.errors import InvalidField
from plaudit.types import Message

ROLES = ("system", "user", "assistant")


class Format(StrEnum):
    """Formats of a line."""

    DPO = "dpo"
    KTO = "kto"
    RANKED = "ranked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A prompt and completions as somebody judged them.

    `completions`: best first if there are several (of two the chosen one first). `good`: of one alone, whether it was
    found good; otherwise None.
    """

    prompt: tuple[Message, ...]
    completions: tuple[str, ...]
    good: bool | None = None


def format_of(line: Mapping[str, Any]) -> Format:
    """The format that a line's columns are of; raises InvalidField if it is none."""
    for wanted, columns in (
        (Format.DPO, {"chosen", "rejected"}),
        (Format.KTO, {"completion", "label"}),
        (Format.RANKED, {"completions"}),
    ):
        if columns <= line.keys():
            return wanted
    raise _refused(
        "columns", "none of chosen and rejected; prompt, completion and label; prompt and completions: name --format"
    )


def parse(text: str | bytes) -> Mapping[str, Any]:
    """The object of a line; raises InvalidField."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise _refused("line", "is not JSON") from None
    if not isinstance(found, dict):
        raise _refused("line", "is not an object")
    return found


def read(line: Mapping[str, Any], wanted: Format) -> Judged:
    """What a line says; raises InvalidField with the column and what it must be, never with what it says."""
    match wanted:
        case Format.DPO:
            prompt, several = _with_prompt(line, ("chosen", "rejected"), _cells(line, ("chosen", "rejected")))
        case Format.KTO:
            if not isinstance(line.get("label"), bool):
                raise _refused("label", "must be true or false")
            prompt, several = _with_prompt(line, ("completion",), _cells(line, ("completion",)))
            return Judged(prompt=prompt, completions=several, good=line["label"])
        case Format.RANKED:
            cells = line.get("completions")
            if not isinstance(cells, list) or len(cells) < 2:
                raise _refused("completions", "must be a list of two or more")
            names = tuple(f"completions[{index}]" for index in range(len(cells)))
            prompt, several = _with_prompt(line, names, cells)
            if "ranks" in line:
                several = tuple(several[index] for index in _order(line["ranks"], len(several)))
    if len(set(several)) != len(several):
        raise _refused("completions", "are the same text twice: nothing is preferred")
    return Judged(prompt=prompt, completions=several)


def write(judged: Judged) -> dict[str, Any]:
    """The line of a judgement, conversational, in the format that suits it."""
    prompt = [{"role": each.role, "content": each.content} for each in judged.prompt]
    answers = [[{"role": "assistant", "content": text}] for text in judged.completions]
    if judged.good is not None:
        return {"prompt": prompt, "completion": answers[0], "label": judged.good}
    if len(answers) == 2:
        return {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
    return {"prompt": prompt, "completions": answers}


def _cells(line: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    missing = [name for name in names if name not in line]
    if missing:
        raise _refused(missing[0], "is missing")
    return [line[name] for name in names]


def _with_prompt(
    line: Mapping[str, Any], names: Sequence[str], cells: Sequence[Any]
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """The prompt's messages, and the text of each answer."""
    asked = line.get("prompt")
    prompt: tuple[Message, ...] = ()
    if isinstance(asked, str):
        prompt = (Message("user", asked),)
    elif asked is not None:
        prompt = _messages("prompt", asked)
    answers: list[str] = []
    for name, cell in zip(names, cells, strict=True):
        if isinstance(cell, str):
            answers.append(cell)
            continue
        *before, last = _messages(name, cell)
        if last.role != "assistant":
            raise _refused(name, "must end with a message of the assistant")
        if before and not isinstance(asked, list):
            # The whole conversation stands in each column; a prompt that is a text is its last question once more.
            prompt = prompt if answers else tuple(before)
        if before and tuple(before) != prompt:
            raise _refused(name, "must be one message behind the prompt, or begin as the other column does")
        answers.append(last.content)
    if not prompt:
        raise _refused("prompt", "is missing, and the columns are not conversations that begin with one")
    return prompt, tuple(answers)


def _messages(name: str, cell: Any) -> tuple[Message, ...]:
    if not isinstance(cell, list) or not cell:
        raise _refused(name, "must be a text or a list of messages")
    found = []
    for each in cell:
        if not isinstance(each, dict) or each.get("role") not in ROLES or not isinstance(each.get("content"), str):
            raise _refused(name, f"must be messages with a role ({', '.join(ROLES)}) and a text as content")
        found.append(Message(each["role"], each["content"]))
    return tuple(found)


def _order(ranks: Any, count: int) -> list[int]:
    numbers = isinstance(ranks, list) and all(type(rank) in (int, float) for rank in ranks)
    if not numbers or len(ranks) != count or len(set(ranks)) != count:
        raise _refused("ranks", "must be one different number per completion, the smallest for the best")
    return sorted(range(count), key=lambda index: ranks[index])


def _refused(column: str, why: str) -> InvalidField:
    return InvalidField(f"{column} {why}", field=column)
