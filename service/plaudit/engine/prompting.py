"""What a base reads, without its weights: for whoever needs the tokens of a prompt and computes nothing."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from plaudit.engine import source
from plaudit.engine.chat import Chat
from plaudit.engine.limits import context_in_force
from plaudit.errors import Misconfigured


def load_chat(path: str | Path, context_length: int = 0) -> tuple[Chat, str, int]:
    """Tokenizer with chat template, digest and context (as `Base.load` takes it) of the base at `path`.

    Raises Misconfigured.
    """
    place = source.find(path)
    folder, more = str(place.folder), place.options
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **more)
        config = AutoConfig.from_pretrained(folder, **more).to_dict()
    except Exception as error:  # the library raises what it likes for a folder that is incomplete
        raise Misconfigured(
            f"the tokenizer at {str(path)!r} cannot be read ({type(error).__name__})", setting="model.path"
        ) from error
    return Chat(tokenizer), source.digest(place, tokenizer), context_in_force(config, context_length)
