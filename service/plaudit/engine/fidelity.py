"""Whether this engine computes a base as the model's own code does: asked once, when the base is loaded.

In: a base and the context that is wanted. Out: the context in force, or Misconfigured with what to do.

Two questions, so that the answer costs a second and not a minute. All layers, on a short text: is the model built as
the engine thinks? And the whole context, through one layer of each kind: does anything change with length (a sliding
window, chunked attention, positions that are rescaled)? The engine's way goes in chunks of a prompt and ends in steps
of one token; the model's way is one pass with its own attention. Layers are of one kind if their class, their numbers
and the shapes of their weights are the same.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from plaudit.engine.attention import PLAIN, Beyond, grouped_attention
from plaudit.engine.decoder import LLAMA_FAMILY, Stacked, Whole
from plaudit.engine.limits import SETTING, context_in_force
from plaudit.errors import Misconfigured, PlauditError
from plaudit.types import Message

if TYPE_CHECKING:
    from plaudit.engine.base import Base

# Differences relative to the spread: the largest in fp32, whose sums have another order; in bf16, whose largest one
# says little after thirty layers, the mean square.
EXACT, COARSE = 1e-3, 0.1
CHUNK, STEPS = 128, 4
PROBE_TOKENS = 48


def check(base: Base, attention: str, context_length: int) -> int:
    """Compare with the model's own pass, and give the base the engine's `attention` for good.

    `context_length` is what is wanted, 0 the model's own; returns the context in force. A base that is computed wrongly
    layer by layer is tried once more by its own forward pass.
    """
    own = base.model.config._attn_implementation
    try:
        return _check(base, attention, context_length)
    except Misconfigured as refused:
        if isinstance(base.decoder, Whole) or refused.metadata.get("setting") == SETTING:
            raise
        base.model.set_attn_implementation(own)
        base.decoder = Whole(base.model)
        return _check(base, attention, context_length)


def _check(base: Base, attention: str, context_length: int) -> int:
    with _own_words(base), torch.no_grad():
        tokens = _tokens(base)
        theirs = base.model(input_ids=tokens, use_cache=False).logits.float()
        _refuse_other(base, _logits(base, tokens), theirs)
        own = base.model.config._attn_implementation
        base.model.set_attn_implementation(attention)
        _refuse_other(base, _logits(base, tokens), theirs)
        stepped = _in_chunks_and_steps(base, tokens).to(base.dtype)
        _refuse_other(base, base.logits(stepped)[None], theirs)
        # A family that cannot be served at all must not be told to shorten the context.
        context = context_in_force(base.model.config.to_dict(), context_length)
        long = torch.arange(context, device=base.device)[None] * 7919 % base.vocab_size
        base.model.set_attn_implementation(own)
        with _one_layer_of_each_kind(base):
            wanted = base.decoder.forward(input_ids=long, use_cache=False).last_hidden_state[0].float()
        # From here on every pass, also of the trainer, takes the engine's attention.
        base.model.set_attn_implementation(attention)
        with _one_layer_of_each_kind(base):
            _refuse_beyond(base, _in_chunks_and_steps(base, long), wanted)
        return context


def apart(mine: torch.Tensor, theirs: torch.Tensor, computed: torch.dtype = torch.float32) -> float:
    """The largest difference relative to the spread or, of a number far outside of it, to the number itself.

    The mean square instead of what was `computed` in bfloat16: EXACT and COARSE are the bounds of the two.
    Trained models give their first token activations of thousands of spreads (Sun et al. 2024, arXiv:2402.17762), and
    rounding is relative: 0.2 of 20,000 is as exact as fp32 gets.
    """
    relative = (mine - theirs).abs() / (theirs.abs() + theirs.std())
    return float(relative.max() if computed == torch.float32 else relative.square().mean().sqrt())


def probe(base: Base) -> torch.Tensor:
    """Token ids (1, T) on which two ways to compute a base are compared."""
    count = min(PROBE_TOKENS, base.context_length or PROBE_TOKENS)
    return torch.arange(count, device=base.device)[None] * 7919 % base.vocab_size


def check_shape(base: Base) -> None:
    """Refuse a base of the meta device, which has no weights, if the engine's calls do not fit its layers."""
    with _own_words(base), torch.no_grad(), contextlib.suppress(NotImplementedError, RuntimeError):
        # Layers that look at values (experts) stop here with one of these, and that says nothing.
        _logits(base, _tokens(base))


@contextlib.contextmanager
def _own_words(base: Base) -> Iterator[None]:
    try:
        yield
    except PlauditError:
        raise
    except Exception as error:
        # A family that is built otherwise fails in its own code, anywhere and with anything.
        lines = str(error).strip().splitlines()
        raise Misconfigured(
            f"{type(base.model).__name__} cannot be computed layer by layer by this engine "
            f"({type(error).__name__}: {lines[0][:120] if lines else ''}); {LLAMA_FAMILY}",
            setting="model.path",
        ) from error


def _tokens(base: Base) -> torch.Tensor:
    return torch.tensor([list(base.encode([Message("user", "one two three")]).tokens)], device=base.device)


def _logits(base: Base, tokens: torch.Tensor) -> torch.Tensor:
    return base.logits(base.upper(base.trunk(tokens, 0), 0))


def _refuse_other(base: Base, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    exact, apart = base.dtype == torch.float32, ours - theirs
    difference = ((apart.abs().max() if exact else apart.square().mean().sqrt()) / theirs.std()).item()
    if not difference <= (EXACT if exact else COARSE):
        raise Misconfigured(
            f"{type(base.model).__name__} is not reproduced layer by layer (relative difference {difference:.2g}); "
            f"this engine cannot serve it: {LLAMA_FAMILY}",
            setting="model.path",
        )


def _refuse_beyond(base: Base, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Refuse a base whose hidden states (T, H) differ from some token on."""
    # Both are in fp32 but for a base in another format that its own forward pass runs.
    exact = base.dtype == torch.float32 or isinstance(base.decoder, Stacked)
    apart = (ours - theirs).abs().amax(-1) if exact else (ours - theirs).square().mean(-1).sqrt()  # (T,)
    apart = apart / theirs.std()
    wrong = (~(apart <= (EXACT if exact else COARSE))).nonzero()
    if len(wrong):
        first = int(wrong[0])
        remedy = f"set engine.context_length to {first} or less" if first else LLAMA_FAMILY
        raise Misconfigured(
            f"{type(base.model).__name__} computes a text of {len(ours)} tokens otherwise than this engine "
            f"from token {first} on (relative difference {apart.nan_to_num(torch.inf).max():.2g}): something in it "
            f"changes with length; {remedy}",
            setting="engine.context_length",
        )


class _Pieces:
    """Keys and values that attend by themselves, as those of a lane's step."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor) -> None:
        self._key, self._value = key, value

    def attend(self, query: torch.Tensor, scaling: float | None, beyond: Beyond | None) -> torch.Tensor:
        window, cap, sinks = beyond or PLAIN
        return grouped_attention(
            None, query, self._key, self._value, None, scaling, sliding_window=window, softcap=cap, s_aux=sinks
        )[0]


class _Cache:
    """Keys and values of what was computed, per layer; a chunk gets tensors and a single step gets pieces."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[Any, Any]:
        step = key.shape[2] == 1
        if layer in self._seen:
            before = self._seen[layer]
            key, value = torch.cat([before[0], key], dim=2), torch.cat([before[1], value], dim=2)
        self._seen[layer] = (key, value)
        return (_Pieces(key, value),) * 2 if step else (key, value)


def _in_chunks_and_steps(base: Base, tokens: torch.Tensor) -> torch.Tensor:
    """Hidden states (T, H) of tokens (1, T) as the engine computes them, a prompt's chunks and then single steps."""
    length, cache, found = tokens.shape[1], _Cache(), []
    prompt = max(0, length - STEPS)
    bounds = [*range(0, prompt, CHUNK), *range(prompt, length)]
    for begin, end in zip(bounds, [*bounds[1:], length], strict=True):
        positions = torch.arange(begin, end, device=tokens.device)[None]
        hidden = base.embed(tokens[:, begin:end], positions)
        hidden = base.run_layers(hidden, 0, base.num_layers, positions=positions, past=cache)
        found.append(base.norm(hidden)[0].float())
    return torch.cat(found)


class _Passed(torch.nn.Module):
    """Stands in a layer's place and does nothing; what the decoder asks of the layer, the layer answers."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        # Not as a submodule, or its weights would be found here.
        self.__dict__["_layer"] = layer

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)

    def forward(self, hidden: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden


class _Widened(torch.nn.Module):
    """Embeddings in fp32."""

    def __init__(self, embed: torch.nn.Module) -> None:
        super().__init__()
        self.__dict__["_embed"] = embed
        self.weight = embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        widened: torch.Tensor = self.__dict__["_embed"](tokens).float()
        return widened


@contextlib.contextmanager
def _one_layer_of_each_kind(base: Base) -> Iterator[None]:
    """The base with the first layer of each kind and the others passed over; stacked, in fp32 whatever is loaded."""
    first: dict[str, int] = {}
    for index in range(base.num_layers):
        first.setdefault(_kind(base.layer(index)), index)
    kept = frozenset(first.values())
    if isinstance(base.decoder, Whole):
        with base.decoder.only(kept):
            yield
        return
    decoder = base.decoder.parts
    whole = {name: getattr(decoder, name) for name in ("layers", "norm", "embed_tokens")}
    exact = base.dtype == torch.float32

    def in_fp32(module: Any) -> Any:
        # The configuration stays the model's own, for it is what names the attention.
        return module if exact else copy.deepcopy(module, {id(base.model.config): base.model.config}).float()

    layers = [in_fp32(layer) if i in kept else _Passed(layer) for i, layer in enumerate(decoder.layers)]
    try:
        decoder.layers = torch.nn.ModuleList(layers)
        decoder.norm = in_fp32(decoder.norm)
        decoder.embed_tokens = decoder.embed_tokens if exact else _Widened(decoder.embed_tokens)
        yield
    finally:
        for name, module in whole.items():
            setattr(decoder, name, module)


def _kind(layer: torch.nn.Module) -> str:
    """What a layer is but for its place and its weights."""
    parts = [(name, type(m).__name__, _numbers(m)) for name, m in layer.named_modules()]
    return repr((parts, [(name, tuple(p.shape)) for name, p in layer.named_parameters()]))


def _numbers(module: torch.nn.Module) -> list[tuple[str, object]]:
    plain = (bool, int, float, str, type(None))
    return sorted(
        (k, v) for k, v in vars(module).items() if isinstance(v, plain) and k not in ("layer_idx", "training")
    )
