"""The frozen base: weights, tokenizer and chat template, as one object that engine, reward and policy share.

In: a folder, a GGUF file or a hub id. Out: token ids, trunk activations, upper layers, logits. One base in each
process: policy, value and reward are adapters on it, and the reference is the base with adapters off. Nothing here
changes weights.

Batches are right-padded. The mask is causal, so what stands to the right of a token never reaches it, and no other
mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from plaudit.engine import fidelity, source
from plaudit.engine.attention import ATTENTION, causal_bias, register_attention
from plaudit.engine.chat import Chat
from plaudit.engine.decoder import AfterHead, Stacked, Whole, stacked_or_whole
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


class Base:
    """Weights, tokenizer and chat template of the frozen base."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, digest: str) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.chat = Chat(tokenizer)
        self.digest = digest
        self.decoder: Stacked | Whole = stacked_or_whole(model)
        self.num_layers = len(self.decoder.layers)
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self.after_head = AfterHead.of_config(model.config)
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
        """Read a base, and check that it is computed rightly at `context_length` tokens.

        `path` is a folder, a GGUF file or a hub id; 0 is the model's own context, at most 2,048. Raises Misconfigured
        with what to do if any of it fails.
        """
        settle_kernels()
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        number = {"auto": torch.bfloat16 if where == "cuda" else torch.float32}.get(dtype) or getattr(torch, dtype)
        register_attention()
        transformers_logging.disable_progress_bar()
        place = source.find(path)
        folder, more = str(place.folder), place.options
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **more)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=number, **(more or {"use_safetensors": True}))
        except Exception as error:
            # The libraries below raise what they like for a folder that is incomplete or damaged.
            lines = str(error).strip().splitlines()
            raise Misconfigured(
                f"the model at {str(path)!r} cannot be read "
                f"({type(error).__name__}: {lines[0][:200] if lines else ''}); "
                "give a folder with config.json, safetensors and tokenizer, or a GGUF file; or `plaudit model prepare`",
                setting="model.path",
            ) from error
        model.requires_grad_(False).eval().to(where)
        base = cls(model, tokenizer, source.digest(place, tokenizer))
        base.context_length = fidelity.check(base, ATTENTION, context_length)
        return base

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.weight.device  # type: ignore[no-any-return]

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.embedding.weight.dtype  # type: ignore[no-any-return]

    @property
    def plain_head(self) -> bool:
        """Whether logits are one product in fp32 on the CPU, which may be written into memory that is there."""
        on_cpu = self.device.type == "cpu" and self.dtype == torch.float32
        return on_cpu and self.after_head.plain and getattr(self.head, "bias", None) is None

    def layer(self, index: int) -> torch.nn.Module:
        """The decoder layer `index`, from 0."""
        return self.decoder.layers[index]

    def place(self, index: int, name: str) -> str:
        """Where the part `name` of layer `index` is in the list of layers, as adapters name it: "layers.3.mlp.up"."""
        return f"{self.decoder.path.rpartition('.')[2]}.{index}.{name}"

    @property
    def embedding(self) -> Any:
        """The module that embeds token ids."""
        return self.model.get_input_embeddings()

    @property
    def head(self) -> Any:
        """The linear that makes logits of final hidden states."""
        return self.model.get_output_embeddings()

    @property
    def final_norm(self) -> torch.nn.Module:
        """The norm before the head, of a stacked base."""
        module: torch.nn.Module = self._stacked.parts.norm
        return module

    def angles(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines (T, D) by which positions (T,) turn queries and keys, of a stacked base."""
        return self._stacked.angles(positions)

    @property
    def _stacked(self) -> Stacked:
        if not isinstance(self.decoder, Stacked):
            raise TypeError(f"{type(self.model).__name__} is run by its own forward pass")
        return self.decoder

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
        if positions is None:
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        if mask is None and past is None:
            mask = causal_bias(hidden.shape[1], hidden.shape[1], hidden.device, hidden.dtype)[None, None]
        return self.decoder.run(hidden, start, stop, positions=positions, mask=mask, past=past, first=first)

    def embed(self, tokens: torch.Tensor, positions: torch.Tensor | None = None) -> torch.Tensor:
        """What enters the first layer, (B, T, H), of token ids (B, T) at positions (B or 1, T), from 0 if None."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        return self.decoder.embed(tokens, positions)

    def norm(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm, (..., H)."""
        return self.decoder.norm(hidden)

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
            return torch.mm(hidden, self.head.weight.T, out=out)
        return self.after_head.of(self.head(hidden).float())

    def logits_back(self, gradient: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """The gradient (N, H) of final hidden states (N, H), of the logits' (N, V)."""
        head = self.head
        if not self.after_head.plain:
            gradient = gradient * self.after_head.slope(head(hidden).float())
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
