"""The frozen base: weights, tokenizer and chat template, as one object that engine, reward and policy share.

In: a folder or hub id. Out: token ids, trunk activations, upper layers, logits. One base in each process: policy,
value and reward are adapters on it, and the reference is the base with adapters off. Nothing here changes weights.

Batches are right-padded. The mask is causal, so what stands to the right of a token never reaches it, and no other
mask is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import logging as transformers_logging

from plaudit.engine import fidelity, source
from plaudit.engine.chat import Chat
from plaudit.engine.narrow import Narrow
from plaudit.engine.packed import Packed
from plaudit.engine.protocol import EncodedPrompt
from plaudit.engine.targets import targets
from plaudit.engine.threads import settle_kernels, trim
from plaudit.errors import Misconfigured
from plaudit.settings import Settings
from plaudit.telemetry import get_logger
from plaudit.types import Message

log = get_logger("plaudit.engine")

ATTENTION = "plaudit_grouped"


class KeysInPieces(Protocol):
    """Keys and values that do not lie in one tensor, as those of a lane."""

    def attend(self, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        """Attention (B, T, Hq, D) of queries (B, Hq, T, D)."""


def grouped_attention(
    module: torch.nn.Module | None,
    query: torch.Tensor,
    key: torch.Tensor | KeysInPieces,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in which the query heads of a group share their key without copies of it.

    query (B, Hq, T, D); key, value (B, Hk, L, D); attention_mask is added to the scores, (B or 1, 1, T, L), and
    None means causal, the last query standing at the last key. Returns (B, T, Hq, D). Keys in pieces hold their values
    and masks themselves.
    """
    if not isinstance(key, torch.Tensor):
        return key.attend(query, scaling), None
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    keys = key.shape[2]
    scale = scaling if scaling is not None else dim**-0.5
    grouped = (query * scale).reshape(batch, groups, (heads // groups) * length, dim)
    scores = (grouped @ key.transpose(2, 3)).view(batch, groups, heads // groups, length, keys)
    if attention_mask is None:
        attention_mask = causal_bias(length, keys, query.device, query.dtype)
    weights = torch.softmax(scores + attention_mask.unsqueeze(2), dim=-1, dtype=torch.float32).to(value.dtype)
    mixed = weights.view(batch, groups, (heads // groups) * length, keys) @ value
    return mixed.view(batch, heads, length, dim).transpose(1, 2), None


def causal_bias(length: int, keys: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0 where query t may see key l (l <= keys - length + t), -inf elsewhere: (1, 1, T, L)."""
    query_at = torch.arange(keys - length, keys, device=device)[:, None]
    key_at = torch.arange(keys, device=device)[None, :]
    bias = torch.zeros(length, keys, device=device, dtype=dtype)
    return bias.masked_fill_(key_at > query_at, -math.inf)[None, None]


def register_attention() -> None:
    """Let models name this attention; registering the same function again changes nothing."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, grouped_attention)


class Base:
    """Weights, tokenizer and chat template of the frozen base."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)
        self.digest = digest
        self.num_layers = len(self._decoder.layers)
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        # Tokens of prompt and completion up to which the base was checked.
        self.context_length = 0
        self.eos_ids = eos_ids(model.generation_config, tokenizer)
        self.end_of_turn = end_of_turn(tokenizer, self.eos_ids)
        # Of the linears' weights in passes over layers; `frozen` may make it another than the model's.
        self.format = self.dtype
        # Packed copies of linears, by their place and format, as long as anybody computes with them; see `family`.
        self.packs: WeakValueDictionary[tuple[str, torch.dtype], Packed | Narrow] = WeakValueDictionary()
        # PEFT's wrapper once an adapter was injected; owned by `adapters`.
        self.peft: Any = None
        # `sliced.Slices` if other processes hold parts of the weights.
        self.slices: Any = None

    @classmethod
    def of(cls, settings: Settings) -> Base:
        """The base that a process's settings name, at the context that it will serve."""
        model = settings.model
        context = settings.engine.context_length
        base = cls.load(model.path, device=model.device, dtype=model.dtype, context_length=context)
        names = targets(base, model.adapter_layers)
        family, number = type(base.model).__name__, str(base.dtype).removeprefix("torch.")
        log.info("base loaded", family=family, dtype=number, context=base.context_length, adapted=",".join(names))
        return base

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", dtype: str = "auto", context_length: int = 0) -> Base:
        """Read a base from a folder or by hub id, and check that it is computed rightly at `context_length` tokens.

        0 is the model's own context, at most 2,048. Raises Misconfigured with what to do if any of it fails.
        """
        settle_kernels()
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        number = {"auto": torch.bfloat16 if where == "cuda" else torch.float32}.get(dtype) or getattr(torch, dtype)
        register_attention()
        transformers_logging.disable_progress_bar()
        folder = source.find(path)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder))
            model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=number, use_safetensors=True)
        except Exception as error:
            # The libraries below raise what they like for a folder that is incomplete or damaged.
            lines = str(error).strip().splitlines()
            raise Misconfigured(
                f"the model at {str(path)!r} cannot be read "
                f"({type(error).__name__}: {lines[0][:200] if lines else ''}); "
                "give a folder with config.json, safetensors and tokenizer, or run `plaudit model prepare`",
                setting="model.path",
            ) from error
        model.requires_grad_(False).eval().to(where)
        base = cls(model, tokenizer, source.digest(folder, tokenizer))
        base.context_length = fidelity.check(base, ATTENTION, context_length)
        return base

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._decoder.embed_tokens.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self._decoder.embed_tokens.weight.dtype  # type: ignore[no-any-return]

    @property
    def plain_head(self) -> bool:
        """Whether logits are one product in fp32 on the CPU, which may be written into memory that is there."""
        on_cpu = self.device.type == "cpu" and self.dtype == torch.float32
        return on_cpu and getattr(self.model.lm_head, "bias", None) is None

    @property
    def _decoder(self) -> Any:
        decoder = getattr(self.model, "model", None)
        if not all(hasattr(decoder, part) for part in ("layers", "norm", "rotary_emb", "embed_tokens")):
            raise Misconfigured(
                f"{type(self.model).__name__} is not built as embed_tokens, rotary_emb, layers and norm; "
                "use a base of the Llama family (Llama, Mistral, Qwen, SmolLM, ...)",
                setting="model.path",
            )
        return decoder

    def layer(self, index: int) -> torch.nn.Module:
        """The decoder layer `index`, from 0."""
        layer: torch.nn.Module = self._decoder.layers[index]
        return layer

    @property
    def embedding(self) -> torch.nn.Module:
        """The module that embeds token ids."""
        module: torch.nn.Module = self._decoder.embed_tokens
        return module

    @property
    def final_norm(self) -> torch.nn.Module:
        """The norm before the head."""
        module: torch.nn.Module = self._decoder.norm
        return module

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (T, D) by which positions (T,) turn queries and keys."""
        probe = self._decoder.embed_tokens.weight[:1]
        cos, sin = self._decoder.rotary_emb(probe[None], position_ids=positions[None].to(probe.device))
        return cos[0], sin[0]

    def let_go(self) -> None:
        """Give back the memory of linears and embeddings, of which somebody has a copy; no pass is possible afterwards.

        What tells of them, device and number format, stays. A file of weights that was mapped is mapped no longer.
        """
        for module in self.model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                large = isinstance(module, (torch.nn.Linear, torch.nn.Embedding)) and name == "weight"
                kept = weight.new_empty(0, weight.shape[1]) if large else weight.detach().clone()
                setattr(module, name, torch.nn.Parameter(kept, requires_grad=False))
        trim()

    # Text ---------------------------------------------------------------------------------------

    def encode(self, messages: Sequence[Message]) -> EncodedPrompt:
        """Token ids under the chat template, ready for the assistant's turn, with the length of the shared prefix.

        Raises InvalidField with the template's own words if it refuses the messages.
        """
        return self.chat.encode(messages)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """Token ids of plain text, without special tokens."""
        return self.chat.encode_text(text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    # Layers -------------------------------------------------------------------------------------

    def run_layers(
        self,
        hidden: torch.Tensor,
        start: int,
        stop: int,
        *,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        past: Any = None,
        first: int = 0,
    ) -> torch.Tensor:
        """Run layers start..stop-1 over hidden (B, T, H); the last one's output from token `first` on.

        positions (B or 1, T), from 0 if None; mask as `grouped_attention`; `past` has update(k, v, layer).
        """
        decoder = self._decoder
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        angles = decoder.rotary_emb(hidden, position_ids=positions)
        if mask is None and past is None:
            mask = causal_bias(hidden.shape[1], hidden.shape[1], hidden.device, hidden.dtype)
        more: dict[str, int] = {}
        for index in range(start, stop):
            layer = decoder.layers[index]
            if first and index == stop - 1 and hasattr(vars(layer).get("forward"), "computes_from"):
                # Tokens before it are still seen, and that is all that is left to do for them.
                more = {"first": first}
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                position_embeddings=angles,
                **more,
            )
        return hidden[:, first:] if first and not more else hidden

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings of token ids (B, T): (B, T, H)."""
        embedded: torch.Tensor = self._decoder.embed_tokens(tokens)
        return embedded

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, (..., H)."""
        normed: torch.Tensor = self._decoder.norm(hidden)
        return normed

    @torch.no_grad()
    def trunk(self, tokens: torch.Tensor, upto: int) -> torch.Tensor:
        """Input of layer `upto` for token ids (B, T), right-padded: (B, T, H), without gradient."""
        return self.run_layers(self.embed(tokens.to(self.device)), 0, upto)

    def upper(self, hidden: torch.Tensor, start: int) -> torch.Tensor:
        """Layers start.. and the final norm over trunk activations (B, T, H): (B, T, H), with gradient."""
        return self.norm(self.run_layers(hidden, start, self.num_layers))

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (..., V) in fp32 of final hidden states (..., H), for (N, H) in fp32 written into `out` (N, V)."""
        if out is not None:
            return torch.mm(hidden, self.model.lm_head.weight.T, out=out)
        logits: torch.Tensor = self.model.lm_head(hidden)
        return logits.float()

    def logits_back(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient (N, H) of final hidden states, of the logits' (N, V)."""
        head = self.model.lm_head
        quick = getattr(vars(head).get("forward"), "back", None)  # see `frozen`
        found: torch.Tensor = quick(gradient) if quick else gradient.to(head.weight.dtype) @ head.weight
        return found


def generation_config(folder: Path, config: object) -> GenerationConfig:
    """That of a folder, or what its model's configuration implies."""
    if (folder / "generation_config.json").exists():
        return GenerationConfig.from_pretrained(str(folder))
    return GenerationConfig.from_model_config(config)


def eos_ids(generation: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end a turn: the tokenizer's EOS and those of the generation config."""
    configured = getattr(generation, "eos_token_id", None)
    more = configured if isinstance(configured, list) else [configured]
    return frozenset(i for i in [tokenizer.eos_token_id, *more] if i is not None)


def end_of_turn(tokenizer: PreTrainedTokenizerBase, ids: frozenset[int]) -> int:
    """The id with which the template ends an assistant's text; the tokenizer's EOS if the template writes none."""
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    text = tokenizer.apply_chat_template(said, tokenize=False) if tokenizer.chat_template else ""
    written = [i for i in tokenizer(str(text), add_special_tokens=False)["input_ids"] if i in ids]
    if not (written or ids):
        raise Misconfigured("the model has no token that ends a turn; use an instruct model", setting="model.path")
    fallback = tokenizer.eos_token_id if tokenizer.eos_token_id in ids else min(ids, default=0)
    return int(written[-1] if written else fallback)
