"""Scores of a prompt's options under an adapter, and their gradient, in passes of bounded size.

In: prompts with their options. Out: the log-prob of every token of an option and of the end of turn after it, under
softmax(logits / temperature), and the option's score of them, as serving computes it. The trunk below the adapter is
run once per prompt and kept; a pass runs the layers above it over prompts with their options packed behind them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from plaudit.domain import OptionScore
from plaudit.engine import adapters
from plaudit.engine.base import Base
from plaudit.policy.rollout import TrainPrompt
from plaudit.reward.completion import Completion
from plaudit.reward.flat import Row, spans
from plaudit.reward.trunk import TrunkCache


class _Pass(NamedTuple):
    """Options of one pass, and the log-probs of all their tokens, one option behind the other."""

    options: list[Completion]
    logprobs: list[torch.Tensor]


class OptionScorer:
    """Scores options; `pass_tokens` bounds the tokens of a pass, and with it the memory of a gradient.

    A single prompt with one of its options that is longer has a pass of its own.
    """

    def __init__(
        self,
        base: Base,
        start_layer: int,
        *,
        temperature: float,
        end_of_turn: int,
        how: OptionScore = OptionScore.SUM,
        pass_tokens: int = 2048,
    ) -> None:
        self._base, self._temperature, self._end, self._how = base, temperature, end_of_turn, how
        self._pass_tokens = pass_tokens
        self._cache = TrunkCache(base, start_layer, base.num_layers)

    @torch.no_grad()
    def logprobs(self, prompts: Sequence[TrainPrompt], adapter: str | None) -> list[list[torch.Tensor]]:
        """Per prompt and option the log-probs (C + 1,) of its C tokens and of its end; adapter None is the base."""
        found: dict[Completion, torch.Tensor] = {}
        for options, logprobs in self._passes(_options(prompts), adapter):
            found.update(zip(options, logprobs, strict=True))
        return [[found[each] for each in _options([prompt])] for prompt in prompts]

    def scores(self, prompts: Sequence[TrainPrompt], adapter: str | None) -> list[torch.Tensor]:
        """Per prompt the scores (K,) of its options in nats, fp64, on the CPU, without gradient."""
        return [torch.stack([self._score(each) for each in several]) for several in self.logprobs(prompts, adapter)]

    def forget(self, above: int) -> None:
        """Drop the trunk's activations if more than so many tokens are held."""
        self._cache.clear(above)

    def backward(self, prompts: Sequence[TrainPrompt], slopes: Sequence[torch.Tensor], adapter: str) -> None:
        """Add to the adapter's gradient what a loss with these slopes (K,) by each prompt's scores has.

        Only one pass has activations at a time.
        """
        by_option: defaultdict[Completion, float] = defaultdict(float)
        for prompt, several in zip(prompts, slopes, strict=True):
            for option, slope in zip(_options([prompt]), several.tolist(), strict=True):
                by_option[option] += slope
        moved = [option for option, slope in by_option.items() if slope]
        with torch.enable_grad():
            for options, logprobs in self._passes(moved, adapter):
                weighed = [by_option[o] * self._score(each) for o, each in zip(options, logprobs, strict=True)]
                torch.stack(weighed).sum().backward()  # type: ignore[no-untyped-call]

    def _score(self, logprobs: torch.Tensor) -> torch.Tensor:
        values = logprobs.double()
        return values.mean() if self._how is OptionScore.MEAN else values.sum()

    def _passes(self, options: Sequence[Completion], adapter: str | None) -> Iterator[_Pass]:
        self._cache.fill(options)
        with adapters.active(self._base, adapter):
            for rows, hidden in self._cache.run(options, self._pass_tokens):
                yield self._scored(rows, hidden)

    def _scored(self, rows: Sequence[Row], hidden: torch.Tensor) -> _Pass:
        width = hidden.shape[1]
        options: list[Completion] = []
        at: list[int] = []
        wanted: list[int] = []
        lengths: list[int] = []
        for index, row in enumerate(rows):
            for shown, (begin, end) in zip(row.shown, spans(row), strict=True):
                options.append(Completion(row.prompt, shown))
                # The prompt's last token foretells the option's first, and its last token the end of turn.
                at += [index * width + len(row.prompt) - 1, *range(index * width + begin, index * width + end - 1)]
                wanted += [*shown, self._end]
                lengths.append(len(shown) + 1)
        # What options have in common (the prompt's last token) has its logits once.
        places, of = torch.unique(torch.tensor(at), return_inverse=True)
        states = hidden.flatten(0, 1)[places.to(hidden.device)].to(self._base.dtype)
        scaled = self._base.logits(self._base.norm(states)) / self._temperature
        of = of.to(scaled.device)
        total = torch.logsumexp(scaled, dim=-1)
        logprobs = scaled[of, torch.tensor(wanted, device=scaled.device)] - total[of]
        return _Pass(options, list(torch.split(logprobs.cpu(), lengths)))


def _options(prompts: Sequence[TrainPrompt]) -> list[Completion]:
    return [Completion(prompt.encoded.tokens, option) for prompt in prompts for option in prompt.options]
