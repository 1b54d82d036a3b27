"""`policy.*`: the policy's optimiser."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from plaudit.settings.section import Section


class PolicySettings(Section):
    """The policy's optimiser (docs/learner.md)."""

    temperature: float = Field(default=0.7, ge=0.05, le=5)
    """The policy is softmax(logits / temperature); a temperature of the domain's own decode_spec comes first."""
    max_tokens: int | None = Field(default=None, ge=1, le=32_768)
    """Maximum completion length for callers who name none, rollouts, gate and proof; unset is the domain's."""
    iterations: int = Field(default=10, ge=1, le=1_000)
    """Rollout-and-update iterations of a turn."""
    prompts: int = Field(default=16, ge=1, le=4_096)
    """Prompts of a rollout."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions of each prompt of a rollout, or drawn orders of its options (minimum two)."""
    held_out: int = Field(default=24, ge=0, le=4_096)
    """Prompts that no update uses, on which states of the policy are compared; up to a quarter of all; 0: none."""
    compared: int = Field(default=2, ge=1, le=1_000)
    """States of the policy that are compared with its start, evenly spread over the iterations."""
    practice_share: float = Field(default=0.15, ge=0, le=0.5)
    """Share of a rollout's prompts that are practice cases of the domain, minimum one if it has any; 0: none."""
    practice_penalty: float = Field(default=1.0, ge=0, le=4)
    """Reward that an answer to a practice case loses if it does the harm; a score of the reward model is at most 1."""
    epochs: int = Field(default=2, ge=1, le=100)
    """Maximum passes over a rollout."""
    minibatch: int = Field(default=16, ge=1, le=4_096)
    """Sequences of one update."""
    update_kl: float = Field(default=0.02, ge=1e-5, le=10)
    """Nats per token that the policy may move on one rollout; its updates end there."""
    lr: float = Field(default=1e-3, ge=1e-7, le=0.1)
    """AdamW step size after warm-up."""
    warmup_updates: int = Field(default=4, ge=0, le=10_000)
    """Updates over which the step size rises."""
    clip_range: float = Field(default=0.2, ge=0.01, le=1)
    """PPO's epsilon."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's lambda."""
    max_grad_norm: float = Field(default=1.0, ge=0.001, le=1_000)
    """Gradient clipping."""
    kl_coef: float = Field(default=0.02, ge=0, le=10)
    """Reward that a nat of KL to the base costs at first; the controller then adapts it."""
    kl_live_coef: float = Field(default=0.02, ge=0, le=10)
    """Reward that a nat of KL to live costs in training (unless live is the base) and in comparisons of states."""
    kl_target: float = Field(default=10.0, ge=0.01, le=1_000)
    """KL to the base that the controller aims at, nats per sequence."""
    advantage: Literal["gae", "rloo"] = "rloo"
    """rloo: leave-one-out; gae: against values predicted from the reward model's score of each prefix."""
    choice_prompts: int = Field(default=64, ge=1, le=4_096)
    """Prompts of an iteration in domains of choices; `minibatch` prompts of them are an update."""
    choice_update_kl: float = Field(default=1.0, ge=1e-5, le=10)
    """Nats per choice that the policy may move in one iteration; its updates end there."""
    choice_kl_target: float = Field(default=2.0, ge=0.01, le=1_000)
    """Choices: KL of the shown places to the base that the controller aims at, nats per choice."""
    first_place: Literal["exact", "sampled"] = "exact"
    """If only the first place counts: exact expected reward over all options, or `samples` drawn options."""
    label_coef: float = Field(default=1.0, ge=0, le=10)
    """Reward that a nat of cross-entropy of people's labels costs; 0: labels teach through the reward alone."""
    pass_tokens: int = Field(default=2_048, ge=16, le=1_000_000)
    """Choices: maximum number of tokens whose activations the trainer holds at once."""
    trunk_tokens: int = Field(default=100_000, ge=0, le=100_000_000)
    """Choices: maximum number of tokens whose trunk activations are kept from one pass to the next."""

    @model_validator(mode="after")
    def _leave_one_out_has_others(self) -> Self:
        if self.advantage == "rloo" and self.samples < 2:
            raise ValueError("samples=1 leaves advantage=rloo no other sample; the smallest is samples=2, or take gae")
        return self
