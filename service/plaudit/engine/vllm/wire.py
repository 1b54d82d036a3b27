"""What is said to a vLLM server and what is heard from it.

In: tokens, sampling, answers as JSON. Out: bodies of POST /v1/completions, tokens and log-probs (nats). Pure. Prompts
go as token ids, so that no text of people is tokenised at the server. All of sampling is written out, for a server
fills what is missing from its model's generation_config.json.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plaudit.types import Sampling

# vLLM raises lower temperatures to this one; a draw at it is greedy but for ties.
SMALLEST_TEMPERATURE = 1e-2
# vLLM's own bounds on the tokens whose log-probs one request may ask for, and one on prompts of a request that is ours:
# a request is answered as a whole.
MOST_IDS = 128
MOST_PROMPTS = 64
# What vLLM writes for -inf, which JSON does not have.
_NEVER = -9999.0
_TOKEN = "token_id:"  # noqa: S105 - how a token is spelt
_PLAIN = {"min_p": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A piece of a streamed answer. `finish` is "stop", "length" or another of vLLM's words; None while it goes on."""

    model: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish: str | None


def is_greedy(sampling: Sampling) -> bool:
    """Whether the server takes the most likely token, without a draw."""
    return sampling.temperature < SMALLEST_TEMPERATURE


def is_plain(sampling: Sampling) -> bool:
    """Whether what is drawn from is softmax(logits): then the log-probs as sampled are the raw ones."""
    return is_greedy(sampling) or (sampling.temperature == 1.0 and sampling.top_p >= 1.0 and not sampling.top_k)


def completion(
    model: str, prompt: Sequence[int], sampling: Sampling, seed: int, max_tokens: int, stops: Sequence[int]
) -> Body:
    """A streamed completion of `prompt` with the log-prob of each token as it is drawn; `stops` end it.

    Stop strings are not the server's: they are looked for in the text that people see.
    """
    greedy = is_greedy(sampling)
    only_one = greedy or sampling.top_p <= 0.0
    return {
        "model": model,
        "prompt": list(prompt),
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0.0 if greedy else sampling.temperature,
        "top_p": 1.0 if only_one else sampling.top_p,
        "top_k": (0 if greedy else 1) if only_one else sampling.top_k,
        # 64 bits with a sign.
        "seed": seed - 2**64 if seed >= 2**63 else seed,
        "stop_token_ids": list(stops),
        "logprobs": 0,
        "return_token_ids": True,
        "add_special_tokens": False,
        **_PLAIN,
    }


def next_tokens(model: str, prefixes: Sequence[Sequence[int]], ids: Sequence[int], temperature: float) -> Body:
    """Asks for the log-probs of `ids` behind each prefix, under softmax(logits / temperature): `next_logprobs`.

    A step behind each, and not one pass over a prompt (prompt_logprobs): vLLM 0.32 with adapters computes such a pass
    with the adapters of other requests, or dies of it, if it is not alone in its batch.
    """
    return {
        "model": model,
        "prompt": [list(each) for each in prefixes],
        "max_tokens": 1,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "add_special_tokens": False,
        **_PLAIN,
        "logprobs": 0,
        "logprob_token_ids": list(ids),
        "return_tokens_as_token_ids": True,
    }


def drawn(piece: Mapping[str, Any]) -> Drawn:
    """A piece of a stream; raises KeyError, TypeError or ValueError if it is none."""
    if not piece["choices"]:
        return Drawn(str(piece["model"]), (), (), None)
    choice = piece["choices"][0]
    tokens = tuple(choice.get("token_ids") or ())
    logprobs = tuple(_number(each) for each in (choice.get("logprobs") or {}).get("token_logprobs") or ())
    if len(tokens) != len(logprobs):
        raise ValueError(f"{len(tokens)} tokens and {len(logprobs)} log-probs")
    return Drawn(str(piece["model"]), tokens, logprobs, choice.get("finish_reason"))


def next_logprobs(answer: Mapping[str, Any], prefixes: int) -> list[dict[int, float]]:
    """Log-probs by token behind each prefix in the answer to `next_tokens`; raises KeyError, TypeError, ValueError."""
    rows: list[dict[int, float]] = [{} for _ in range(prefixes)]
    for choice in answer["choices"]:
        row = choice["logprobs"]["top_logprobs"][0]
        rows[choice["index"]] = {int(name.removeprefix(_TOKEN)): _number(value) for name, value in row.items()}
    return rows


def batches(children: Mapping[tuple[int, ...], set[int]]) -> Iterator[tuple[list[tuple[int, ...]], list[int]]]:
    """Prefixes with the tokens wanted behind each, as (prefixes, tokens) of requests that vLLM takes."""
    prefixes: list[tuple[int, ...]] = []
    ids: set[int] = set()
    for prefix, wanted in children.items():
        ordered = sorted(wanted)
        for begin in range(0, len(ordered), MOST_IDS):
            piece = set(ordered[begin : begin + MOST_IDS])
            if prefixes and (len(ids | piece) > MOST_IDS or len(prefixes) == MOST_PROMPTS):
                yield prefixes, sorted(ids)
                prefixes, ids = [], set()
            prefixes.append(prefix)
            ids |= piece
    if prefixes:
        yield prefixes, sorted(ids)


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"{value!r} is not a log-prob")
    return -math.inf if value <= _NEVER else float(value)
