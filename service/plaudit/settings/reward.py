"""`reward.*`: the reward model."""

from __future__ import annotations

from pydantic import Field

from plaudit.settings.section import Section


class RewardSettings(Section):
    """The reward model (docs/reward.md)."""

    heads: int = Field(default=3, ge=1, le=64)
    """Ensemble members; each sees bootstrap weights of its own."""
    adapter: bool = True
    """Train a LoRA adapter beside the heads; heads alone on frozen features if false."""
    layer: int = Field(default=0, ge=0, le=1024)
    """Heads read what comes out of this layer (counted from 1); 0 is two thirds of the way up."""
    adapter_layers: int = Field(default=4, ge=1, le=1024)
    """Layers below the one that is read that carry the adapter; fewer fit faster, and the trunk below is run once."""
    adapter_lr: float = Field(default=2e-3, ge=1e-6, le=0.1)
    """AdamW step size of the adapter."""
    head_lr: float = Field(default=1e-3, ge=1e-6, le=0.1)
    """AdamW step size of the heads."""
    epochs: float = Field(default=1.0, ge=0.05, le=100)
    """Passes over the evidence, from base."""
    units_per_step: int = Field(default=6, ge=1, le=4_096)
    """Units (a pair, a ranking, one rater's thumbs) of one step."""
    center: float = Field(default=0.01, ge=0, le=1)
    """Weight of the centring regulariser."""
    rater_cap: float = Field(default=20.0, ge=1, le=1_000_000)
    """Maximum total weight of one rater, in events."""
    half_life_days: float = Field(default=30.0, ge=0.01, le=100_000)
    """Age at which evidence counts half."""
    place_offsets: bool = True
    """Correct choices and signals about ordered options for the place that an option stood in."""
    signal_noise: float = Field(default=0.3, ge=0, le=0.45)
    """Assumed error rate of a signal before any is measured; 0 takes signals as true."""
    uncertainty: float = Field(default=0.5, ge=0, le=10)
    """Weight of the heads' spread in the pessimistic score (lambda_u)."""
    temperature: float = Field(default=1.5, ge=0.05, le=20)
    """Temperature of the sigmoid that bounds the score (tau_R)."""
    references: int = Field(default=4, ge=1, le=64)
    """Base samples per prompt that centre the score."""
