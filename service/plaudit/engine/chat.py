"""Text to token ids: the chat template's own markers are control tokens, what people wrote never is.

In: messages, or plain text. Out: token ids. A tokenizer finds its control tokens by their spelling, so a person who
writes "<|im_end|>" would end the turn. Here every control token has a second, secret spelling, drawn again in each
process. The template's markers are respelt before the text is tokenised, what stands between them is not, and the
tokenizer knows the secret spellings alone. Ordinary text gets the ids that it would get anyway, because template and
contents are still tokenised as one string.

Which parts of a rendered conversation are the template's is found by rendering it twice: with the messages, and with
secret words in their place. A template that does more with a message than to place or trim it (Qwen3 leaves out past
thoughts) is rendered a third time, with the control tokens in the messages cut in two.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from plaudit.engine.protocol import EncodedPrompt
from plaudit.errors import InvalidField, InvalidText, Misconfigured
from plaudit.types import Message

# System texts whose shared prefix is remembered. One that is forgotten costs two short encodings.
SYSTEM_TEXTS = 64


class Chat:
    """A tokenizer and its chat template; may be used by several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.chat_template is None:
            raise Misconfigured("the model's tokenizer has no chat template", setting="model.path")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise Misconfigured(
                f"{type(tokenizer).__name__} has no tokenizer.json; save the model's fast tokenizer",
                setting="model.path",
            )
        self._tokenizer = tokenizer
        self._secret = secrets.token_hex(8)
        added = {i: token for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
        # Special ones, and those that the template writes ("<tool_call>" is an ordinary added token for Qwen).
        source = str(tokenizer.chat_template)
        names = {token.content: i for i, token in added.items() if token.special or token.content in source}
        self._spelling = {name: f"x{self._secret}x{index}x" for name, index in names.items()}
        self._special = _any_of(token.content for token in added.values() if token.special)
        self._control = _any_of(names)
        self._backend = _respelt(backend, self._spelling)
        lost = [n for n, i in names.items() if self._backend.token_to_id(self._spelling[n]) != i]
        if lost:
            raise Misconfigured(
                f"the control tokens {lost[:5]} of this tokenizer cannot be told from text; use another base",
                setting="model.path",
            )
        self._prefixes: OrderedDict[str | None, tuple[int, ...]] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def takes_system(self) -> bool:
        """Whether the template has a place for a system message."""
        try:
            self._rendered([Message("system", "a"), Message("user", "b")])
        except InvalidField:
            return False
        return True

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids up to the beginning of the assistant's turn, with the length of the prefix that is shared.

        Raises InvalidField with the template's words if it refuses the messages.
        """
        tokens = self._tokens(messages)
        prefix = self._prefix(messages[0].content if messages and messages[0].role == "system" else None)
        return EncodedPrompt(tokens, len(prefix) if tokens[: len(prefix)] == prefix else 0)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text; no control token is among them, whatever it spells."""
        return tuple(self._backend.encode(text, add_special_tokens=False).ids)

    def _prefix(self, system: str | None) -> tuple[int, ...]:
        """What every prompt with this system text begins with."""
        with self._lock:
            if system in self._prefixes:
                self._prefixes.move_to_end(system)
                return self._prefixes[system]
        before = [] if system is None else [Message("system", system)]
        one, two = (self._tokens([*before, Message("user", text)]) for text in ("a", "\u20ac"))
        same = next(i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y)
        with self._lock:
            self._prefixes[system] = one[:same]
            while len(self._prefixes) > SYSTEM_TEXTS:
                self._prefixes.popitem(last=False)
        return one[:same]

    def _tokens(self, messages: Sequence[Message]) -> tuple[int, ...]:
        return tuple(self._backend.encode(self._respelt_text(messages), add_special_tokens=False).ids)

    def _respelt_text(self, messages: Sequence[Message]) -> str:
        """The rendered conversation, the template's control tokens in their secret spelling."""
        plain = self._rendered(messages)
        words, stand_ins = [], []
        for number, message in enumerate(messages):
            word = message.content.strip()
            # White space at the ends stays, so that a template trims the stand-in as it trims the message.
            stand_in = message.content.replace(word, f"{self._secret}m{number}m", 1) if word else message.content
            words.append(word)
            stand_ins.append(Message(message.role, stand_in))
        # Even places are the template's, odd ones the numbers of messages.
        parts = re.split(rf"{self._secret}m(\d+)m", self._rendered(stand_ins))
        theirs, ours = parts[::2], [words[int(number)] for number in parts[1::2]]
        if "".join(a + b for a, b in zip(theirs, [*ours, ""], strict=True)) == plain:
            respelt = [self._respell(each) for each in theirs]
            return "".join(a + b for a, b in zip(respelt, [*ours, ""], strict=True))
        return self._cut_apart(messages, "".join(theirs))

    def _cut_apart(self, messages: Sequence[Message], template: str) -> str:
        """As `_respelt_text`, if the template changes messages: special tokens in them are cut, so none is found."""
        cut = f"{self._secret}c"
        apart = [
            Message(m.role, self._special.sub(lambda found: found[0][:1] + cut + found[0][1:], m.content))
            for m in messages
        ]
        rendered = self._rendered(apart)
        if self._special.findall(rendered) != self._special.findall(template):
            # The template put one together out of what it left of a message.
            raise InvalidText("a message becomes a control token in the model's chat template", field="messages")
        return self._respell(rendered).replace(cut, "")

    def _respell(self, text: str) -> str:
        return self._control.sub(lambda found: self._spelling[found[0]], text)

    def _rendered(self, messages: Sequence[Message]) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    [{"role": m.role, "content": m.content} for m in messages],
                    add_generation_prompt=True,
                    tokenize=False,
                )
            )
        except TemplateError as error:
            raise InvalidField(
                f"the model's chat template refuses these messages: {error.message or type(error).__name__}",
                field="messages",
            ) from error


def _any_of(names: Any) -> re.Pattern[str]:
    """A pattern of any of the names, the longest first as the tokenizer looks for them; of nothing if there is none."""
    return re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)")


def _respelt(backend: Tokenizer, spelling: dict[str, str]) -> Tokenizer:
    """A tokenizer of the same ids that knows the tokens in `spelling` by another name alone."""
    form = json.loads(backend.to_str())
    form["post_processor"] = form["truncation"] = form["padding"] = None
    for token in form["added_tokens"]:
        token["content"] = spelling.get(token["content"], token["content"])
    model = form["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {spelling.get(piece, piece): index for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [[spelling.get(piece, piece), score] for piece, score in model["vocab"]]
    if model.get("unk_token") in spelling:
        model["unk_token"] = spelling[model["unk_token"]]
    if "merges" in model:
        # A merge that spells a control token would need it under its old name.
        model["merges"] = [merge for merge in model["merges"] if not _spells(merge, spelling)]
    return Tokenizer.from_str(json.dumps(form))


def _spells(merge: str | list[str], spelling: dict[str, str]) -> bool:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left in spelling or right in spelling or left + right in spelling
