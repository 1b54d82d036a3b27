"""What a server must be to serve as the protocol says: its context, its base, its log-probs, its places for adapters.

In: a server, and what is wanted of it. Out: nothing, or Misconfigured with the flag or the setting to change. Also the
log-probs by which servers are compared (`scores`).
"""

from __future__ import annotations

from collections.abc import Sequence

from plaudit.engine.protocol import EncodedPrompt
from plaudit.engine.vllm import wire, witness
from plaudit.engine.vllm.local import Signature
from plaudit.engine.vllm.server import Served, Server
from plaudit.errors import InternalError, Misconfigured

# Another base differs by whole nats; the same one in 16 bits, on any text, by roundings alone.
_SAME_BASE = {True: 1e-2, False: 0.2}
_TWO_TEMPERATURES = (0.5, 1.0)


def context(server: Server, served: Served, wanted: int) -> None:
    """Refuses a server that takes fewer tokens than the context in force."""
    if served.context_length and served.context_length < wanted:
        raise Misconfigured(
            f"the vLLM server at {server.address} takes {served.context_length} tokens and the context in force is "
            f"{wanted}; start it with a larger --max-model-len, or set engine.context_length",
            setting="engine.context_length",
        )


async def base(server: Server, model: str, known: Signature, *, exact: bool) -> None:
    """Refuses a server that gives other log-probs of a text than the weights in model.path do."""
    prompt, completion = EncodedPrompt(known.prompt), known.completion
    (now,) = await scores(server, model, prompt, [completion], 1.0)
    difference = witness.apart(known.logprobs, now)
    if not difference <= _SAME_BASE[exact]:
        raise Misconfigured(
            f"the vLLM server at {server.address} runs another base than the one in model.path, or in another number "
            f"format than engine.vllm.dtype says: log-probs of a text differ by {difference:.3g} on average, above "
            f"{_SAME_BASE[exact]:g}",
            setting="model.path",
        )


async def mode(server: Server, model: str, known: Signature | None) -> None:
    """Refuses a server that gives log-probs of softmax(logits) whatever the temperature."""
    prefix = known.prompt if known else (0, 1)
    ids = known.completion[:2] if known else (0, 1)
    found = []
    for temperature in _TWO_TEMPERATURES:
        answer = await server.ask(wire.next_tokens(model, [prefix], ids, temperature))
        try:
            row = wire.next_logprobs(answer, 1)[0]
            found.append([row[token] for token in ids])
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Misconfigured(
                f"the vLLM server at {server.address} does not answer logprob_token_ids; docs/vllm.md names the "
                "versions that do",
                setting="engine.vllm.servers",
            ) from error
    if witness.apart(*found) < 1e-6:
        raise Misconfigured(
            f"the vLLM server at {server.address} gives log-probs that ignore the temperature: start it with "
            "--logprobs-mode processed_logprobs",
            setting="engine.vllm.servers",
        )


async def places(server: Server, model: str, slots: int) -> int | None:
    """How many adapters a server has places for (its --max-loras); None if it does not say.

    Refuses one whose last place `slots` adapters would fill: on processors vLLM 0.32 computes a request of the base
    with what lies there if an adapter is in the same batch.
    """
    found = await server.max_loras()
    if found is None:  # it says so from its first request on
        await server.ask(wire.next_tokens(model, [(0,)], (0, 1), 1.0))
        found = await server.max_loras()
    if found is not None and found <= slots:
        raise Misconfigured(
            f"the vLLM server at {server.address} has {found} places for adapters and engine.adapter_slots is {slots}: "
            "with its last place in use, vLLM may answer for the base with an adapter's weights; start it with "
            f"--max-loras {slots + 1} or more, or set engine.adapter_slots below {found}",
            setting="engine.adapter_slots",
        )
    return found


async def scores(
    server: Server, model: str, prompt: EncodedPrompt, completions: Sequence[Sequence[int]], temperature: float
) -> list[tuple[float, ...]]:
    """Log-probs under softmax(logits / temperature): one step behind each different beginning."""
    children: dict[tuple[int, ...], set[int]] = {}
    for completion in completions:
        for at, token in enumerate(completion):
            children.setdefault(tuple(completion[:at]), set()).add(token)
    found: dict[tuple[int, ...], dict[int, float]] = {}
    try:
        for prefixes, ids in wire.batches(children):
            asked = [(*prompt.tokens, *prefix) for prefix in prefixes]
            answer = await server.ask(wire.next_tokens(model, asked, ids, temperature))
            for prefix, row in zip(prefixes, wire.next_logprobs(answer, len(asked)), strict=True):
                found.setdefault(prefix, {}).update(row)
        return [tuple(found[tuple(each[:at])][token] for at, token in enumerate(each)) for each in completions]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InternalError(
            f"the vLLM server at {server.address} left out log-probs that it was asked for ({type(error).__name__}); "
            "docs/vllm.md names the versions that give them"
        ) from error
