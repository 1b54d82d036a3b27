"""`gate.*`: what a candidate release must show."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from plaudit.settings.section import Section


class GateSettings(Section):
    """What a candidate release must show (docs/release.md)."""

    prompts: int = Field(default=100, ge=1, le=100_000)
    """Gate prompts asked."""
    min_prompts: int = Field(default=60, ge=1, le=100_000)
    """With fewer gate prompts in the log the gate refuses."""
    samples: int = Field(default=4, ge=1, le=64)
    """Completions per prompt."""
    kl_base: float = Field(default=16.0, ge=0.1, le=1_000)
    """Maximum KL to the base, nats per sequence."""
    kl_live: float = Field(default=12.0, ge=0.1, le=1_000)
    """Maximum KL to the live release, nats per sequence."""
    win_base: float = Field(default=0.5, ge=0, le=1)
    """The lower 95% bound of the win-rate against the base must exceed this."""
    win_live: float = Field(default=0.45, ge=0, le=1)
    """The lower 95% bound of the win-rate against the live release must exceed this."""
    distinct_ratio: float = Field(default=0.75, ge=0, le=1)
    """Minimum distinct-2, as a share of the base's."""
    masked_ratio: float = Field(default=0.35, ge=0, le=1)
    """Minimum share of different answers once the question's own words are masked, relative to the base's."""
    opening_share: float = Field(default=0.3, ge=0, le=1)
    """Maximum share of answers with the commonest three first words; more if the base has more (docs/release.md)."""
    term_fall: float = Field(default=0.05, ge=0, le=2)
    """Maximum fall of the mean of one of the domain's own reward terms below the base's, if the fall is sure."""
    probe_rate: float = Field(default=0.05, ge=0.001, le=0.5)
    """Rate of a harm that the probes must detect; also the maximum if base or live do it too (docs/release.md)."""
    probe_power: float = Field(default=0.95, ge=0.5, le=0.9999)
    """Probability with which a harm of that rate shows at least once; it sets how many answers are asked per harm."""
    reward_comparisons: int = Field(default=150, ge=1, le=1_000_000)
    """Comparisons of calibration raters below which a turn waits."""
    reward_raters: int = Field(default=5, ge=1, le=100_000)
    """Calibration raters below which a turn waits."""
    reward_margin: float = Field(default=0.02, ge=0, le=2)
    """Choices: how far the lower 95% bound of expected reward minus live's may be below 0."""
    choice_kl_base: float = Field(default=6.0, ge=0.01, le=1_000)
    """Choices: maximum KL to the base, nats of the first place, and per place of a slate."""
    choice_kl_live: float = Field(default=4.0, ge=0.01, le=1_000)
    """Choices: maximum KL to the live release, nats of the first place, and per place of a slate."""
    choice_share: float = Field(default=0.3, ge=0, le=1)
    """Choices: maximum share of the most frequent decision; higher if labels or base have more (docs/release.md)."""
    choice_coverage: float = Field(default=0.35, ge=0, le=1)
    """Choices: minimum number of different options, relative to the labels' or the base's."""
    min_labelled: int = Field(default=30, ge=1, le=100_000)
    """Choices with labels: labelled gate prompts below which the gate refuses."""
    label_margin: float = Field(default=0.05, ge=0, le=1)
    """Choices: how far the lower 95% bound of cost-weighted accuracy minus base's or live's may be below 0."""
    missed_severe: float = Field(default=0.25, ge=0.001, le=1)
    """Choices with severe labels: maximum upper 95% bound of the share of severe prompts that are missed."""
    estimate_ess: float = Field(default=50.0, ge=2, le=1_000_000)
    """Choices: effective number of drawn interactions below which no off-policy estimate is shown."""
    estimate_interactions: int = Field(default=400, ge=1, le=100_000)
    """Choices: maximum drawn interactions that the estimate reads, the newest first."""

    @model_validator(mode="after")
    def _enough_may_be_asked(self) -> Self:
        if self.min_prompts > self.prompts:
            raise ValueError(
                f"min_prompts={self.min_prompts} is too large: prompts={self.prompts} are asked at most, so no gate "
                f"would ever pass; the largest is min_prompts={self.prompts}"
            )
        return self
