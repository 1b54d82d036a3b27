"""What the reward model reads: one completion behind its prompt, as token ids."""

from __future__ import annotations

from typing import NamedTuple


class Completion(NamedTuple):
    """Prompt tokens and shown tokens of one completion; the EOS that ends it is appended when it is run."""

    prompt: tuple[int, ...]
    shown: tuple[int, ...]
