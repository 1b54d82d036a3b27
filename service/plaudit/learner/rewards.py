"""What an optimiser's samples, or a prompt's options, come to: the reward model's score, through the plugin's terms.

Enters: a fitted reward model, the domain's plugin, references. Leaves: Rewarded for PPO, Judged for choices. The
outlook is what the tokens *so far* would be shown as and would score: nothing that comes later reaches it, or a
baseline would take part of the credit from the very tokens that decide what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from plaudit.domain import DomainPlugin
from plaudit.learner.references import References, as_shown, options_shown
from plaudit.policy.choose import Judged
from plaudit.policy.optimizer import Rewarded
from plaudit.policy.rollout import Sample, TrainPrompt
from plaudit.policy.value import BLANK
from plaudit.reward.completion import Completion
from plaudit.reward.model import RewardModel
from plaudit.reward.shown import Text


class ModelReward:
    """The reward of samples: a RewardFunction.

    `most_references`: base answers of a prompt on which its scores are centred. `outlook`: whether to compute it.
    """

    def __init__(
        self, model: RewardModel, plugin: DomainPlugin, references: References, *, most_references: int, outlook: bool
    ) -> None:
        self._model, self._plugin, self._references = model, plugin, references
        self._most, self._outlook = most_references, outlook

    def __call__(self, samples: Sequence[Sample]) -> Rewarded:
        """Shaped, centred, pessimistic scores through the plugin's terms; raises PluginFailed."""
        model, text = self._model, self._model.base
        shown = [as_shown(text, self._plugin, each)[0] for each in samples]
        references = [
            [completion for completion, _ in self._references.of(each.prompt)][: self._most] for each in samples
        ]
        scores = model.shaped(model.judge(shown, references)).tolist()
        totals = []
        for each, score in zip(samples, scores, strict=True):
            outcome = self._plugin.parse(each.prompt.rendered, each.generated.text)
            totals.append(self._plugin.reward(each.prompt.rendered, outcome, score).total)
        outlook = self._foreseen(samples, references) if self._outlook else []
        model.cache.forget(shown)
        return Rewarded(torch.tensor(totals), outlook)

    def _foreseen(self, samples: Sequence[Sample], references: Sequence[Sequence[Completion]]) -> list[torch.Tensor]:
        """Outlook (C,) before each generated token of each sample."""
        # The last token is behind every "so far".
        fed = [Completion(each.prompt.encoded.tokens, each.generated.tokens[:-1]) for each in samples]
        scores = self._model.outlook(fed, references)
        self._model.cache.forget(fed)
        found = []
        for each, after in zip(samples, scores, strict=True):
            lengths = shown_so_far(self._model.base, self._plugin, each)
            # Entry n is the score of the first n tokens; of none nothing is known.
            known = torch.cat([torch.tensor([BLANK]), after])
            found.append(known[torch.tensor(lengths)])
        return found


class OptionRewards:
    """The reward of a prompt's options: a Judge of `policy.choose`. Scores are centred on the mean of all of them.

    most_tokens: of prompts and options whose activations are held at once.
    """

    def __init__(self, model: RewardModel, plugin: DomainPlugin, *, most_tokens: int) -> None:
        self._model, self._plugin, self._most_tokens = model, plugin, most_tokens

    def __call__(self, prompts: Sequence[TrainPrompt]) -> list[Judged]:
        """Shaped, centred, pessimistic scores through the plugin's terms; raises PluginFailed."""
        model = self._model
        options = [options_shown(model.base, self._plugin, prompt) for prompt in prompts]
        scores = model.shaped_among(([each for each, _ in several] for several in options), self._most_tokens)
        found = []
        for prompt, several, shaped in zip(prompts, options, scores, strict=True):
            rewards = [
                self._plugin.reward(prompt.rendered, outcome, score).total
                for (_, outcome), score in zip(several, shaped, strict=True)
            ]
            found.append(Judged(torch.tensor(rewards, dtype=torch.float64), tuple(o.valid for _, o in several)))
        return found


def shown_so_far(text: Text, plugin: DomainPlugin, sample: Sample) -> list[int]:
    """Before each generated token: how many of the tokens so far people would be shown if they were all.

    All of them if what is shown is no part of the text (a rewrite). Depends on the tokens before each token alone.
    """
    tokens = sample.generated.tokens
    texts = [text.decode(tokens[:n]) for n in range(len(tokens))]
    lengths: list[int] = []
    for n, so_far in enumerate(texts):
        shown = plugin.parse(sample.prompt.rendered, so_far).displayed
        lengths.append(next((length for length in range(n) if shown in texts[length]), n))
    return lengths
